"""Where a checkpoint is found: a file, a run of MLflow's, or a version of a registered model.

Whatever takes a checkpoint's path takes these as well:

    runs:/ID, ID              the last checkpoint of a run
    runs:/ID/PATH             another file of its artifacts
    models:/NAME@ALIAS        the version of a registered model that has an alias
    models:/NAME/VERSION      a version by its number
    models:/m-ID              a logged model
    hub:ORG/NAME              what ``lit-offrl hub push`` has put there, see ``hub.fetching``
    hub:ORG/NAME@REVISION     the same as of a commit, branch or tag

Runs and models are looked for in the user's own store alone. A file that is elsewhere is copied
once it is needed, to the folder of caches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from lit_offrl.common.errors import ConfigError, nearest, reason
from lit_offrl.tracking.runs import all_pages, artifact_repository
from lit_offrl.tracking.store import open_client, redacted, require_store, store_uri

_RUN = re.compile(r"(?:runs:/)?([0-9a-f]{32})(?:/(.+))?")
_LOGGED = re.compile(r"m-[0-9a-f]{32}")
_VERSION = re.compile(r"([^/@]+)(?:@([^/@]+)|/(\d+))")
_HUB = "hub:"
_SCHEMES = ("runs:/", "models:/", _HUB)
_WAY_OUT = "give another --tracking_uri or $MLFLOW_TRACKING_URI."


@dataclass(frozen=True)
class _Marker:
    """Marks options whose texts are references."""


REFERENCE = _Marker()
Checkpoint = Annotated[Path, REFERENCE]
"""Type of a command's option that takes a checkpoint: ``options.make`` finds its file."""


def is_reference(source: str | Path) -> bool:
    """Whether a text names a checkpoint by its run or model, not by its path."""
    text = str(source)
    return text.startswith(_SCHEMES) or _RUN.fullmatch(text) is not None


def checkpoint_path(source: str | Path, tracking_uri: str | None = None) -> Path:
    """Return the file of a checkpoint.

    Args:
        source: Its path, or a reference, see above.
        tracking_uri: The store of runs and models; None for the default.

    Raises:
        ConfigError: There is no such run, model, version or alias, or it has no checkpoint.
    """
    text = str(source)
    if not is_reference(text) or Path(text).is_file():
        return Path(source)
    if text.startswith(_HUB):
        from lit_offrl.hub.fetching import fetch_weights

        return fetch_weights(text.removeprefix(_HUB))
    uri = store_uri(tracking_uri)
    require_store(uri, f"{text}: {_WAY_OUT}", made=True)
    client, model = open_client(uri), text.removeprefix("models:/")
    try:
        if model != text:
            return _of_model(client, uri, model, text)
        return _of_run(client, uri, text)
    except ConfigError:
        raise
    except Exception as error:  # whatever MLflow, or its store's driver, throws
        what = "model" if model != text else "run"
        raise ConfigError(
            f"MLflow {what} {text} at {uri} cannot be read: {redacted(reason(error))}"
        ) from error


def label(checkpoint: Path) -> str:
    """Return what tells a checkpoint's run in names of files: its folder, or the id in MLflow."""
    folder = checkpoint.resolve().parent
    for below in (folder, folder.parent):
        if below.name == "artifacts":
            return below.parent.name
    return folder.name


def _of_run(client: Any, uri: str, text: str) -> Path:
    match = _RUN.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text}: is no run of MLflow's: give runs:/ID or runs:/ID/PATH.")
    run_id, path = match.groups()
    files = artifact_repository(uri, client.get_run(run_id).info.artifact_uri)
    if path is None:
        path = last_of(files, "checkpoints")
    if path is None:
        raise ConfigError(f"MLflow run {run_id} at {uri} has no checkpoint yet.")
    return _fetched(files, path, run_id)


def _of_model(client: Any, uri: str, name: str, text: str) -> Path:
    if _LOGGED.fullmatch(name):
        place, kept = client.get_logged_model(name).artifact_location, name
    else:
        version = model_version(client, uri, name)
        kept = f"{version.name}-{version.version}"
        place = client.get_model_version_download_uri(version.name, version.version)
    files = artifact_repository(uri, place)
    path = last_of(files)
    if path is None:
        raise ConfigError(f"{text}: has no checkpoint of lit-offrl's: name one that it registered.")
    return _fetched(files, path, kept)


def model_version(client: Any, uri: str, name: str) -> Any:
    """Return a version of a registered model, ``NAME@ALIAS`` or ``NAME/VERSION``.

    Raises:
        ConfigError: There is none, or the text is of another form.
    """
    match = _VERSION.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"models:/{name}: names no version: give models:/NAME@ALIAS or models:/NAME/VERSION."
        )
    model, alias, number = match.groups()
    found = registered_model(client, uri, model)
    versions = {str(each.version): each for each in versions_of(client, model)}
    if alias is not None:
        number = found.aliases.get(alias)
        if number is None:
            known = ", ".join(sorted(found.aliases)) or "none yet"
            hint = nearest(alias, found.aliases) or f" It has {known}."
            raise ConfigError(f"MLflow's model '{model}' at {uri} has no alias '{alias}'.{hint}")
    if str(number) not in versions:
        known = ", ".join(sorted(versions, key=int)) or "none"
        raise ConfigError(
            f"MLflow's model '{model}' at {uri} has no version {number}. It has {known}."
        )
    return versions[str(number)]


def versions_of(client: Any, model: str) -> list[Any]:
    """Return the versions of a registered model, the newest first."""
    return list(all_pages(client.search_model_versions, f"name = '{model}'"))


def registered_model(client: Any, uri: str, name: str) -> Any:
    """Return a registered model.

    Raises:
        ConfigError: There is none of that name.
    """
    found = {each.name: each for each in all_pages(client.search_registered_models)}
    if name not in found:
        known = f" There are {', '.join(sorted(found))}." if found else ""
        hint = nearest(name, found) or known or " None is registered: lit-offrl models register."
        raise ConfigError(f"MLflow at {uri} has no registered model '{name}'.{hint}")
    return client.get_registered_model(name)


def last_of(files: Any, folder: str | None = None) -> str | None:
    """Return the path of the last checkpoint in a folder of artifacts; None where there is none."""
    paths = sorted(str(item.path) for item in files.list_artifacts(folder))
    found = [path for path in paths if path.endswith(".ckpt")]
    last = [path for path in found if Path(path).stem == "last"]
    return next(iter([*last, *reversed(found)]), None)


def _fetched(files: Any, path: str, name: str) -> Path:
    """Return the file of an artifact: itself where it is on this disk, else a copy."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    if isinstance(files, LocalArtifactRepository):
        return Path(files.download_artifacts(path))
    from lit_offrl.datasets.catalog import default_cache_dir

    folder = default_cache_dir() / "mlflow" / name / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as temporary:  # others may fetch it at the same time
        copy = Path(files.download_artifacts(path, temporary))
        return copy.replace(folder / copy.name)
