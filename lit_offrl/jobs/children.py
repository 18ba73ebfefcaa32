"""Processes that can all be stopped, one at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lit_offrl.common import signals
from lit_offrl.common.files import write_whole
from lit_offrl.common.finished import why_unfinished
from lit_offrl.common.user_code import import_words
from lit_offrl.jobs.files import last_line
from lit_offrl.tracking.store import redacted

PROGRAM = (sys.executable, "-m", "lit_offrl")
"""Begins each command; see ``program``."""
HELD = "another process works on it"
STOPPED = "interrupted"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def program() -> tuple[str, ...]:
    """Return what begins each command, with the modules that this one was told to import."""
    return (*PROGRAM, *import_words())


class Children:
    """Processes that were begun, so that all can be stopped."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may call stop within run
        self._running: list[subprocess.Popen[bytes]] = []
        self.stopping = False

    def run(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str], keep: int
    ) -> int | None:
        """Run a command to its end; its output is added to the log.

        Args:
            words: the command.
            log: a file.
            environment: of the process.
            keep: a file descriptor that it inherits: the lock outlives a killed parent.

        Returns:
            the exit code, negative for a signal, or None if all is to stop.
        """
        with log.open("ab") as file:
            with self._lock:
                if self.stopping:
                    return None
                before = "\n" if file.tell() else ""  # a killed command has left its line open
                file.write(f"{before}$ {redacted(shlex.join(words))}\n".encode())
                file.flush()
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[keep],
                    start_new_session=True,  # Ctrl-C reaches this process, which then asks once
                )
                self._running.append(process)
            try:
                return process.wait()
            finally:
                self._running.remove(process)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Begin nothing more, and send a signal: fit saves on SIGTERM."""
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
def alone(folder: Path, name: str = ".lock") -> Iterator[int | None]:
    """Hold a folder's lock; gives its file descriptor, or None where another process has it.

    A lock of the kernel's, on an open file that children inherit: while a fit lives whose parent
    was killed, the folder stays locked. (filelock keeps its descriptor to itself.) A file system
    that has no locks, as some of NFS, lets everyone in.

    Args:
        folder: made if it is not there.
        name: of the file that is locked; each name is a lock of its own.

    Raises:
        OSError: the folder or the file cannot be made.
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


def run_job(
    children: Children,
    words: Sequence[str],
    *,
    program: Sequence[str],
    log: Path,
    failure: Path,
    environment: Mapping[str, str],
    lock: int,
    run: Path | None = None,
) -> str:
    """Run a command to its end; return "" if it succeeded, else why not, in a line.

    Args:
        children: where the process is kept.
        words: a verb and its options.
        program: begins the command.
        log: its output is added to.
        failure: written where the command ends with an error of its own.
        environment: of the process.
        lock: what it keeps open.
        run: the folder of a fit, which has to say that the fit is finished: the exit code alone
            does not tell a whole training from one that was cut short.
    """
    code = children.run([*program, *words], log, environment, lock)
    if code == 0:
        return "" if run is None else why_unfinished(run)
    if code is None or children.stopping or code in signals.EXIT_CODES:
        return STOPPED
    verb = words[0]
    if code < 0:  # nobody's mistake that is known: the same command goes on
        return f"{verb} was killed by {signal.Signals(-code).name}"
    line = last_line(log)
    write_whole(failure, json.dumps({"verb": verb, "code": code, "line": line}) + "\n")
    return f"{verb} ended with {code}: {line}"
