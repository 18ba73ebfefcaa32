"""Runs in an MLflow store: finding them, and reading their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.tracking.store import (
    client_uri,
    open_client,
    refusals,
    sqlite_file,
)

TAG = "lit_offrl."
FIGURES_TAG = f"{TAG}figures"
"""Tag of a run that holds a figure of an experiment's other runs."""
FILES_TAG = f"{TAG}files"
"""Tag of a run that keeps the files that machines without a shared folder exchange."""
CHILDREN_TAG = f"{TAG}children"
"""Tag of a run that others are children of, with what they are of: ``sweep NAME``."""
METRICS_OF_POLICIES = ("eval/score", "eval/return_mean", "eval/success_rate")
"""Metrics by which policies are told apart."""
PARENT_TAG = "mlflow.parentRunId"
MODEL_TAG = f"{TAG}model"
"""Tag of a logged model by which it is known when it is sent again."""


def search_runs(tracking_uri: str, experiments: Sequence[str], filter_string: str) -> list[Any]:
    """Return MLflow's runs of experiments, or of all of them, that pass MLflow's filter.

    Raises:
        ConfigError: There is no such experiment, or MLflow refuses; the line says why.
    """
    with refusals(tracking_uri, ""):
        client = open_client(tracking_uri)
        found = all_pages(client.search_experiments)
        known = {experiment.name: experiment.experiment_id for experiment in found}
        for name in experiments:
            if name not in known:
                hint = nearest(name, known) or f" There are {', '.join(sorted(known))}."
                raise ConfigError(f"MLflow has no experiment '{name}'.{hint}")
        ids = [known[name] for name in experiments or known]
        return all_pages(client.search_runs, ids, filter_string)


def children(
    client: Any, filter_string: str, experiments: Sequence[str] | None = None
) -> list[Any]:
    """Return the runs of experiments, all of them by default, that pass MLflow's filter."""
    if experiments is None:
        experiments = [each.experiment_id for each in all_pages(client.search_experiments)]
    return all_pages(client.search_runs, list(experiments), filter_string)


def all_pages(search: Any, *arguments: Any) -> list[Any]:
    """Return all that a search of MLflow's client finds."""
    from mlflow.utils import get_results_from_paginated_fn  # seconds to import

    def page(size: int, token: str | None) -> Any:
        return search(*arguments, max_results=size, page_token=token)

    return list(get_results_from_paginated_fn(page, max_results_per_page=1000))


def forget_runs(tracking_uri: str, experiment: str, tag: str, value: str) -> None:
    """Delete the runs of an experiment with a tag, which `mlflow` can restore.

    Raises:
        ConfigError: MLflow refuses.
    """
    database = sqlite_file(tracking_uri)
    if database is not None and not database.is_file():
        return  # MLflow would make an empty one
    with refusals(tracking_uri, ""):
        client = open_client(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            where = f"tags.`{tag}` = '{value}'"
            for run in all_pages(client.search_runs, [found.experiment_id], where):
                client.delete_run(run.info.run_id)


def find_run(tracking_uri: str, run_id: str) -> Any:
    """Return a run by its id.

    Raises:
        ConfigError: There is none, or MLflow refuses.
    """
    client = open_client(tracking_uri)
    if not re.fullmatch(r"\w+", run_id) or not is_active(client, tracking_uri, run_id):
        raise ConfigError(f"MLflow at {tracking_uri} has no run '{run_id}'.")
    return client.get_run(run_id)


def is_active(client: Any, tracking_uri: str, run_id: str) -> bool:
    """Whether a store has a run that is not deleted.

    Raises:
        ConfigError: The store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    with refusals(tracking_uri):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise
    return str(run.info.lifecycle_stage) == "active"


def artifact_repository(tracking_uri: str, artifact_uri: str) -> Any:
    """Return MLflow's access to a run's files, also where a SQLite store's folder was moved."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    moved = _moved(tracking_uri, artifact_uri)
    place = artifact_uri if moved is None else moved.as_uri()
    return get_artifact_repository(place, tracking_uri=client_uri(tracking_uri))


def _moved(tracking_uri: str, artifact_uri: str) -> Path | None:
    # MLflow keeps the absolute path …/mlruns/EXPERIMENT/RUN/artifacts of the former place.
    file = sqlite_file(tracking_uri)
    if file is None or ("://" in artifact_uri and not artifact_uri.startswith("file:")):
        return None
    from mlflow.utils.file_utils import local_file_uri_to_path

    there = Path(local_file_uri_to_path(artifact_uri))
    if "mlruns" not in there.parts or there.parents[1].exists():
        return None
    last = len(there.parts) - 1 - there.parts[::-1].index("mlruns")
    here = file.parent.joinpath(*there.parts[last:])
    return here if here.parents[1].is_dir() else None


def artifact_texts(repository: Any, paths: Sequence[str]) -> dict[str, str]:
    """Return the texts of a run's files by path."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    with TemporaryDirectory() as folder:  # for files of a store elsewhere
        place = () if isinstance(repository, LocalArtifactRepository) else (folder,)
        return {
            path: Path(repository.download_artifacts(path, *place)).read_text() for path in paths
        }


def json_paths(repository: Any, folder: str | None = None) -> list[str]:
    """Return the paths of the JSON files in a folder of a run's files, or in the topmost one."""
    paths = [str(item.path) for item in repository.list_artifacts(folder)]
    return [path for path in paths if path.endswith(".json")]
