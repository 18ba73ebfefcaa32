"""Where the files of an MLflow run are, also after the folder of a SQLite store was moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_offrl.tracking.store import client_uri, sqlite_file


def artifact_repository(tracking_uri: str, artifact_uri: str) -> Any:
    """Return MLflow's access to a run's files.

    Args:
        tracking_uri: the store that has the run.
        artifact_uri: of the run, as the store has it.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    moved = _moved(tracking_uri, artifact_uri)
    place = artifact_uri if moved is None else moved.as_uri()
    return get_artifact_repository(place, tracking_uri=client_uri(tracking_uri))


def _moved(tracking_uri: str, artifact_uri: str) -> Path | None:
    """Return the present folder of a run's files, if the store was moved and they with it.

    MLflow keeps the absolute path ``…/mlruns/EXPERIMENT/RUN/artifacts`` of the former place.
    """
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
