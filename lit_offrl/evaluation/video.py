"""An mp4 of an episode, written while it runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import numpy as np

from lit_offrl.common.errors import EvaluationError, first_line
from lit_offrl.envs.extras import GL_ADVICE

_MAX_FPS = 30  # pictures cost far more than steps: PyBullet renders about 30 a second on a CPU


class VideoWriter:
    """Takes pictures of an environment with ``render_mode="rgb_array"``; plays in real time.

    Args:
        path: Path of the ``.mp4`` file. Missing folders are made.
        env: The environment after its reset. Its first picture is taken at once.

    Raises:
        EvaluationError: the environment cannot draw here; the line says what to install.
    """

    def __init__(self, path: str | Path, env: gymnasium.Env) -> None:
        path, first = Path(path), _first_picture(env)
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = env.metadata.get("render_fps", _MAX_FPS)
        self._every = max(1, round(rate / _MAX_FPS))
        self._steps = 0
        # macro_block_size 2: the codec needs even sizes, and the default would rescale to 16s
        options: dict[str, Any] = {"fps": rate / self._every, "macro_block_size": 2}
        self._writer = imageio.get_writer(path, format="FFMPEG", codec="libx264", **options)
        self._writer.append_data(first)

    def add(self, env: gymnasium.Env) -> None:
        """Take a picture after a step, if it is time for one."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._writer.append_data(np.asarray(env.render()))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def _first_picture(env: gymnasium.Env) -> np.ndarray:
    """Draw once; what goes wrong then is a missing OpenGL or package, whatever its exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW's, of a missing screen
            return np.asarray(env.render())
    except Exception as error:
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        first = first_line(error)
        if isinstance(error, gymnasium.error.DependencyNotInstalled | ImportError):
            raise EvaluationError(f"{name} cannot be filmed: {first}.") from error
        raise EvaluationError(
            f"{name} cannot be filmed, as OpenGL does not work here ({first}): {GL_ADVICE}."
        ) from error
