"""``lit-offrl mlflow sync``: send to MLflow what it did not get while a run trained."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError, reason
from lit_offrl.tracking.outbox import Outbox, curve_points, load_outbox, unsent_file, unsent_runs
from lit_offrl.tracking.sending import Delivery
from lit_offrl.tracking.store import STORE_HELP, open_client, redacted, require_store, store_uri


def main(argv: Sequence[str]) -> int:
    """Send what is missing, say what it was, and return 0."""
    options = _parser().parse_args(list(argv))
    from lit_offrl.evaluation.record import present_names  # torch and Lightning: seconds
    from lit_offrl.modules.base import CHECKPOINT_KEY
    from lit_offrl.modules.checkpoints import history_of, mlflow_runs, read_checkpoint

    folder, checkpoint = _find(options.run)
    saved = {} if checkpoint is None else read_checkpoint(checkpoint)
    origin = next(iter(mlflow_runs(saved.get(CHECKPOINT_KEY, {}))), {})
    runs = list(dict.fromkeys([*unsent_runs(folder), *filter(None, [origin.get("run_id")])]))
    if not runs:
        raise ConfigError(f"{options.run}: was not logged to MLflow: there is nothing to send.")
    uri = store_uri(options.tracking_uri)
    require_store(uri, "give another --tracking_uri.", made=True)
    for run_id in runs:
        own = run_id == origin.get("run_id")
        where = origin["tracking_uri"] if own else None
        outbox = load_outbox(folder, run_id)
        if own:
            outbox.points += curve_points(present_names(history_of(saved)), int(time.time() * 1000))
        sent = _send(uri, run_id, outbox, where)
        unsent_file(folder, run_id).unlink(missing_ok=True)
        print(f"MLflow run {run_id}: {sent or 'nothing was missing'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lit-offrl mlflow",
        description="sync: send to MLflow what it did not get while a run trained: metrics,"
        " parameters, tags, files and how it ended. What MLflow has is not sent again.",
    )
    add = parser.add_argument
    add("verb", choices=("sync",), help="What to do; sync sends what is missing.")
    add("run", type=Path, metavar="RUN", help="Folder of the run, or a checkpoint in it.")
    add("--tracking_uri", metavar="URI", help=STORE_HELP)
    return parser  # fmt: skip


def _find(run: Path) -> tuple[Path, Path | None]:
    """Return a run's folder, and its last checkpoint or the one that is named."""
    if run.is_file():
        return run.absolute().parent, run
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such folder or checkpoint; give a run's folder.")
    last = run / "last.ckpt"
    return run.absolute(), last if last.is_file() else None


def _send(uri: str, run_id: str, outbox: Outbox, where: str | None) -> str:
    """Send an outbox to a run; return what was sent, in words."""
    try:
        delivery = Delivery(open_client(uri), uri, run_id, outbox, ask=True)
        delivery.send(lambda size: None, end=True)
    except Exception as error:  # whatever a store's driver throws
        elsewhere = f" The checkpoint says that it is in {redacted(where)}." if where else ""
        raise ConfigError(
            f"MLflow at {uri} does not take run {run_id}: {redacted(reason(error)).rstrip('.')}."
            f"{elsewhere if where != uri else ''} Give another --tracking_uri, or try again."
        ) from error
    return delivery.summary()
