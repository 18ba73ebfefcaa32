"""Adding what commands have made to the MLflow run, or the experiment, that it is about.

It goes the way that a fit's logs go: through an ``Outbox``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_offrl.common.errors import ConfigError, first_line
from lit_offrl.tracking.outbox import CONTEXT, Artifact, Input, LoggedModel, Outbox, Point
from lit_offrl.tracking.runs import FIGURES_TAG, TAG
from lit_offrl.tracking.sending import Delivery
from lit_offrl.tracking.store import open_client, redacted, sqlite_file, store_uri

TRAINED_BY = f"{TAG}trained_by"
"""Tag of an evaluation's own run: the id of the run that trained the checkpoint."""
FACTS = ("method", "dataset", "max_steps", "precision", "seed")
"""Tags of every training, to group runs by."""


class OwnRun(NamedTuple):
    """A run of its own for an evaluation, beside the training's."""

    name: str
    tags: Mapping[str, str]


def results(
    metrics: Mapping[str, float], files: Sequence[Path], folder: str, step: int = 0
) -> Outbox:
    """Return finite metrics of a step, and files for a folder of a run's, to be sent."""
    stamp = int(time.time() * 1000)
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return Outbox(
        points=[Point(name, value, step, stamp) for name, value in finite.items()],
        artifacts=[Artifact(str(file), folder) for file in files],
    )


def add_to_run(run_id: str, tracking_uri: str, outbox: Outbox) -> None:
    """Send an outbox to a run, whatever the run has already.

    Raises:
        ConfigError: The file of a SQLite store is not there; MLflow would make an empty one.
        Exception: Whatever MLflow, or its store's driver, throws.
    """
    _require_file(tracking_uri)
    delivery = Delivery(open_client(tracking_uri), tracking_uri, run_id, outbox, ask=False)
    delivery.send(lambda size: None, end=True)


def _require_file(tracking_uri: str) -> None:
    database = sqlite_file(tracking_uri)
    if database is not None and not database.is_file():
        raise ConfigError(f"{database} is not here")


def log_to_origin(
    origin: Mapping[str, str] | None,
    verb: str,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    *,
    step: int = 0,
    tracking_uri: str | None = None,
    run: OwnRun | None = None,
    note: str | None = None,
    model: LoggedModel | None = None,
) -> bool:
    """Add metrics and files to the training's run, if any; say so where that cannot be done.

    The run is looked for in the user's own store, whatever store the checkpoint names: a run's id
    is unique, and a checkpoint from elsewhere must not have any server contacted.

    Args:
        origin: ``run_id`` and ``tracking_uri`` of the training's run; None where there is none.
        verb: Verb of lit-offrl, for the message and the folder of the files.
        metrics: Values by name at a step; those that are not finite are left out.
        files: Files to log.
        step: Step of the training that the metrics are of.
        tracking_uri: The user's store; None for the default.
        run: A new run to log to, which takes over what the training's says of options and data.
        note: The run's description, Markdown; what its reader has written there stays.
        model: What has been evaluated, as the run's logged model.

    Returns:
        Whether nothing is left to be logged.
    """
    if origin is None:
        return True
    trained, uri, was = origin["run_id"], store_uri(tracking_uri), redacted(origin["tracking_uri"])
    hint = f"; the run was in {was}: give it as --tracking_uri or $MLFLOW_TRACKING_URI"

    def log() -> str:
        _require_file(uri)
        outbox = results(metrics, files, verb, step)
        outbox.note = note
        outbox.models += [] if model is None else [model]
        run_id = trained if run is None else _run_beside(trained, uri, run, outbox)
        add_to_run(run_id, uri, outbox)
        return run_id

    return _report(verb, f"MLflow run {trained}", log, hint if uri != was else "")


def _run_beside(trained: str, tracking_uri: str, run: OwnRun, outbox: Outbox) -> str:
    """Make a run of its own in the training's experiment; add to the outbox what it takes over."""
    client = open_client(tracking_uri)
    origin = client.get_run(trained)
    facts = {name: origin.data.tags[name] for name in FACTS if name in origin.data.tags}
    tags = {**facts, **run.tags, TRAINED_BY: trained}
    made = client.create_run(origin.info.experiment_id, run_name=run.name, tags=tags)
    outbox.params = dict(origin.data.params)
    outbox.inputs = inputs_of(origin)
    # Earlier versions kept what is known of the data as metrics.
    data = {k: v for k, v in origin.data.metrics.items() if k.startswith("data/")}
    outbox.points += results(data, [], "").points
    outbox.status, outbox.ended = "FINISHED", int(time.time() * 1000)
    return str(made.info.run_id)


def inputs_of(run: Any) -> list[Input]:
    """Return the datasets that a run has taken."""
    found = []
    for one in run.inputs.dataset_inputs if run.inputs is not None else ():
        data, context = one.dataset, {tag.key: tag.value for tag in one.tags}
        facts = (data.name, data.digest, data.source_type, data.source, data.schema, data.profile)
        found.append(Input(*facts, context.get(CONTEXT, "training")))
    return found


def log_to_experiment(
    tracking_uri: str, experiment_id: str, name: str, verb: str, files: Sequence[Path]
) -> bool:
    """Log files about an experiment's runs to one that keeps them, made at the first time.

    The next time it is found by the ``name`` of what is kept there. Returns whether the files are
    logged under the verb; where not, a line has said why.
    """

    def log() -> str:
        client = open_client(tracking_uri)
        where = f"tags.`{FIGURES_TAG}` = '{name}'"
        found = client.search_runs([experiment_id], where, max_results=1)
        if not found:
            tags = {FIGURES_TAG: name}
            found = [client.create_run(experiment_id, run_name=f"{verb} {name}", tags=tags)]
        run_id = str(found[0].info.run_id)
        outbox = results({}, files, verb)
        outbox.status, outbox.ended = "FINISHED", int(time.time() * 1000)
        add_to_run(run_id, tracking_uri, outbox)
        return run_id

    return _report(verb, f"MLflow at {redacted(tracking_uri)}", log)


def _report(verb: str, where: str, log: Callable[[], str], hint: str = "") -> bool:
    """Log, and say to which run or why not; the files are written, and that must not be undone."""
    try:
        run_id = log()
    except Exception as error:  # whatever a store's driver throws
        said = f"not logged to {where}: {redacted(first_line(error))}{hint}"
        print(f"lit-offrl {verb}: {said}", file=sys.stderr)
        return False
    print(f"MLflow run {run_id}: logged under {verb}/")
    return True
