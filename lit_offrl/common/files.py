"""Files that are written whole or not at all, and what tells two of them apart.

A file is written beside its place, as ``.NAME.MACHINE.PID.part``, or by another thread than the
main one as ``.NAME.MACHINE.PID-THREAD.part``, and then moved. A process that is killed leaves that
part, and the next write to the folder removes it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_offrl.common.errors import FileError

SPARE_BYTES = 64 * 2**20
"""Bytes of a disk that are left free."""

_PART = re.compile(
    r"\.(?P<name>.+?)(\.(?P<machine>[0-9a-f]{12}))?\.(?P<pid>\d+)(-\d+)?\.part", re.DOTALL
)
_ABANDONED = 24 * 3600.0  # seconds: nobody writes for a day without a byte
_CLOCKS = 120.0  # seconds by which a file server's clock may differ from this machine's


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside ``path`` to write to, and move what is written there to ``path``.

    Missing folders are made, an existing file is replaced. If the block fails, what was there is
    there still, and nothing beside it. Whoever may read other new files may read this one, also
    where what writes it makes a file for its owner alone, as safetensors does.

    Raises:
        OSError: of the file system, for callers that have advice of their own.
    """
    _refuse_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = part_path(path)
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # what the umask leaves
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())  # before the rename, lest a crash leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def part_path(path: Path) -> Path:
    """Return where this thread writes a file or folder before it is moved to ``path``."""
    is_main = threading.current_thread() is threading.main_thread()
    writer = f"{os.getpid()}" if is_main else f"{os.getpid()}-{threading.get_native_id()}"
    return path.with_name(f".{path.name}.{_machine()}.{writer}.part")


def sweep(folder: Path) -> None:
    """Remove the parts that killed processes left in a folder; those being written stay.

    A part is left behind if its process, of this machine, has ended, or if the process of that
    number began after the part was last written. Of other machines' processes nothing is known:
    their parts, and those that name no machine, go when nothing has been written to them for a day.
    What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        with os.scandir(folder) as entries:
            parts = [Path(entry.path) for entry in entries if entry.name.endswith(".part")]
        for part in parts:
            with contextlib.suppress(OSError):  # moved or removed meanwhile
                if _left_behind(part):
                    shutil.rmtree(part) if part.is_dir() else part.unlink()


def _left_behind(part: Path) -> bool:
    found = _PART.fullmatch(part.name)
    if found is None:
        return False
    places = [part, *part.iterdir()] if part.is_dir() and not part.is_symlink() else [part]
    written = max(place.lstat().st_mtime for place in places)
    if found["machine"] != _machine():
        return time.time() - written > _ABANDONED
    begun = _begun(int(found["pid"]))
    return begun is None or begun > written + _CLOCKS


def _begun(pid: int) -> float | None:
    """Return when a process began, as time since the epoch; None where there is none.

    Where the system does not tell, a process that exists has always been there.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        ticks = int(fields[19])  # the 22nd of all, in clock ticks since the system's start
    except (OSError, ValueError, IndexError):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except OSError:
            pass  # it is another user's
        return 0.0
    if fields[0] in "ZX":  # killed, and not yet waited for
        return None
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


@functools.cache
def _machine() -> str:
    """Return what tells apart the machines, and the containers, whose process numbers differ."""
    facts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            facts.append(read())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def free_bytes(folder: Path) -> int:
    """Return how many bytes a folder's disk can still take, with ``SPARE_BYTES`` left free."""
    return max(shutil.disk_usage(folder).free - SPARE_BYTES, 0)


@contextmanager
def refusals(path: Path, done: str = "written") -> Iterator[None]:
    """Say in a line what the file system refuses within the block.

    Raises:
        FileError: instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise FileError(f"{path}: cannot be {done} ({why}): choose another place.") from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, with an error of one line.

    Raises:
        FileError: it cannot be written.
    """
    with refusals(path), replacing(path) as temporary:
        yield temporary


def make_folder(path: Path) -> None:
    """Make a folder, or sweep it, before the work whose outcome goes into it.

    Raises:
        FileError: it cannot be made.
    """
    with refusals(path, "made"):
        path.mkdir(parents=True, exist_ok=True)
        sweep(path)


@contextmanager
def replacing_files(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Give a place to write files to, and move them to ``folder`` once all of them are there.

    The folder is made. If the block fails, what was there is there still, and nothing beside it.

    Args:
        folder: The folder.
        names: Names of all files that the block may write. Those that it does not write are removed
            from the folder, so that it has no files of two outcomes; other files stay.

    Raises:
        FileError: The folder cannot be made, or a file cannot be moved.
    """
    is_new = not folder.exists()
    make_folder(folder)
    part = part_path(folder / "files")
    try:
        with refusals(folder):
            part.mkdir()
        yield part
        for name in names:
            with refusals(folder / name):
                if (part / name).exists():
                    (part / name).replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
        is_new = False
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # another process has written there meanwhile
                folder.rmdir()


def require_writable(path: Path) -> None:
    """See that a file can be written, before the work whose outcome it is to have.

    Missing folders are made.

    Raises:
        FileError: it cannot be written.
    """
    with refusals(path):
        _refuse_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def require_replaceable(
    path: Path, kind: str, is_own: Callable[[Path], bool], others: Iterable[Path | None] = ()
) -> None:
    """See that a file can be written, and that at most an earlier output of its kind is lost.

    Args:
        path: The file. Missing folders are made.
        kind: What it is to be, for the message, such as ``evaluation record``.
        is_own: Whether an existing file is an output of that kind. An empty file always may go.
        others: Files that the command reads, or writes besides; None stands for no file.

    Raises:
        FileError: It is one of the others, is there and is of another kind, or cannot be written.
    """
    require_writable(path)
    if path.resolve() in [other.resolve() for other in others if other is not None]:
        raise FileError(
            f"{path}: is another file of this command, which would be lost: choose another place."
        )
    if path.exists() and path.stat().st_size and not is_own(path):
        raise FileError(
            f"{path}: is there already and is no earlier {kind}: choose another place, or remove it"
            " if you do not need it."
        )


def begins(path: Path, start: bytes) -> bool:
    """Whether a file can be read and begins with some bytes."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(start)) == start
    except OSError:
        return False


def is_json_with(path: Path, names: Iterable[str]) -> bool:
    """Whether a file is a JSON mapping that has some names, as a record of the library has."""
    try:
        return begins(path, b"{") and json.loads(path.read_text()).keys() >= set(names)
    except (OSError, ValueError):
        return False


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file, text as UTF-8, whole or not at all; missing folders are made.

    Raises:
        FileError: it cannot be written; what was there is there still.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shown(path: str | Path) -> str:
    """Return a path as a command of this working directory would give it."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
