"""Work on one cell: fit, then evaluate, each a process of its own, under the cell's lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_offrl.errors import LitOffRLError
from lit_offrl.mlflow_store import SQLITE
from lit_offrl.sweeps.cell import CELL_TAG, CellFolder, State, last_line, write_whole

_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
HELD = "another process works on it"


@dataclass(frozen=True)
class Choices:
    """What to do with cells that a sweep does not go on with by itself.

    Attributes:
        retry_failed: try them again.
        rerun_changed: begin anew those whose definition has changed.
    """

    retry_failed: bool = False
    rerun_changed: bool = False

    def leaves_alone(self, state: State) -> bool:
        """Whether a cell in this state has nothing to be done."""
        return (
            state == State.DONE
            or (state == State.FAILED and not self.retry_failed)
            or (state == State.CHANGED and not self.rerun_changed)
        )


class Children:
    """The processes that were begun for cells, so that all can be stopped."""

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
                file.write(f"{before}$ {shlex.join(words)}\n".encode())
                file.flush()
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[keep],
                    start_new_session=True,  # Ctrl-C reaches the sweep alone, which then asks once
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
def alone(folder: Path) -> Iterator[int | None]:
    """Hold a cell's lock; gives its file descriptor, or None where another process has it.

    A lock of the kernel's, on an open file that children inherit: while a fit lives whose sweep was
    killed, the cell stays locked. (filelock keeps its descriptor to itself.)
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def work_on(
    folder: CellFolder,
    choices: Choices,
    children: Children,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Bring a cell to its end, from wherever it is.

    Args:
        folder: of the cell.
        choices: what to do with failed and changed ones.
        children: where its processes are kept.
        environment: of its processes, beside this one's.

    Returns:
        "" once it is done, else why it is not, in a line.
    """
    variables = {"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})}
    try:
        with alone(folder.path) as lock:
            if lock is None:
                return HELD
            state = folder.state()
            if state == State.DONE:
                return ""
            if choices.leaves_alone(state):
                return folder.reason() if state == State.FAILED else f"{state}: {folder.change()}"
            if state == State.CHANGED:
                _set_aside(folder)
            folder.failure.unlink(missing_ok=True)
            why = "" if folder.trained.is_file() else _fit(folder, children, variables, lock)
            return why or _evaluate(folder, children, variables, lock)
    except (LitOffRLError, OSError) as error:
        return " ".join(str(error).split())


def _fit(folder: CellFolder, children: Children, environment: Mapping[str, str], lock: int) -> str:
    stored = folder.stored()
    if stored is None:
        folder.begin()
        stored = folder.stored()
        assert stored is not None
    resume = folder.checkpoint.is_file()
    if not resume and folder.log("fit").exists():  # killed before there was anything to go on from
        _forget_runs(folder.tracking_uri, folder.sweep, stored["id"])
        shutil.rmtree(folder.run, ignore_errors=True)
    why = _run(folder, folder.fit(id=stored["id"], resume=resume), children, environment, lock)
    if not why:
        folder.trained.touch()
    return why


def _evaluate(
    folder: CellFolder, children: Children, environment: Mapping[str, str], lock: int
) -> str:
    why = _run(folder, folder.evaluation(), children, environment, lock)
    if not why:
        folder.draft.replace(folder.record)
        folder.draft.parent.rmdir()
    return why


def _run(
    folder: CellFolder,
    words: Sequence[str],
    children: Children,
    environment: Mapping[str, str],
    lock: int,
) -> str:
    verb, log = words[0], folder.log(words[0])
    code = children.run([*folder.program, *words], log, environment, lock)
    if code == 0:
        return ""
    if code is None or children.stopping or code in _INTERRUPTED:
        return "interrupted"
    if code < 0:  # nobody's mistake that is known: the next sweep goes on
        return f"{verb} was killed by {signal.Signals(-code).name}"
    failure = {"verb": verb, "code": code, "line": last_line(log)}
    write_whole(folder.failure, json.dumps(failure) + "\n")
    return folder.reason()


def _set_aside(folder: CellFolder) -> None:
    """Put away what another definition has made; a training that has not changed is kept."""
    stored = folder.stored()
    assert stored is not None
    change = folder.change()
    before, after = stored["definition"], folder.definition()
    number = 1
    while (aside := folder.path.with_name(f"{folder.path.name}.before-{number}")).exists():
        number += 1
    aside.mkdir()
    for name in ("evaluation.json", "evaluate.log", "failed.json"):
        with contextlib.suppress(FileNotFoundError):
            (folder.path / name).replace(aside / name)
    if {**before, "evaluate": None} == {**after, "evaluate": None}:
        folder.begin(stored["id"])
    else:
        _forget_runs(before["tracking_uri"], before["experiment"], stored["id"])
        for name in ("trained", "fit", "fit.log", "cell.json"):
            with contextlib.suppress(FileNotFoundError):
                (folder.path / name).replace(aside / name)
    with folder.log("changes").open("a") as file:
        file.write(f"{change}; what was there before is in {aside}\n")


def _forget_runs(tracking_uri: str, experiment: str, id: str) -> None:
    """Delete the MLflow runs of a cell, which `mlflow` can restore: they would count twice."""
    database = Path(tracking_uri.removeprefix(SQLITE))
    if tracking_uri.startswith(SQLITE) and not database.is_file():
        return  # MLflow would make an empty one
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    from mlflow.exceptions import MlflowException  # seconds to import, and seldom needed
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            where = f"tags.`{CELL_TAG}` = '{id}'"
            for run in client.search_runs([found.experiment_id], filter_string=where):
                client.delete_run(run.info.run_id)
    except MlflowException as error:
        raise LitOffRLError(f"MLflow at {tracking_uri} refuses: {str(error)[:200]}") from error
