"""An mp4 of an episode, written while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import numpy as np

_MAX_FPS = 30  # pictures cost far more than steps: PyBullet renders about 30 a second on a CPU


class VideoWriter:
    """Takes pictures of an environment with ``render_mode="rgb_array"``; plays in real time.

    Args:
        path: the ``.mp4``; folders are made.
        env: the environment, already reset; its first picture is taken at once.
    """

    def __init__(self, path: str | Path, env: gymnasium.Env) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = env.metadata.get("render_fps", _MAX_FPS)
        self._every = max(1, round(rate / _MAX_FPS))
        self._steps = 0
        # macro_block_size 2: the codec needs even sizes, and the default would rescale to 16s
        options: dict[str, Any] = {"fps": rate / self._every, "macro_block_size": 2}
        self._writer = imageio.get_writer(path, format="FFMPEG", codec="libx264", **options)
        self._writer.append_data(np.asarray(env.render()))

    def add(self, env: gymnasium.Env) -> None:
        """Take a picture after a step, if it is time for one."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._writer.append_data(np.asarray(env.render()))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
