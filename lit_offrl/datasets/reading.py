"""``Reading``: how a dataset is read, wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.hdf5 import Format


@dataclass(frozen=True)
class Reading:
    """How a dataset is read, wherever it comes from.

    Attributes:
        format: Layout of an HDF5 file, see ``read_hdf5``.
        env_id: Id of the environment in gymnasium, if the file does not name it or names a wrong
            one.
        sparse_windows: Whether an episode ends with its first rewarded row, see
            ``d4rl.fix_conventions``.
        accept_faults: Whether data that the catalogue refuses are read all the same.
        cache: Where columns are kept between starts; None reads the file at each start.
    """

    format: Format = "auto"
    env_id: str | None = None
    sparse_windows: bool = False
    accept_faults: bool = False
    cache: ColumnCache | None = None


DEFAULT_READING = Reading()
