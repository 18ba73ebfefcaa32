"""Ways out of an HDF5 file: links to other files, and arrays whose values lie in other files.

A file may name any other on the disk, so that what is read of it depends on that one too, and what
is private there comes out as data. Symbolic links within a file may lead on to such a link.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from lit_offrl.common.errors import DatasetError


def refuse_ways_out(path: Path, where: str) -> None:
    """Refuse a file that has one, wherever in it; of groups without end each is looked at once.

    Args:
        path: of the file.
        where: what messages begin with.

    Raises:
        DatasetError: naming the link or the array; or the file cannot be gone through.
    """
    found: list[str] = []

    def link(name: bytes, info: Any) -> bool | None:
        if info.type == h5py.h5l.TYPE_HARD:
            return None
        found.append(f"'{name.decode(errors='replace')}' is a link, which is not followed")
        return True  # enough

    def array(name: str, node: object) -> str | None:
        if isinstance(node, h5py.Dataset) and is_elsewhere(node):
            return f"'{name}' keeps its values in another file, which is not followed"
        return None

    try:
        with h5py.File(path, "r") as file:
            file.id.links.visit(link, info=True)
            said = found[0] if found else file.visititems(array)
    except (OSError, RuntimeError, KeyError):
        return  # it cannot be read at all, as its reader says
    if said is not None:
        raise DatasetError(f"{where}: {said}: write a file that holds the values itself.")


def is_elsewhere(column: h5py.Dataset) -> bool:
    """Whether an array's values lie in another file, or are put together from other arrays."""
    return bool(column.is_virtual or column.external)
