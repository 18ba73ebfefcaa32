"""Earlier stages inside later ones: found, checked, frozen, and never forgotten.

A later stage keeps the record of the earlier one (where it came from, its class and options) in its
hyperparameters and its weights in its own, so its checkpoint acts alone, and where the earlier file
has gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lit_offrl.common.errors import ConfigError, reason
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules.base import CHECKPOINT_KEY, OfflineModule
from lit_offrl.modules.checkpoints import module_class, read_checkpoint
from lit_offrl.tracking.store import client_uri, redacted, set_patience, store_uri

M = TypeVar("M", bound=OfflineModule)
StageRecord = dict[str, Any]
"""Where a stage came from, in plain types: ``path``, ``sha256`` of that file, ``class_path``,
``hyper_parameters``, ``spec`` of its data, ``mlflow`` (``run_id``, ``tracking_uri``, or None)."""

_RUN = re.compile(r"(?:runs:/)?([0-9a-f]{32})(?:/(.+))?")


def load_stage(
    source: str | Mapping[str, Any],
    kind: type[M],
    *,
    horizon: int | None = None,
    observation_dim: int | None = None,
    action_dim: int | None = None,
) -> tuple[M, StageRecord]:
    """Load a trained stage, frozen and in eval mode; what is given must agree with it.

    Args:
        source: path of its checkpoint, an MLflow run (``runs:/ID`` or the bare id; a path after
            ``runs:/ID/`` for another than its last), or a record of it, of which the module is
            built without its weights, for a checkpoint that has them.
        kind: the class that it must be of.
        horizon: H.
        observation_dim: o.
        action_dim: a.

    Returns:
        The stage, and its record for the later stage's ``save_hyperparameters``.

    Raises:
        ConfigError: it cannot be had, is of another class, or disagrees: the line says in what.
    """
    checkpoint = None
    if isinstance(source, str):
        path = stage_path(source)
        checkpoint = read_checkpoint(path)
        ours = checkpoint[CHECKPOINT_KEY]
        hyper = checkpoint.get("hyper_parameters", {})
        record: StageRecord = {
            "path": source if source != str(path) else str(path.resolve()),
            "sha256": file_sha256(path),
            "class_path": ours["class_path"],
            "hyper_parameters": {k: v for k, v in hyper.items() if not k.startswith("_")},
            "spec": ours.get("spec"),
            "mlflow": ours.get("mlflow"),
        }
    else:
        record = dict(source)
    module = _build(record, kind)
    if checkpoint is not None:
        try:
            module.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise ConfigError(
                f"{record['path']}: does not fit {kind.__name__} of this version: {reason(error)}"
            ) from error
    asked = {"horizon": horizon, "observation_dim": observation_dim, "action_dim": action_dim}
    for name, here in asked.items():
        there = getattr(module, name, record["hyper_parameters"].get(name))
        if here is not None and there is not None and there != here:
            _refuse(record, name, there, here)
    return module.requires_grad_(False).eval(), record


def require_same_data(record: Mapping[str, Any], spec: DatasetSpec) -> None:
    """Refuse a stage of other data than these; to be called once they are read.

    The same are those of a file with the same bytes, of which the same rows and observations were
    taken; their rewards may have been handled otherwise.

    Raises:
        ConfigError: the two differ.
    """
    (there, rows_there), (here, rows_here) = _data_of(record), (spec.sha256, spec.rows_handling)
    if there != here:
        sides = [value and f"{value[:12]}…" for value in (there, here)]
        _refuse(record, "the data's sha256", *sides)
    if rows_there != rows_here:
        sides = ["; ".join(value) or "none" for value in (rows_there, rows_here)]
        _refuse(record, "the data's handling", *sides)


def is_same_data(record: Mapping[str, Any], spec: DatasetSpec) -> bool:
    """Whether ``require_same_data`` passes."""
    return _data_of(record) == (spec.sha256, spec.rows_handling)


def _data_of(record: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    if record.get("spec") is None:
        return None, ()
    spec = DatasetSpec.from_dict(record["spec"])
    return spec.sha256, spec.rows_handling


def stage_path(source: str) -> Path:
    """Return the file of a checkpoint, given by its path or by the MLflow run that made it.

    Of a run it is the last one, unless ``runs:/ID/PATH`` says which.

    Raises:
        ConfigError: the run or its checkpoint cannot be had.
    """
    run = _RUN.fullmatch(source)
    if run is None or Path(source).is_file():
        return Path(source)
    from mlflow.artifacts import download_artifacts, list_artifacts  # seconds to import
    from mlflow.exceptions import MlflowException

    set_patience()
    uri = store_uri()
    where = {"run_id": run[1], "tracking_uri": client_uri(uri)}
    try:
        if run[2] is not None:
            return Path(download_artifacts(artifact_path=run[2], **where))
        found = [item.path for item in list_artifacts(artifact_path="checkpoints", **where)]
        found = sorted(path for path in found if path.endswith(".ckpt"))
        if not found:
            raise ConfigError(f"MLflow run {run[1]} at {uri} has no checkpoint yet.")
        last = [path for path in found if Path(path).stem == "last"] or found
        return Path(download_artifacts(artifact_path=last[-1], **where))
    except (MlflowException, OSError) as error:
        raise ConfigError(
            f"MLflow run {run[1]} at {uri} cannot be had: {redacted(reason(error))}"
        ) from error


def _build(record: Mapping[str, Any], kind: type[M]) -> M:
    found = module_class(record["class_path"], record["path"])
    if not issubclass(found, kind):
        raise ConfigError(
            f"{record['path']}: is a checkpoint of {found.__name__}, where one of {kind.__name__} "
            "is needed: name that stage's."
        )
    try:
        module = found(**record["hyper_parameters"])
    except TypeError as error:
        raise ConfigError(
            f"{record['path']}: does not fit {found.__name__} of this version: {error}"
        ) from error
    module.on_load_checkpoint({CHECKPOINT_KEY: {"spec": record["spec"]}})
    return module


def _refuse(record: Mapping[str, Any], name: str, there: Any, here: Any) -> None:
    raise ConfigError(
        f"{record['path']}: has {name} {there}, this stage {here}: train both with the same, or "
        "name another checkpoint."
    )
