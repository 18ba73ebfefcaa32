"""Features of a LeRobot dataset's pictures: a user's function of frames, run once and stored.

    frames: {observation.images.top: my_robot.features}      def features(frames): ...

The function takes frames (B, height, width, 3) of bytes, RGB, and returns numbers (B, k). They are
kept beside the cached columns by the data's hash and the function's name and source, and are put
behind the observation, as LDCQ puts its encoder's means in place of pictures.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, install, reason
from lit_offrl.datasets.cache import ColumnCache, folder_sha256
from lit_offrl.datasets.lerobot_columns import Columns
from lit_offrl.datasets.lerobot_folder import AGAIN, LeRobotFolder
from lit_offrl.datasets.stored import fetch_array

_CHUNK = 256  # frames that the function is given at once


class FrameFeatures:
    """What a function makes of one picture's frames.

    Args:
        folder: The dataset's metadata.
        key: Feature of images or of videos.
        function: The function's name, ``module.function``.

    Raises:
        ConfigError: There is no such function.
    """

    def __init__(self, folder: LeRobotFolder, key: str, function: str) -> None:
        self._folder, self._feature, self._name = folder, folder.features[key], function
        self._function = _imported(function)
        self.episodes = folder.read_episodes(*self._columns)

    @property
    def text(self) -> str:
        """What it is, for people."""
        return f"{self._name}({self._feature.name}) ({self.size})"

    @cached_property
    def size(self) -> int:
        """How many numbers the function gives of a frame, found out with the first one."""
        first = next(self._frames(0, 1), None)
        if first is None:
            raise DatasetError(
                f"{self._folder.root}: '{self._feature.name}' has no frame: {AGAIN}."
            )
        return self._values(first[None]).shape[1]

    def facts(self) -> dict[str, str]:
        """Return what tells these features from others of the same data."""
        try:
            source = inspect.getsource(self._function)
        except (OSError, TypeError):
            source = self._name  # of no file
        digest = hashlib.sha256(source.encode()).hexdigest()
        return {"key": self._feature.name, "function": self._name, "source": digest}

    def files(self) -> list[Path]:
        """Return the videos' files; images are in those of the data."""
        return [path for path, _ in self._videos()] if self._feature.dtype == "video" else []

    def fetch(self, rows: int, cache: ColumnCache | None) -> np.ndarray:
        """Return the features (N, k), float32, of all rows; what is stored is not made again.

        Raises:
            ConfigError: There is no cache to store them in.
            DatasetError: A frame cannot be decoded, or the function fails or gives no numbers.
        """
        if cache is None:
            raise ConfigError(
                f"{self._folder.root}: features of frames are stored in the cache: set cache to "
                "true, or leave the option frames out."
            )
        files = [*(path for path, _ in self.episodes.files), *self.files()]
        digest = folder_sha256(self._folder.root, files, cache)

        def make(chunk: int) -> Iterator[np.ndarray]:
            frames = self._frames(chunk * _CHUNK, rows)
            while block := list(islice(frames, _CHUNK)):
                yield self._values(np.stack(block))

        found = fetch_array(
            cache.folder / "frames", "features", {"sha256": digest, **self.facts()},
            (rows, self.size), np.float32, _CHUNK, make,
            "name another folder with cache_dir.",
        )  # fmt: skip
        assert found is not None  # nothing stops it
        return found

    # ---- inside --------------------------------------------------------------------------------

    @property
    def _columns(self) -> tuple[str, ...]:
        if self._feature.dtype != "video":
            return ()
        key = self._feature.name
        return f"videos/{key}/chunk_index", f"videos/{key}/file_index"

    def _values(self, frames: np.ndarray) -> np.ndarray:
        try:
            values = np.asarray(self._function(frames), dtype=np.float32)
        except Exception as error:  # the user's
            said = reason(error, 120, named=True)
            raise ConfigError(
                f"frames: {self._name} fails on frames {frames.shape} ({said})."
            ) from error
        if values.ndim != 2 or len(values) != len(frames) or not np.isfinite(values).all():
            raise ConfigError(
                f"frames: {self._name} gives an array {values.shape} of frames {frames.shape}, "
                f"where finite numbers ({len(frames)}, k) are needed."
            )
        return values

    def _frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield frames (height, width, 3) of rows ``start`` to ``stop``."""
        made = self._of_videos() if self._feature.dtype == "video" else self._of_images()
        shape = self._feature.shape
        expected = shape if shape[-1:] == (3,) else (*shape[1:], shape[0]) if shape else ()
        for frame in islice(made, start, stop):
            if frame.shape != expected:
                raise DatasetError(
                    f"{self._folder.root}: a frame of '{self._feature.name}' has shape "
                    f"{frame.shape}, where meta/info.json says {shape}: {AGAIN}."
                )
            yield frame

    def _of_images(self) -> Iterator[np.ndarray]:
        from PIL import Image

        key, columns = self._feature.name, Columns(self.episodes, str(self._folder.root))
        row = 0
        for column in columns.raw(key, _CHUNK):
            for value in column:
                try:
                    with Image.open(io.BytesIO(value["bytes"].as_py())) as image:
                        height, width = self._height_width()
                        if image.size != (width, height):  # before it is decoded
                            raise ValueError(f"{image.size[1]} × {image.size[0]} pixels")
                        yield np.asarray(image.convert("RGB"))
                except Exception as error:  # Pillow's, Arrow's of other types
                    raise DatasetError(
                        f"{self._folder.root}: column '{key}' has no image of its shape in row "
                        f"{row:,} ({reason(error, 120)}): {AGAIN}."
                    ) from None
                row += 1

    def _height_width(self) -> tuple[int, int]:
        shape = self._feature.shape
        first = 0 if shape[-1:] == (3,) else 1
        return shape[first], shape[first + 1]

    def _videos(self) -> list[tuple[Path, int]]:
        """Return the videos' files in the order of episodes, each with its number of frames."""
        key, found = self._feature.name, list[tuple[Path, int]]()
        numbers = [self.episodes.table[name].tolist() for name in self._columns]
        for chunk, file, length in zip(*numbers, self.episodes.lengths.tolist(), strict=True):
            path = self._folder.video_file(key, chunk, file)
            if found and found[-1][0] == path:
                length += found.pop()[1]
            found.append((path, length))
        return found

    def _of_videos(self) -> Iterator[np.ndarray]:
        try:
            av: Any = importlib.import_module("av")
        except ImportError:
            raise ConfigError(
                f"{self._folder.root}: videos are decoded by the package av: run "
                f"{install('lerobot')}."
            ) from None
        for path, frames in self._videos():
            count = 0
            try:
                with av.open(str(path)) as container:
                    for frame in container.decode(video=0):
                        count += 1
                        if count <= frames:
                            yield frame.to_ndarray(format="rgb24")
            except (OSError, ValueError, av.error.FFmpegError) as error:
                said = reason(error, 120)
                raise DatasetError(f"{path}: cannot be decoded ({said}): {AGAIN}.") from None
            if count != frames:
                raise DatasetError(
                    f"{path}: has {count:,} frames, and by 'length' of meta/episodes its episodes "
                    f"have {frames:,}: {AGAIN}."
                )


def _imported(name: str) -> Callable[[np.ndarray], Any]:
    module, _, function = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module raises
        said = reason(error, 120, named=True)
        raise ConfigError(f"frames: no function '{name}' can be imported ({said}).") from None
    if not callable(found):
        raise ConfigError(f"frames: '{name}' is no function of frames.")
    return found
