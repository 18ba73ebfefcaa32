"""Which evaluated runs a study or a comparison is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from lit_offrl.common.errors import EvaluationError
from lit_offrl.evaluation import offline
from lit_offrl.evaluation.run_files import runs_from_files
from lit_offrl.evaluation.runs import Found, R, Run, joined, runs_from_mlflow
from lit_offrl.tracking.runs import PARENT_TAG, find_run
from lit_offrl.tracking.store import (
    default_experiment,
    require_store,
    set_patience,
    store_uri,
)


@dataclass(frozen=True, kw_only=True)
class RunSelection:
    """Evaluated runs of MLflow, of files, or of both.

    Args:
        experiment: Names of MLflow experiments. Without this, a filter and records, the experiment
            that 'fit' logs to by default.
        filter: Filter in MLflow's syntax that the runs fit, such as "tags.x = 'y'".
        tracking_uri: Address of the MLflow store; without it, that of $MLFLOW_TRACKING_URI, else
            sqlite:///mlflow.db.
        parent: An MLflow run, ID or runs:/ID, whose children they are: that of a sweep, a search or
            a pipeline.
        records: Files of evaluation records, runs.jsonl of 'lit-offrl compare --output', folders of
            these, or glob patterns.
    """

    experiment: list[str] = field(default_factory=list)
    filter: str = ""
    tracking_uri: str | None = None
    parent: str | None = None
    records: list[str] = field(default_factory=list)

    def find(self) -> Found[Run]:
        """Read the runs; where none are named, those of ``fit``'s own experiment.

        Raises:
            ConfigError: There is no such store or experiment.
            EvaluationError: A record cannot be read, or no run has been evaluated.
        """
        return self._found(runs_from_files, runs_from_mlflow, "evaluated run")

    def find_offline(self, metric: str) -> Found[offline.OfflineRun]:
        """Read an offline metric of the runs, as ``find`` reads evaluations."""
        from_files = partial(offline.from_files, metric=metric)
        from_mlflow = partial(offline.from_mlflow, metric=metric)
        return self._found(from_files, from_mlflow, f"run with {metric}")

    def _found(
        self, from_files: Callable[..., Found[R]], from_store: Callable[..., Found[R]], what: str
    ) -> Found[R]:
        parts = [from_files(self.records)] if self.records else []
        if (store := self._store()) is not None:
            parts.append(from_store(*store, self._filter(store[0])))
        found = joined(parts)
        if not found.runs:
            why = f": {'; '.join(found.left_out[:3])}" if found.left_out else "."
            raise EvaluationError(f"There is no {what} to compare{why}")
        return found

    def _store(self) -> tuple[str, list[str]] | None:
        """Return the MLflow store and the names of experiments; None for files alone."""
        named = self.experiment or self.filter or self.parent
        if self.records and not named:
            return None
        uri = store_uri(self.tracking_uri)
        set_patience()
        require_store(uri, "give another --tracking_uri, or files with --records.", made=True)
        return uri, self.experiment if named else [default_experiment()]

    def _filter(self, tracking_uri: str) -> str:
        """Return MLflow's filter, with the parent as a part of it."""
        if self.parent is None:
            return self.filter
        found = find_run(tracking_uri, self.parent.removeprefix("runs:/"))
        part = f"tags.`{PARENT_TAG}` = '{found.info.run_id}'"
        return f"{self.filter} AND {part}" if self.filter else part
