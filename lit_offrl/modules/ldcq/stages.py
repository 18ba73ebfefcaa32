"""Earlier stages inside later ones: found, checked and frozen.

A later stage keeps the record of the earlier one (where it came from, its class and options) in its
hyperparameters, and its weights among its own. So its checkpoint can be used alone, also after the
earlier one's file has been removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.modules.base import CHECKPOINT_KEY, OfflineModule
from lit_offrl.modules.checkpoints import module_class, module_of, read_checkpoint
from lit_offrl.tracking.references import checkpoint_path

M = TypeVar("M", bound=OfflineModule)
StageRecord = dict[str, Any]
"""Where a stage came from, in plain types: ``path``, ``sha256`` of that file, ``class_path``,
``hyper_parameters``, ``spec`` of its data, ``mlflow`` (``run_id``, ``tracking_uri``, or None)."""


def load_stage(
    source: str | Mapping[str, Any], kind: type[M], **sizes: int
) -> tuple[M, StageRecord]:
    """Load a trained stage, frozen and in eval mode.

    Args:
        source: Path or MLflow run of its checkpoint (see ``checkpoint_path``), or its record, from
            which the module is built without weights, for a checkpoint that has them.
        kind: Class that the stage must be of.
        **sizes: What the stage must agree with, by the option's name, such as ``horizon`` and
            ``observation_dim``.

    Returns:
        The stage, and its record for the later stage's hyperparameters.

    Raises:
        ConfigError: It cannot be loaded, is of another class, or disagrees in a size, which the
            line names.
    """
    if isinstance(source, str):
        path = checkpoint_path(source)
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
        checkpoint = {CHECKPOINT_KEY: record, "hyper_parameters": record["hyper_parameters"]}
    found = module_class(record["class_path"], record["path"])
    if not issubclass(found, kind):
        raise ConfigError(
            f"{record['path']}: is a checkpoint of {found.__name__}, where one of {kind.__name__} "
            "is needed: name that stage's."
        )
    module: Any = module_of(checkpoint, record["path"])
    for name, here in sizes.items():
        there = getattr(module, name)
        if there != here:
            _refuse(record, name, there, here)
    return module.requires_grad_(False).eval(), record


def require_same_data(record: Mapping[str, Any], spec: DatasetSpec) -> None:
    """Refuse a stage that was trained on other data than these.

    Data are the same if their file has the same bytes, and the same rows and observations were
    taken from it; their rewards may have been changed.

    Args:
        record: Record of the stage.
        spec: Of the data, after they are read.

    Raises:
        ConfigError: The data differ.
    """
    (there, rows_there), (here, rows_here) = _data_of(record), (spec.sha256, spec.rows_handling)
    if there != here:
        sides = [value and f"{value[:12]}…" for value in (there, here)]
        _refuse(record, "the data's sha256", *sides)
    if rows_there != rows_here:
        sides = ["; ".join(value) or "none" for value in (rows_there, rows_here)]
        _refuse(record, "the data's handling", *sides)


def is_same_data(record: Mapping[str, Any], spec: DatasetSpec) -> bool:
    """Return whether ``require_same_data`` would accept the data."""
    return _data_of(record) == (spec.sha256, spec.rows_handling)


def _data_of(record: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    if record.get("spec") is None:
        return None, ()
    spec = DatasetSpec.from_dict(record["spec"])
    return spec.sha256, spec.rows_handling


def _refuse(record: Mapping[str, Any], name: str, there: Any, here: Any) -> None:
    raise ConfigError(
        f"{record['path']}: has {name} {there}, this stage {here}: train both with the same, or "
        "name another checkpoint."
    )
