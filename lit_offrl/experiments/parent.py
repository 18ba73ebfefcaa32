"""The MLflow run that a sweep's or a pipeline's runs are children of, so that the UI folds them.

    sweep NAME                     IQM and interval of each method on each dataset, and the table
     ├─ bc-hopper-seed0            a cell's run, with ``mlflow.parentRunId``
     └─ …

Its id stands in the experiment's folder, where every machine that works on it finds it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lit_offrl.common import signals
from lit_offrl.common.errors import LitOffRLError, first_line
from lit_offrl.common.files import make_folder, shown, write_whole
from lit_offrl.evaluation.comparison import ALL, Comparison, Estimate, compare
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.evaluation.runs import Run, make_run
from lit_offrl.evaluation.tables import markdown, write_files
from lit_offrl.experiments.job import CELL_TAG, Cell, State
from lit_offrl.tracking.outbox import Outbox, Point, metric_name, unsent_file
from lit_offrl.tracking.provenance import code_tags
from lit_offrl.tracking.results import add_to_run, inputs_of, results
from lit_offrl.tracking.runs import CHILDREN_TAG, PARENT_TAG, children, is_active
from lit_offrl.tracking.store import (
    experiment_id,
    open_client,
    redacted,
    refusals,
    store_lock,
)

if TYPE_CHECKING:
    from lit_offrl.experiments.sweep import Experiment

_FILE = "mlflow-parent.json"
_LOCK_SECONDS = 60.0


def begin_parent(experiment: Experiment, kind: str, command: str) -> None:
    """Find or make the parent, from which on jobs name it; say in a line where that cannot be.

    Runs that an earlier version, or one whose parent was deleted, has made become its children.

    Args:
        experiment: What is run.
        kind: ``sweep`` or ``pipeline``.
        command: The command line.
    """
    uri = experiment.uri
    assert uri is not None
    make_folder(experiment.output)
    file = experiment.output / _FILE
    try:
        with FileLock(f"{file}.lock", timeout=_LOCK_SECONDS), signals.held():
            client = open_client(uri)
            run_id = _stored(file, uri)
            if run_id is None or not is_active(client, uri, run_id):
                run_id = _make(client, experiment, uri, f"{kind} {experiment.name}", command)
                write_whole(file, json.dumps({"tracking_uri": redacted(uri), "run_id": run_id}))
                _adopt(client, run_id, experiment)
            with refusals(uri):
                client.update_run(run_id, status="RUNNING")
    except Exception as error:  # the jobs are worth more
        said = redacted(first_line(error))
        print(f"lit-offrl {kind}: its runs have no parent in MLflow: {said}", file=sys.stderr)
        return
    experiment.parent.run_id = run_id


def _stored(file: Path, uri: str) -> str | None:
    try:
        stored = json.loads(file.read_text())
        return str(stored["run_id"]) if stored["tracking_uri"] == redacted(uri) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(client: Any, experiment: Experiment, uri: str, name: str, command: str) -> str:
    with refusals(uri), store_lock(uri):
        place = experiment_id(client, uri, experiment.name)
        tags = {CHILDREN_TAG: name, **code_tags(redacted(command))}
        return str(client.create_run(place, run_name=name, tags=tags).info.run_id)


def _adopt(client: Any, run_id: str, experiment: Experiment) -> None:
    """Make the runs that jobs have made so far the parent's children."""
    stored = [job.stored() for cell in experiment.cells for job in cell.jobs]
    ids = {each["id"] for each in stored if each is not None}
    if not ids:
        return
    place = client.get_run(run_id).info.experiment_id
    where = f"tags.`{CELL_TAG}` LIKE '%'"
    for run in children(client, where, [place]):
        if run.data.tags[CELL_TAG] in ids:
            client.set_tag(run.info.run_id, PARENT_TAG, run_id)


def end_parent(experiment: Experiment, states: Sequence[State], stopped: bool) -> None:
    """Log the comparison of what is done to the parent, and how it ended.

    What cannot be sent is kept in the experiment's folder, from which ``lit-offrl mlflow sync``
    sends it.
    """
    run_id, uri = experiment.parent.run_id, experiment.uri
    if run_id is None or uri is None:
        return
    try:
        outbox = _summary(experiment)
    except LitOffRLError as error:
        print(f"{experiment.name}: no comparison in MLflow: {first_line(error)}", file=sys.stderr)
        outbox = Outbox()
    outbox.status = _status(states, stopped)
    outbox.ended = int(time.time() * 1000)
    outbox.save(experiment.output, run_id)
    try:
        client = open_client(uri)
        found = children(client, f"tags.`{PARENT_TAG}` = '{run_id}'")
        outbox.inputs = list(dict.fromkeys(data for run in found for data in inputs_of(run)))
        add_to_run(run_id, uri, outbox)
    except Exception as error:
        said = redacted(first_line(error))
        print(
            f"MLflow run {run_id} of all runs did not get the comparison ({said}): send it by "
            f"lit-offrl mlflow sync {shown(experiment.output)}",
            file=sys.stderr,
        )
        return
    unsent_file(experiment.output, run_id).unlink(missing_ok=True)
    print(f"MLflow run {run_id}: parent of all runs; lit-offrl compare {run_id}")


def _status(states: Sequence[State], stopped: bool) -> str | None:
    """Return how the parent has ended; None where others may be working on the rest."""
    if all(state == State.DONE for state in states):
        return "FINISHED"
    if stopped:
        return "KILLED"
    return "FAILED" if State.FAILED in states else None


def _summary(experiment: Experiment) -> Outbox:
    """Return IQMs with their intervals, and the table, of the cells with a record."""
    runs = [run for cell in experiment.cells if (run := _run(cell)) is not None]
    if not runs:
        return Outbox()
    comparison = compare(runs, allow_unequal=True, latest=True)
    folder = experiment.output / "comparison"
    make_folder(folder)
    outbox = results({}, write_files(comparison, (), folder), "comparison")
    stamp = int(time.time() * 1000)
    outbox.points = [
        Point(metric_name(name), value, len(runs), stamp)
        for name, value in iqms(comparison).items()
        if value == value  # not NaN: a single run has no interval
    ]
    outbox.note = markdown(comparison, ())
    return outbox


def _run(cell: Cell) -> Run | None:
    file = cell.target.folder / "evaluation.json"
    if cell.target.is_fit or not file.is_file():
        return None
    tags = cell.target.tracking.tags
    return make_run(EvaluationRecord.load(file), cell.name, tags, str(cell.target.training.seed))


def iqms(comparison: Comparison) -> dict[str, float]:
    """Return the IQM of each method on each dataset and its interval, by MLflow's names."""
    cells = {(dataset, method): cell.iqm for (dataset, method), cell in comparison.cells.items()}
    cells |= {(ALL, method): cell.iqm for method, cell in comparison.aggregates.items()}
    found: dict[str, float] = {}
    for (dataset, method), estimate in cells.items():
        unit: str = comparison.units.get(dataset, "score")
        found |= _named(unit, f"{dataset}/{method}", estimate)
    return found


def _named(unit: str, place: str, estimate: Estimate) -> Mapping[str, float]:
    return {
        f"{unit}_iqm/{place}": estimate.value,
        f"{unit}_iqm_low/{place}": estimate.low,
        f"{unit}_iqm_high/{place}": estimate.high,
    }
