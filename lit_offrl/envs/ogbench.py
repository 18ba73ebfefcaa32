"""OGBench's environments (Park et al. 2025, arXiv:2410.20092), with episodes that the seed decides.

The simulation, tasks, rewards and step limits are those of the package ogbench. It draws some
random numbers from NumPy's global generator and from action spaces that it makes anew at each look,
which no seed reaches: here they follow the seed of ``reset`` like all others, so that an episode
can be repeated, and the global generator is left as it was.

To compile a manipulation model takes ten times as long as an episode in it. Models are therefore
compiled once in a process and copied. A reset forgets all that was before, to the bit, so the
simulators of closed environments serve again.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from lit_offrl.datasets.ogbench_tasks import ENV_TASKS, TASKS
from lit_offrl.envs.extras import require

_FPS = 20  # of videos
_idle: defaultdict[str, list[gymnasium.Env]] = defaultdict(list)
"""Simulators of closed environments, by the environment's name."""
_compiled: dict[str, Any] = {}
"""Models as MuJoCo compiled them, by a hash of what they were made from."""


def make(name: str, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """Make the environment of one of OGBench's ids, such as ``cube-single-singletask-task2-v0``.

    Args:
        name: A key of ``ENV_TASKS``.
        render_mode: ``"rgb_array"`` for pictures.
        **options: OGBench's own.

    Raises:
        EvaluationError: The package ogbench is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a missing screen, and of bounds in float64
        require("ogbench", name)
        with _compiled_once():
            return _make(name, render_mode, options)


def _make(name: str, render_mode: str | None, options: dict[str, Any]) -> gymnasium.Env:
    tasks = TASKS if ENV_TASKS[name].task is None else ()
    common = render_mode is None and not options
    if common and _idle[name]:
        return OGBenchEnv(_idle[name].pop(), tasks, _idle[name])
    spec: Any = gymnasium.spec(name)
    how = {**spec.kwargs, "render_mode": render_mode, **options}
    env: Any = load_env_creator(spec.entry_point)(**how)
    model = Path(getattr(env.unwrapped, "fullpath", ""))
    if model.parent == Path(tempfile.gettempdir()):  # a maze's, which it compiles and leaves there
        model.unlink(missing_ok=True)
    return OGBenchEnv(env, tasks, _idle[name] if common else None)


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """Have MuJoCo copy what it has compiled before from the same XML and assets."""
    import mujoco  # which ogbench brings

    compile_new = mujoco.MjModel.from_xml_string

    def compiled(xml: str, assets: dict[str, bytes] | None = None) -> Any:
        hashed = hashlib.sha256(xml.encode())
        for name, content in sorted((assets or {}).items()):  # the package's order is a set's
            hashed.update(name.encode() + content)
        key = hashed.hexdigest()
        if key not in _compiled:
            _compiled[key] = compile_new(xml, assets)
        return copy.deepcopy(_compiled[key])

    with mock.patch.object(mujoco.MjModel, "from_xml_string", compiled):
        yield


class OGBenchEnv(gymnasium.Wrapper):
    """An environment of OGBench's whose random numbers all come from the seed.

    ``info`` has ``success``, and after ``reset`` the ``goal``, an observation (o,), and the number
    of the ``task``.

    Args:
        env: OGBench's own.
        task_ids: Tasks that episodes can be of, for ``reset(options={"task_id": 3})``; empty where
            there is one.
        idle: Where the simulator goes on ``close``; None closes it.

    Attributes:
        task_ids: See above; evaluation gives its episodes these in turn.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        task_ids: tuple[int, ...],
        idle: list[gymnasium.Env] | None = None,
    ) -> None:
        super().__init__(env)
        self.task_ids, self._idle = task_ids, idle
        self._state = np.random.RandomState(0).get_state()
        inner = env.unwrapped
        with self._drawing():  # the simulator compiles, and resets, when it is first looked at
            self.observation_space, space = inner.observation_space, inner.action_space
        if isinstance(getattr(type(inner), "action_space", None), property):
            # a new space at each look, with random numbers of its own: from here on one
            inner.__class__ = type(type(inner).__name__, (type(inner),), {"action_space": space})
        self.action_space = self._space = space
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": _FPS}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode of the task in ``options``, else of one that is drawn."""
        if seed is not None:
            self._space.seed(seed)
            self._state = np.random.RandomState(seed % 2**32).get_state()
        with self._drawing():
            observation, info = self.env.reset(seed=seed, options=options)
        inner: Any = self.env.unwrapped
        return observation, {**info, "task": int(inner.cur_task_id)}

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; a teleport draws where it leads."""
        with self._drawing():
            return self.env.step(action)

    def close(self) -> None:
        """Leave the simulator to the next environment of this name."""
        if self._idle is None:
            self.env.close()
        elif self.env not in self._idle:
            self._idle.append(self.env)

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Have NumPy's global generator continue this environment's numbers for the duration."""
        others = np.random.get_state()  # noqa: NPY002  OGBench draws from it
        np.random.set_state(self._state)  # noqa: NPY002
        try:
            yield
        finally:
            self._state = np.random.get_state()  # noqa: NPY002
            np.random.set_state(others)  # noqa: NPY002
