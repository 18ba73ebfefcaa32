"""Gymnasium environments, made quietly and with errors that say what to do."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

import lit_offrl.envs  # noqa: F401  registers their ids
from lit_offrl.common.errors import (
    ConfigError,
    EvaluationError,
    LitOffRLError,
    first_line,
    install,
    nearest,
    reason,
)
from lit_offrl.common.signals import Interrupted
from lit_offrl.common.user_code import import_named, place
from lit_offrl.envs.extras import GL_ADVICE
from lit_offrl.evaluation.strict import StrictEnv

_CHATTER = (b"argv[0]=", b"pybullet build time")
_quiet_lock = threading.RLock()  # file descriptors belong to the whole process


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Keep PyBullet's own lines off the screen, and nothing but those.

    PyBullet prints from C, below ``sys.stdout``, when it is imported and when an environment
    connects. So both file descriptors are pointed at a scratch file for the duration, and whatever
    else was written meanwhile (a warning, another thread's line) is passed on afterwards.
    """
    with _quiet_lock, contextlib.ExitStack() as stack:
        _flush()
        saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        scratch = {fd: stack.enter_context(tempfile.TemporaryFile()) for fd in saved}
        for descriptor, file in scratch.items():
            os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            _flush()  # C keeps lines in a buffer of its own when stdout is no terminal
            for descriptor, original in saved.items():
                os.dup2(original, descriptor)
                os.close(original)
                scratch[descriptor].seek(0)
                for line in scratch[descriptor]:
                    if not line.startswith(_CHATTER):
                        os.write(descriptor, line)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ctypes.CDLL(None).fflush(None)


class QuietStart(gymnasium.Wrapper):
    """Resets without PyBullet's chatter: its simulator starts at the first reset, not before."""

    _started = False

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Reset as the environment does."""
        if self._started:
            return self.env.reset(**options)
        self._started = True
        with without_chatter():
            return self.env.reset(**options)


class WholeActions(gymnasium.ActionWrapper):
    """Takes the actions of a Discrete space as vectors (1,) of a whole number, as data have them.

    Raises:
        EvaluationError: by ``step``, of an action that is no whole number.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, gymnasium.spaces.Discrete)
        last = int(space.start + space.n - 1)
        self.action_space = gymnasium.spaces.Box(int(space.start), last, (1,), np.int64)

    def action(self, action: np.ndarray) -> int:
        """Return the number that the environment takes."""
        (number,) = action.tolist()
        if number != round(number):
            space = self.env.action_space
            raise EvaluationError(
                f"This environment takes whole numbers, {space}, and the policy gave {number:.4g}:"
                " evaluate a policy of discrete actions, such as LDCQ's with num_actions."
            )
        return round(number)


def name_env(env_id: str, option: str = "--env") -> None:
    """Take an id that the user has named: of ``my_robot:Reach-v0`` import the module, as gymnasium.

    From here on ``find_spec`` finds the id. Only for what stands on the command line or in a config
    of the user's, in an ``option`` that messages name: the id of a file may name any module, and
    importing it would run it.

    Raises:
        ConfigError: a module or an id is missing before or after the colon, there is no such
            module, or importing it fails.
        EvaluationError: no environment has that id; the nearest one is named.
    """
    module, colon, name = env_id.rpartition(":")
    if colon and not (module and name):
        raise ConfigError(
            f"{option} '{env_id}' is no id: give that of an installed environment, such as"
            " Pendulum-v1, or MODULE:ID for one of your own."
        )
    if colon:
        import_named(module, f"{option} {env_id}")
        if name not in gymnasium.registry:
            raise EvaluationError(
                f"Module '{module}' registers no environment '{name}'."
                f"{nearest(name, gymnasium.registry)} It has to call gymnasium.register."
            )
    find_spec(env_id)


def find_spec(env_id: str) -> Any:
    """Return gymnasium's specification of ``env_id``, registering PyBullet's when needed.

    Of ``module:id`` no module is imported: that is for ids that the user names, see ``name_env``.

    Raises:
        EvaluationError: no environment has that id, and the nearest one is named; or its module
            has not been imported.
    """
    module, _, name = env_id.rpartition(":")
    if name not in gymnasium.registry:
        if module:
            raise EvaluationError(
                f"Environment '{env_id}' is of a module that is not imported, since only a file"
                " names it: if you trust it, name it yourself (evaluate, collect and online:"
                f" --env {env_id}; fit: --data.init_args.env_id {env_id})."
            )
        # The package only registers ids here; the simulator is loaded when one is made.
        with contextlib.suppress(ImportError):
            importlib.import_module("pybullet_envs_gymnasium")
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError) as error:
        raise EvaluationError(
            f"There is no environment '{env_id}'.{nearest(env_id, gymnasium.registry)}"
            " Give the id of an installed gymnasium environment, or MODULE:ID for one of your own."
        ) from error


