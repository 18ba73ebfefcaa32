"""Work on one cell: fit, then evaluate, each a process of its own, under the cell's lock."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_offrl.common.errors import LitOffRLError
from lit_offrl.jobs.children import HELD, Children, alone, run_job
from lit_offrl.jobs.mlflow_runs import forget_runs
from lit_offrl.pipelines.work import work_through
from lit_offrl.sweeps.cell import CellFolder, State
from lit_offrl.sweeps.staged import StagedCell
from lit_offrl.tracking.store import is_own


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
            stored = folder.stored()
            if stored is None:
                folder.begin()
                stored = folder.stored()
                assert stored is not None
            id = stored["id"]
            if isinstance(folder, StagedCell):
                why = _stages(folder, children, environment, choices.retry_failed)
            elif not folder.is_trained():
                why = _fit(folder, children, variables, lock, id)
            else:
                why = ""
            if why or folder.evaluate is None:
                return why
            return _evaluate(folder, children, variables, lock, id)
    except (LitOffRLError, OSError) as error:
        return " ".join(str(error).split())


def _stages(
    folder: StagedCell,
    children: Children,
    environment: Mapping[str, str] | None,
    retry_failed: bool,
) -> str:
    why = work_through(folder.stages, children, environment=environment, retry_failed=retry_failed)
    if not why:
        folder.trained.touch()
    return why


def _fit(
    folder: CellFolder, children: Children, environment: Mapping[str, str], lock: int, id: str
) -> str:
    resume = folder.checkpoint.is_file()
    if not resume and folder.log("fit").exists():  # killed before there was anything to go on from
        forget_runs(folder.tracking_uri, folder.sweep, id)
        shutil.rmtree(folder.run, ignore_errors=True)
    why = _run(folder, folder.fit(id=id, resume=resume), children, environment, lock)
    if not why:
        folder.trained.touch()
    return why


def _evaluate(
    folder: CellFolder, children: Children, environment: Mapping[str, str], lock: int, id: str
) -> str:
    if isinstance(folder, StagedCell) and folder.log("evaluate").exists():
        forget_runs(folder.tracking_uri, folder.sweep, id)
    why = _run(folder, folder.evaluation(id), children, environment, lock)
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
    parts = folder.parts(words[0])
    parts.begin()
    try:
        return run_job(
            children,
            words,
            program=folder.program,
            log=folder.log(words[0]),
            failure=folder.failure,
            environment=environment,
            lock=lock,
            run=folder.run if words[0] == "fit" else None,
        )
    finally:
        parts.end()


def _set_aside(folder: CellFolder) -> None:
    """Put away what another definition has made; a training that has not changed is kept."""
    stored = folder.stored()
    assert stored is not None
    change = folder.change()
    before, after = folder.definitions()
    number = 1
    while (aside := folder.path.with_name(f"{folder.path.name}.before-{number}")).exists():
        number += 1
    aside.mkdir()
    for name in ("evaluation.json", "evaluate.log", "evaluate-parts.json", "failed.json"):
        with contextlib.suppress(FileNotFoundError):
            (folder.path / name).replace(aside / name)
    same_training = {**before, "evaluate": None} == {**after, "evaluate": None}
    ours = is_own(before["tracking_uri"], folder.tracking_uri)  # else they count in no table here
    if ours and (isinstance(folder, StagedCell) or not same_training):  # the runs are of what goes
        forget_runs(folder.tracking_uri, before["experiment"], stored["id"])
    if same_training:
        folder.begin(stored["id"])
    else:
        for name in ("trained", "fit", "fit.log", "fit-parts.json", "cell.json"):
            with contextlib.suppress(FileNotFoundError):
                (folder.path / name).replace(aside / name)
    with folder.log("changes").open("a") as file:
        file.write(f"{change}; what was there before is in {aside}\n")
