"""Columns that may be larger than memory while they are made: written in blocks, then mapped."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.files import free_bytes


def scratch(
    blocks: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, folder: Path | None
) -> np.ndarray:
    """Write blocks of rows to a nameless file and return it mapped; it goes when the array goes.

    Args:
        blocks: Rows, in order.
        shape: Shape of all of them.
        dtype: What they are converted to.
        folder: On whose disk the file is; None for that of temporary files.

    Raises:
        DatasetError: The disk cannot take it.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder
    needed, free = dtype.itemsize * math.prod(shape), free_bytes(place)
    said = f"{place}: a column takes {needed / 1e9:.2f} GB"
    if needed > free:
        raise DatasetError(
            f"{said}, and the disk has {free / 1e9:.2f} GB left: name another folder with "
            "cache_dir, or TMPDIR without a cache."
        )
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            for block in blocks:
                with np.errstate(over="ignore"):  # too large for float32: refused as infinite
                    file.write(np.ascontiguousarray(block, dtype).data.cast("B"))
            file.flush()
            return np.asarray(np.memmap(file, dtype, "r", shape=shape))
    except OSError as error:
        raise DatasetError(f"{said}, which cannot be written ({error.strerror}).") from None
