"""D4RL's ant and the walls of its mazes, written as a MuJoCo model.

The numbers are those of D4RL's ``locomotion/assets/ant.xml`` (Fu et al., 2020): time step 0.02 s,
RK4, joints with armature 1 and damping 1, motors of ±30 N·m. gymnasium's ant has the same body but
another time step (0.01 s) and other motors (±150 N·m): a policy for one does not fit the other.
"""

from __future__ import annotations

import numpy as np

TORQUE = 30.0  # N·m, at actions of ±1
LEGS = ((1, 1), (-1, 1), (-1, -1), (1, -1))  # signs of x and y: front, left, back, right
_ACTUATED = (4, 1, 2, 3)  # order of the legs in an action: hip and ankle of each
_THICKNESS = 0.08
_MARGIN = 0.01


def maze_xml(walls: np.ndarray, cell: float, height: float) -> str:
    """Return the model of the ant at the origin among walls: square cells (W, 2), in metres."""
    boxes = "".join(
        f'<geom type="box" pos="{x:g} {y:g} {height / 2:g}"'
        f' size="{cell / 2:g} {cell / 2:g} {height / 2:g}" contype="1" conaffinity="1"/>'
        for x, y in walls
    )
    legs = "".join(_leg(number, *signs) for number, signs in enumerate(LEGS, start=1))
    motors = "".join(
        f'<motor joint="{joint}_{leg}" ctrllimited="true" ctrlrange="-{TORQUE:g} {TORQUE:g}"/>'
        for leg in _ACTUATED
        for joint in ("hip", "ankle")
    )
    return (
        '<mujoco model="antmaze">'
        '<compiler angle="degree" inertiafromgeom="true"/>'
        '<option timestep="0.02" integrator="RK4"/>'
        "<default>"
        '<joint limited="true" armature="1" damping="1"/>'
        '<geom contype="1" conaffinity="0" condim="3" density="5" friction="1 0.5 0.5"'
        f' margin="{_MARGIN}" solref="0.02 1" solimp="0.8 0.8 0.01"/>'
        "</default>"
        "<worldbody>"
        '<geom name="floor" type="plane" size="40 40 40" conaffinity="1"/>'
        f"{boxes}"
        '<body name="torso" pos="0 0 0.75">'
        f'<joint name="root" type="free" limited="false" margin="{_MARGIN}" armature="0"'
        ' damping="0"/>'
        '<geom name="torso" type="sphere" size="0.25"/>'
        f"{legs}"
        "</body></worldbody>"
        f"<actuator>{motors}</actuator></mujoco>"
    )


def _leg(number: int, x: int, y: int) -> str:
    """One leg towards (x, y): a fixed stub, the hip about z, the ankle across the leg."""
    stub = f"{0.2 * x:g} {0.2 * y:g} 0"
    foot = f"{0.4 * x:g} {0.4 * y:g} 0"
    axis = "-1 1 0" if x == y else "1 1 0"
    low, high = (30, 70) if x > 0 else (-70, -30)
    return (
        f'<body name="leg_{number}">{_capsule(f"stub_{number}", stub)}'
        f'<body pos="{stub}"><joint name="hip_{number}" axis="0 0 1" range="-30 30"/>'
        f"{_capsule(f'thigh_{number}', stub)}"
        f'<body pos="{stub}"><joint name="ankle_{number}" axis="{axis}" range="{low} {high}"/>'
        f"{_capsule(f'foot_{number}', foot)}</body></body></body>"
    )


def _capsule(name: str, end: str) -> str:
    return f'<geom name="{name}" type="capsule" size="{_THICKNESS}" fromto="0 0 0 {end}"/>'
