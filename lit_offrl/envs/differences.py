"""What differs from D4RL's original in each environment that stands for one: data for records.

Each sentence goes into the evaluation record and the documentation. Facts of D4RL are those of its
source (Farama-Foundation/D4RL, 2023); what has not been compared is said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping

from lit_offrl.envs import adroit, antmaze, kitchen, locomotion

_SIMULATOR = "The simulator is the installed MuJoCo; D4RL's data and references were made with 2.0."
_DRAWS = "Starts and goals have D4RL's distributions, not its random numbers."

_MAZE2D = (
    _SIMULATOR,
    _DRAWS,
    "MuJoCo's solver starts cold at each step, so that a state and an action determine the next"
    " state; D4RL's starts from the step before.",
)
_ANTMAZE = (
    _SIMULATOR,
    _DRAWS,
    "The dynamics predict steps recorded from a re-creation of D4RL's ant to 0.00002, up to the"
    " rounding of the recorded states to float32; D4RL's own files were not compared.",
)
_LOCOMOTION = (
    _SIMULATOR,
    "Model, reward and termination are those of gymnasium's -v4 environment; D4RL used gym's -v2.",
)
_MORE_LOCOMOTION: Mapping[str, tuple[str, ...]] = {
    "hopper": (
        "Uniformly random actions earn about 18 here; D4RL's reference minimum is -20.3, so they"
        " score about 1.2.",
    ),
    "ant": (
        "The 84 contact forces are 0, as MuJoCo 2.0 left them in D4RL's observations and rewards;"
        " this was not compared with D4RL's files.",
        "Uniformly random actions earn about -66 here, in episodes of about 180 steps; D4RL's"
        " reference minimum, -325.6, is close to the return of 1,000 such steps.",
    ),
}
_ADROIT = (
    _SIMULATOR,
    "The model is gymnasium-robotics' copy of D4RL's; they were not compared line by line.",
)
_REWARD = (
    "The reward is D4RL's, computed by lit-offrl: gymnasium-robotics 1.4.2 rewards the"
    " distance between palm and object, whereas D4RL penalises it.",
)
_KITCHEN = (
    "The simulator is the installed MuJoCo and the model gymnasium-robotics', built for it;"
    " D4RL used dm_control. It has not been verified that D4RL's demonstrations solve the tasks in"
    " this environment.",
    "D4RL computes the reward from the noisy observed positions; here it is computed from the exact"
    " positions.",
    "Here each element gives a reward of 1 once, when it is first solved. In D4RL's data the reward"
    " of every step is the number of elements solved.",
)

DIFFERENCES: Mapping[str, tuple[str, ...]] = {
    **{f"lit_offrl/maze2d-{maze}-v1": _MAZE2D for maze in ("open", "umaze", "medium", "large")},
    **{f"lit_offrl/antmaze-{task}-v2": _ANTMAZE for task in antmaze.TASKS},
    **{
        f"lit_offrl/{task}-v2": (*_LOCOMOTION, *_MORE_LOCOMOTION.get(task, ()))
        for task in locomotion.TASKS
    },
    **{
        f"lit_offrl/{task}-v0": _ADROIT if task == "pen" else _ADROIT + _REWARD
        for task in adroit.TASKS
    },
    **{f"lit_offrl/kitchen-{task}-v0": _KITCHEN for task in kitchen.TASKS},
}
"""Environment id → sentences."""

EARLIER: Mapping[str, str] = {
    "Uniformly random actions earn about -66 here, in episodes of about 180 steps; D4RL's"
    " reference minimum, -325.6, is near what 1000 steps of them cost.": (
        _MORE_LOCOMOTION["ant"][1]
    ),
    "The reward is D4RL's, computed by lit-offrl: gymnasium-robotics 1.4.2 pays for the distance"
    " between palm and object, for which D4RL charges.": _REWARD[0],
    "The simulator is the installed MuJoCo and the model gymnasium-robotics', built for it;"
    " D4RL used dm_control. That D4RL's demonstrations solve it has not been shown.": _KITCHEN[0],
    "D4RL pays by the positions with the observation's noise; here the exact positions count.": (
        _KITCHEN[1]
    ),
    "The environment pays once for each element solved; D4RL's data pay the number of elements"
    " solved at every step.": _KITCHEN[2],
}
"""Present sentences by those of earlier records, which say the same and are compared as equal."""
