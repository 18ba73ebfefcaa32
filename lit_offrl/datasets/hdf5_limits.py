"""What of an HDF5 file is not read: more than the memory holds, unknown compressions, ways out.

All is decided from headers only. A file of two kilobytes may promise 2³¹ rows of which none was
ever written, and reading fills them in. And it may name any other file on the disk, by links or as
the place of an array's values, so that what is private there comes out as data. Symbolic links
within a file may lead on to such a link.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from lit_offrl.common.errors import DatasetError

_PLUGIN = "hdf5plugin"  # brings the filters below; h5py has gzip, LZF and mostly szip itself
_PLUGIN_FILTERS = {
    307: "bzip2",
    32001: "Blosc",
    32004: "LZ4",
    32008: "Bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}
_OTHER_FILTERS = {4: "szip", 305: "LZO", 32000: "LZF", 32012: "JPEG-LS", 32019: "JPEG"}

_SMALL = 2**30  # bytes up to which a file may promise whatever it likes
_RATIO = 2000  # gzip makes data smaller by a factor of 1,032 at best


def require_memory(sizes: Mapping[str, int], where: str) -> None:
    """Raise DatasetError, before anything is read, if the memory cannot hold these bytes."""
    needed, free = sum(sizes.values()), available_memory()
    # Asked for and not left to fail: Linux hands out memory that it does not have.
    if needed > free:
        raise DatasetError(
            f"{where}: does not fit into memory: {_gigabytes(needed)} ({_listed(sizes)}) are "
            f"needed and {_gigabytes(free)} are available: use a machine with more memory, or "
            "fewer rows."
        )


def refuse_unwritten(sizes: Mapping[str, int], file_size: int, where: str) -> None:
    """Raise DatasetError for a file that promises far more than it can hold, mostly never written.

    ``sizes`` are the bytes of each column before compression.
    """
    if sum(sizes.values()) > max(_SMALL, _RATIO * file_size):
        require_memory(sizes, where)
        raise DatasetError(
            f"{where}: promises {_gigabytes(sum(sizes.values()))} ({_listed(sizes)}) in "
            f"{file_size:,} bytes, so that nearly all of its values were never written: write the "
            "file again, with as many rows as there are values."
        )


def available_memory() -> int:
    """Return the bytes that can be had without swapping, of the machine or of the job's share."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        stated = next((line for line in lines if line.startswith("MemAvailable:")), "")
        found.append(int(stated.split()[1]) * 1024)
    for limit in _control_group_limits():
        with contextlib.suppress(OSError, ValueError):  # `max`, where there is none
            found.append(int(limit.read_text()))
    return min(found)


def _control_group_limits() -> list[Path]:
    """Return the files with the limits of this process's control groups, versions 1 and 2."""
    root, limits = Path("/sys/fs/cgroup"), []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers in ("", "memory"):
                top = root / controllers
                name = "memory.limit_in_bytes" if controllers else "memory.max"
                group = top / place.lstrip("/")
                limits += [folder / name for folder in (group, *group.parents, top)]
    return [path for path in limits if path.is_relative_to(root)]


def load_plugin() -> None:
    """Load the compressions of ``hdf5plugin``, where it is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module(_PLUGIN)


def say_missing(column: h5py.Dataset, name: str, where: str) -> str | None:
    """Return what to say of a column whose compression is not installed; None where it is.

    Those that an installed ``hdf5plugin`` brings are loaded and so not missing.
    """
    if _unavailable(column):
        load_plugin()
    codes = _unavailable(column)
    if not codes:
        return None
    known = _PLUGIN_FILTERS | _OTHER_FILTERS
    missing = [f"{known.get(code) or name or 'unknown'} (filter {code})" for code, name in codes]
    installable = all(code in _PLUGIN_FILTERS for code, _ in codes)
    todo = f"run `pip install {_PLUGIN}`" if installable else "write it again with gzip"
    return (
        f"{where}: '{name}' is compressed with {' and '.join(missing)}, which is not installed "
        f"here: {todo}."
    )


def refuse_missing_filters(path: Path, where: str) -> None:
    """Raise DatasetError for the first array in a file whose compression is not installed."""

    def look(name: str, node: object) -> str | None:
        return say_missing(node, name, where) if isinstance(node, h5py.Dataset) else None

    with h5py.File(path, "r") as file:
        said = file.visititems(look)
    if said is not None:
        raise DatasetError(said)


def _unavailable(column: h5py.Dataset) -> list[tuple[int, str]]:
    """Return code and stated name of each filter that HDF5 does not have."""
    settings = column.id.get_create_plist()
    filters = [settings.get_filter(place) for place in range(settings.get_nfilters())]
    return [
        (code, name.decode(errors="replace"))
        for code, _, _, name in filters
        if not h5py.h5z.filter_avail(code)
    ]


def refuse_ways_out(path: Path, where: str) -> int:
    """Return the bytes of a file's arrays before compression, if all of them are in it.

    Of groups without end each is looked at once. A file that cannot be gone through has no bytes:
    its reader says why.

    Raises:
        DatasetError: there is a link in it, or an array whose values lie in another file.
    """
    found: list[str] = []
    total = 0

    def link(name: bytes, info: Any) -> bool | None:
        if info.type == h5py.h5l.TYPE_HARD:
            return None
        found.append(f"'{name.decode(errors='replace')}' is a link, which is not followed")
        return True  # enough

    def array(name: str, node: object) -> str | None:
        nonlocal total
        if isinstance(node, h5py.Dataset) and is_elsewhere(node):
            return f"'{name}' keeps its values in another file, which is not followed"
        if isinstance(node, h5py.Dataset):
            count = node.id.get_space().get_simple_extent_npoints()
            total += count * node.id.get_type().get_size()
        return None

    try:
        with h5py.File(path, "r") as file:
            file.id.links.visit(link, info=True)
            said = found[0] if found else file.visititems(array)
    except (OSError, RuntimeError, KeyError):
        return 0
    if said is not None:
        raise DatasetError(f"{where}: {said}: write a file that holds the values itself.")
    return total


def is_elsewhere(column: h5py.Dataset) -> bool:
    """Whether an array's values lie in another file, or are put together from other arrays."""
    return bool(column.is_virtual or column.external)


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_gigabytes(size)}" for name, size in sizes.items())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
