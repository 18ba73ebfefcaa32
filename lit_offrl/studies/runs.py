"""Which evaluated runs a study or a comparison is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from lit_offrl.common.errors import EvaluationError
from lit_offrl.evaluation import offline
from lit_offrl.evaluation.runs import Found, R, Run, joined, runs_from_files, runs_from_mlflow
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
        records: Files of evaluation records, folders of them, or glob patterns.
    """

    experiment: list[str] = field(default_factory=list)
    filter: str = ""
    tracking_uri: str | None = None
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
            parts.append(from_store(*store, self.filter))
        found = joined(parts)
        if not found.runs:
            why = f": {'; '.join(found.left_out[:3])}" if found.left_out else "."
            raise EvaluationError(f"There is no {what} to compare{why}")
        return found

    def _store(self) -> tuple[str, list[str]] | None:
        """Return the MLflow store and the names of experiments; None for files alone."""
        if self.records and not self.experiment and not self.filter:
            return None
        uri = store_uri(self.tracking_uri)
        set_patience()
        require_store(uri, "give another --tracking_uri, or files with --records.", made=True)
        names = self.experiment
        if not names and not self.filter:
            names = [default_experiment()]
        return uri, names
