"""Child processes that can all be stopped, one at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lit_offrl.common.user_code import import_words
from lit_offrl.tracking.store import redacted

PROGRAM = (sys.executable, "-m", "lit_offrl")
"""Begins each command; see ``program``."""
HELD = "another process works on it"
STOPPED = "interrupted"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
WATCH_SECONDS = 2.0
_STEPS = re.compile(r"(\d+)/(\d+) \[")
_TAIL_BYTES = 4096


def program() -> tuple[str, ...]:
    """Return the beginning of each command, with the modules that ``--import`` named for this
    process."""
    return (*PROGRAM, *import_words())


class Children:
    """Keeps the child processes that are running, so that all can be stopped."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may call stop within run
        self._running: list[subprocess.Popen[bytes]] = []
        self.stopping = False

    def run(
        self,
        argv: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        keep: int,
        stops: Callable[[], bool] | None = None,
    ) -> int | None:
        """Run a command to its end, and add its output to the log.

        It inherits the file descriptor ``keep``: the lock outlives a killed parent. ``stops`` is
        called every few seconds; once it returns True, SIGTERM is sent.

        Returns:
            The exit code, negative for a signal, or None after ``stop``.
        """
        with log.open("ab") as file:
            with self._lock:
                if self.stopping:
                    return None
                before = "\n" if file.tell() else ""  # a killed command has left its line open
                file.write(f"{before}$ {redacted(shlex.join(argv))}\n".encode())
                file.flush()
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[keep],
                    start_new_session=True,  # Ctrl-C reaches the parent, which passes it on once
                )
                self._running.append(process)
            try:
                while stops is not None:
                    try:
                        return process.wait(WATCH_SECONDS)
                    except subprocess.TimeoutExpired:
                        if stops():
                            process.terminate()
                            break
                return process.wait()
            finally:
                self._running.remove(process)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Begin nothing more, and send a signal to what runs: fit saves on SIGTERM."""
        self.stopping = True
        with self._lock:
            for process in list(self._running):
                with contextlib.suppress(ProcessLookupError):
                    if number == signal.SIGKILL:  # also what it has begun itself
                        os.killpg(process.pid, number)
                    else:
                        process.send_signal(number)

    def wait(self) -> None:
        """Wait until all have ended, leaving their exit codes to ``run``."""
        for process in list(self._running):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@contextlib.contextmanager
def folder_lock(folder: Path, name: str = ".lock") -> Iterator[int | None]:
    """Hold the lock of a folder, which is made; yield its descriptor, or None if it is held.

    The lock is the kernel's, on an open file that children inherit: while a fit lives whose parent
    was killed, the folder stays locked. (filelock keeps its descriptor to itself.) A file system
    without locks, such as some of NFS, lets everyone in. Each name of a file is a lock of its own.

    Raises:
        OSError: The folder or the file cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield descriptor
    finally:
        os.close(descriptor)


def steps_done(log: Path) -> str:
    """Return how far a fit's log is, ``1200/5500``; "" before its first step."""
    found = _STEPS.findall(_tail(log))
    return "/".join(found[-1]) if found else ""


def last_line(path: Path) -> str:
    """Return the last line of a log that is not blank."""
    lines = [line.strip() for line in re.split(r"[\r\n]", _tail(path))]
    return next((line[:300] for line in reversed(lines) if line), "(no output)")


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
