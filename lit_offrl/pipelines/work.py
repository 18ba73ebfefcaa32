"""Work on steps: each a process of its own, under its folder's lock."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence

from lit_offrl.common.errors import LitOffRLError
from lit_offrl.jobs.children import HELD, STOPPED, Children, alone, run_job
from lit_offrl.jobs.mlflow_runs import forget_runs
from lit_offrl.pipelines.folders import StageFolder
from lit_offrl.pipelines.steps import INPUTS, State, StepFolder

_LOOK_SECONDS = 1.0
_CHANGES = "changes.log"
_KEPT = (".lock", _CHANGES)  # the lock is held


class Listener:
    """Is told what happens to steps; this one does nothing about it."""

    def begins(self, step: StepFolder, words: str) -> None:
        """A step is worked on from now; ``words`` say how: anew, from where, and why."""

    def waits(self, step: StepFolder) -> None:
        """Another process works on a step."""

    def ends(self, step: StepFolder, why: str) -> None:
        """A step is no longer worked on; ``why`` it is not done, or ""."""


def work_through(
    steps: Sequence[StepFolder],
    children: Children,
    listener: Listener | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    retry_failed: bool = True,
) -> str:
    """Bring steps to their ends, one after the other, from wherever they are.

    Where one fails, those that need its checkpoint are left alone and the others go on.

    Args:
        steps: in an order in which each comes after those whose checkpoints it takes.
        children: where processes are kept.
        listener: is told what happens.
        environment: of the processes, beside this one's.
        retry_failed: whether what has failed before is tried again.

    Returns:
        "" once all are done, else why the first is not, in a line.
    """
    variables = {"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})}
    listener = listener or Listener()
    failed: dict[str, str] = {}
    for step in steps:
        if any(source.name in failed for source in step.sources):
            source = next(source.name for source in step.sources if source.name in failed)
            failed[step.name] = f"{source} is not done"
            listener.ends(step, failed[step.name])
            continue
        why = _work(step, children, listener, variables, retry_failed)
        if why:
            failed[step.name] = why
        if children.stopping:
            break
    return "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:1])


def _work(
    step: StepFolder,
    children: Children,
    listener: Listener,
    environment: Mapping[str, str],
    retry_failed: bool,
) -> str:
    waited = False
    while not children.stopping:
        try:
            with alone(step.path) as lock:
                if lock is not None:
                    return _work_alone(step, children, listener, environment, lock, retry_failed)
        except (LitOffRLError, OSError) as error:
            why = " ".join(str(error).split())
            listener.ends(step, why)
            return why
        if not waited:
            listener.waits(step)
            waited = True
        time.sleep(_LOOK_SECONDS)
    return STOPPED if not waited else HELD


def _work_alone(
    step: StepFolder,
    children: Children,
    listener: Listener,
    environment: Mapping[str, str],
    lock: int,
    retry_failed: bool,
) -> str:
    state = step.state()
    if state == State.DONE:
        return ""
    if state == State.FAILED and not retry_failed:
        return step.reason()
    words = ""
    if state == State.CHANGED:
        words = f"again, since {step.change()}{_set_aside(step)}"
        with (step.path / _CHANGES).open("a") as file:
            file.write(f"{words}\n")
    step.failure.unlink(missing_ok=True)
    stored = step.stored()
    id = step.begin() if stored is None else stored["id"]
    known = stored is not None  # or else nobody says what a checkpoint was made from
    resume = known and isinstance(step, StageFolder) and step.checkpoint.is_file()
    if resume:
        words = f"goes on from {step.steps() or 'its checkpoint'}"
    elif step.log.exists():  # killed before there was anything to go on from
        _forget(step, id)
        if isinstance(step, StageFolder):
            shutil.rmtree(step.run, ignore_errors=True)
    listener.begins(step, words)
    step.parts.begin()
    try:
        why = run_job(
            children,
            step.words(id, anew=not resume),
            program=step.where.program,
            log=step.log,
            failure=step.failure,
            environment=environment,
            lock=lock,
            run=step.run if isinstance(step, StageFolder) else None,
        )
    finally:
        step.parts.end()
    if not why:
        step.finish()
    elif step.failure.is_file():
        why = step.reason()
    listener.ends(step, why)
    return why


def _set_aside(step: StepFolder) -> str:
    """Put away what other inputs have made, if it is worth anything; say where."""
    stored = step.stored()
    assert stored is not None
    _forget(step, stored["id"])
    entries = [entry for entry in step.path.iterdir() if entry.name not in _KEPT]
    # What all is made from goes last: killed in between, the rest must not count as other inputs'.
    entries.sort(key=lambda entry: entry.name == INPUTS)
    if not step.mark.is_file() and not (step.path / "fit" / "last.ckpt").is_file():
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return ""
    number = 1
    while (aside := step.path.with_name(f"{step.path.name}.before-{number}")).exists():
        number += 1
    aside.mkdir()
    for entry in entries:
        entry.replace(aside / entry.name)
    return f"; what was there is in {aside}"


def _forget(step: StepFolder, id: str) -> None:
    if step.where.tracking_uri is not None:
        forget_runs(step.where.tracking_uri, step.where.experiment, id)
