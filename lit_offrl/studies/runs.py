"""Which evaluated runs a study or a comparison is of."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_offrl.common.errors import EvaluationError
from lit_offrl.evaluation import offline
from lit_offrl.evaluation.offline import OfflineRun
from lit_offrl.evaluation.runs import Found, runs_from_files, runs_from_mlflow
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

    def find(self) -> Found:
        """Read the runs; where none are named, those of ``fit``'s own experiment.

        Raises:
            ConfigError: There is no such store or experiment.
            EvaluationError: A record cannot be read, or no run has been evaluated.
        """
        parts = [runs_from_files(self.records)] if self.records else []
        if (store := self._store()) is not None:
            parts.append(runs_from_mlflow(*store, self.filter))
        found = Found(
            tuple(run for part in parts for run in part.runs),
            tuple(line for part in parts for line in part.left_out),
            next((part.experiment for part in parts if part.experiment is not None), None),
        )
        if not found.runs:
            what = f": {'; '.join(found.left_out[:3])}" if found.left_out else "."
            raise EvaluationError(f"There is no evaluated run to compare{what}")
        return found

    def find_offline(self, metric: str) -> tuple[list[OfflineRun], list[str]]:
        """Read an offline metric of the runs.

        Returns:
            The runs, and a line on each that does not have it.

        Raises:
            ConfigError: There is no such store or experiment.
            EvaluationError: A record cannot be read, or no run has the metric.
        """
        runs: list[OfflineRun] = []
        left_out: list[str] = []
        if self.records:
            runs, left_out = offline.from_files(self.records, metric)
        if (store := self._store()) is not None:
            found = offline.from_mlflow(*store, self.filter, metric)
            runs, left_out = runs + found[0], left_out + found[1]
        if not runs:
            what = f": {'; '.join(left_out[:3])}" if left_out else "."
            raise EvaluationError(f"There is no run with {metric} to compare{what}")
        return runs, left_out

    def _store(self) -> tuple[str, list[str]] | None:
        """Return the MLflow store and the names of experiments; None for files alone.

        Raises:
            ConfigError: There is no such store.
        """
        if self.records and not self.experiment and not self.filter:
            return None
        uri = store_uri(self.tracking_uri)
        set_patience()
        require_store(uri, "give another --tracking_uri, or files with --records.", made=True)
        names = self.experiment
        if not names and not self.filter:
            names = [default_experiment()]
        return uri, names
