"""Deleting the MLflow runs of attempts that do not count."""

from __future__ import annotations

from lit_offrl.common.errors import LitOffRLError, reason
from lit_offrl.tracking.store import open_client, redacted, sqlite_file


def forget_runs(tracking_uri: str, experiment: str, tag: str, value: str) -> None:
    """Delete the runs with a tag, which `mlflow` can restore: they would count twice.

    Raises:
        LitOffRLError: The store refuses.
    """
    database = sqlite_file(tracking_uri)
    if database is not None and not database.is_file():
        return  # MLflow would make an empty one
    from mlflow.exceptions import MlflowException  # seconds to import, and seldom needed

    try:
        client = open_client(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            where = f"tags.`{tag}` = '{value}'"
            for run in client.search_runs([found.experiment_id], filter_string=where):
                client.delete_run(run.info.run_id)
    except MlflowException as error:
        raise LitOffRLError(
            f"MLflow at {tracking_uri} refuses: {redacted(reason(error))}"
        ) from error