def step_limit(env: gymnasium.Env) -> int | None:
    """Return the number of steps after which an environment is truncated, if anything limits it."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            return layer._max_episode_steps
        layer = layer.env
    return None


def require_step_limit(env: gymnasium.Env, env_id: str) -> int:
    """Return the step limit of an environment, without which an episode may never end.

    Raises:
        EvaluationError: it has none.
    """
    limit = step_limit(env)
    if limit is None:
        raise EvaluationError(
            f"Environment '{env_id}' has no step limit, so its episodes may never end: give"
            " --max_episode_steps."
        )
    return limit


def make_env(
    env_id: str,
    *,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    render_size: tuple[int, int] | None = None,
    discrete: bool = False,
) -> gymnasium.Env:
    """Make a fresh environment with vectors as observations and actions.

    A fresh object an episode is what makes roll-outs reproducible: PyBullet's ant does not reset to
    the same state in a used one.

    Args:
        env_id: Id of the environment in gymnasium.
        max_episode_steps: Step limit; the registered one if None.
        render_mode: ``"rgb_array"`` for videos.
        render_size: (width, height) of its pictures in pixels, instead of the environment's own.
        discrete: Also accept an environment of discrete actions, which then takes them as
            `WholeActions`.

    Raises:
        EvaluationError: unknown id, missing package, an error of the environment's own, or spaces
            other than one-dimensional boxes; of its ``reset`` and ``step``, see ``StrictEnv``.
    """
    spec = find_spec(env_id)
    drawing = {} if render_mode is None else {"render_mode": render_mode}  # not all take one
    if drawing:
        _choose_gl()
    try:
        with without_chatter():
            env = gymnasium.make(
                spec,
                max_episode_steps=max_episode_steps,
                **drawing,
                disable_env_checker=True,  # it warns about others' environments at every episode
            )
    except (LitOffRLError, Interrupted):
        raise
    except (Exception, SystemExit) as error:
        first = first_line(error)
        if isinstance(error, gymnasium.error.Error | ImportError):
            ours = "mujoco" in first.lower()
            todo = f"run {install('mujoco')}" if ours else "install the package it needs"
        elif os.environ.get("MUJOCO_GL"):  # MuJoCo loads the OpenGL named there, with its errors
            todo = GL_ADVICE
        else:  # of its own code
            first, todo = reason(error, named=True) + place(error), "mend it"
        raise EvaluationError(f"Environment '{env_id}' cannot be made: {first}: {todo}.") from error
    if discrete and isinstance(env.action_space, gymnasium.spaces.Discrete):
        env = WholeActions(env)
    for role in ("observation", "action"):
        space = getattr(env, f"{role}_space")
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            env.close()
            raise EvaluationError(
                f"Environment '{env_id}' has the {role} space {space}; lit-offrl needs a"
                " one-dimensional Box: choose an environment with continuous vectors."
            )
    if render_size is not None:
        _set_render_size(env, render_size)
    return QuietStart(StrictEnv(env, env_id))


def box(space: gymnasium.Space) -> gymnasium.spaces.Box:
    """Return a space of an environment from :func:`make_env` as the box that it is."""
    assert isinstance(space, gymnasium.spaces.Box)
    return space


def _choose_gl() -> None:
    """Have MuJoCo draw without a window where there is no screen, unless the user chose."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not screen and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def _set_render_size(env: gymnasium.Env, size: tuple[int, int]) -> None:
    # No argument of gymnasium.make does this for all: PyBullet's and MuJoCo's differ.
    for prefix in ("_render_", ""):
        if hasattr(env.unwrapped, f"{prefix}width"):
            for name, pixels in zip(("width", "height"), size, strict=True):
                setattr(env.unwrapped, f"{prefix}{name}", pixels)
            return
    raise EvaluationError("This environment's pictures have one size: leave the size out.")
