"""Checkpoints of this library: read safely, and turned into modules again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_offrl.common.errors import ConfigError, LitOffRLError, first_line, reason
from lit_offrl.common.named_classes import class_named
from lit_offrl.common.renames import translated_config, translated_hyperparameters
from lit_offrl.modules.base import CHECKPOINT_KEY, OfflineModule
from lit_offrl.modules.checkpoint_form import CHECKPOINTS, CURVES, require_form
from lit_offrl.modules.weights_file import SUFFIX, read_weights
from lit_offrl.tracking.references import checkpoint_path

_RUN_ID = re.compile(r"[\w-]{1,64}")  # it also names a file
_SECTIONS = ("model", "data", "trainer", "checkpoint", "evaluation")


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this library, never unpickling anything but tensors and plain types.

    A ``.safetensors`` file of ``export`` has the weights and options of one.

    Its hyperparameters have the names of this version, and what held before there was an option
    for it, see ``renames``.

    Raises:
        ConfigError: the file is missing, is no checkpoint, is not one of this library, or has a
            part of another form than ``fit`` writes.
    """
    path = checkpoint_path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint; give the path of a .ckpt file.")
    checkpoint: Any
    try:
        if path.suffix == SUFFIX:
            checkpoint = read_weights(path, map_location)
        else:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except LitOffRLError:
        raise
    except Exception as error:  # torch raises many kinds, each for a broken or foreign file
        said = first_line(error)[:120]
        raise ConfigError(f"{path}: not a readable checkpoint ({said}).") from error
    ours = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "class_path" not in ours:
        raise ConfigError(f"{path}: not a checkpoint written by lit-offrl; train one with 'fit'.")
    require_form(checkpoint, path, CHECKPOINT_KEY)
    if "hyper_parameters" in checkpoint:
        hyperparameters = checkpoint["hyper_parameters"]
        checkpoint["hyper_parameters"] = _in_file(
            path, lambda: translated_hyperparameters(hyperparameters, ours["class_path"])
        )
    return checkpoint


def load_parts(
    module: OfflineModule, names: Sequence[str], state: Mapping[str, Tensor], refusal: str
) -> None:
    """Load parts of a module from the ``state_dict`` of another one that has them too.

    Raises:
        ConfigError: a part does not fit; the line begins with ``refusal``.
    """
    for name in names:
        prefix = f"{name}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        try:
            getattr(module, name).load_state_dict(part)
        except RuntimeError as error:
            raise ConfigError(f"{refusal} ({reason(error)})") from error


def config_of(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the config of the run that wrote a checkpoint; empty where it keeps none.

    Its sections are mappings, and so are the ``init_args`` of module and data; which classes they
    name and with which options is not looked at.

    Raises:
        ConfigError: it is no YAML, or of another form.
    """
    text = checkpoint[CHECKPOINT_KEY].get("config")
    if text is None:
        return {}
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: its config is no YAML ({reason(error)}).") from error
    found: dict[str, Any] = {}
    for name, value in _mapping(config, f"{path}: its config").items():
        if name in _SECTIONS:
            value = _mapping(value, f"{path}: its config's {name}")
            if name in ("model", "data") and "init_args" in value:
                options = _mapping(value["init_args"], f"{path}: its config's {name}.init_args")
                value = {**value, "init_args": options}
        found[name] = value
    found = {name: value for name, value in found.items() if name not in _SECTIONS or value}
    return _in_file(path, lambda: translated_config(found, stored=True))


def _in_file(path: str | Path, translate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return translate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _mapping(value: object, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{where} holds {reason(ValueError(value), 80)}: options are needed.")
    return value


def mlflow_runs(ours: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return ``run_id`` and ``tracking_uri`` of a checkpoint's MLflow runs, its own run first.

    What can be no run, such as an id that would lead to another folder, is left out.

    Args:
        ours: The library's part of the checkpoint.
    """
    first = ours.get("mlflow")
    if not isinstance(first, Mapping):
        return []
    beside = first.get("beside")
    names = ("run_id", "tracking_uri")
    return [
        {name: str(run[name]) for name in names}
        for run in [first, *(beside if isinstance(beside, list) else [])]
        if isinstance(run, Mapping) and {*names} <= {*run} and _RUN_ID.fullmatch(str(run["run_id"]))
    ]


def mlflow_origin(path: Path) -> dict[str, str] | None:
    """Return ``run_id`` and ``tracking_uri`` of the MLflow run that made a checkpoint, if any."""
    return next(iter(mlflow_runs(read_checkpoint(path)[CHECKPOINT_KEY])), None)


def history_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the curves that a checkpoint keeps, [[step, value], ...] by name."""
    return dict(checkpoint.get("callbacks", {}).get(CURVES, {}).get("history", {}))


def checkpoint_rule(path: Path, checkpoint: Mapping[str, Any]) -> str:
    """Say how a checkpoint was chosen among those of its run: ``last``, ``best, …``, or by hand."""
    state = (checkpoint.get("callbacks") or {}).get(CHECKPOINTS) or {}
    best = state.get("best") or {}
    if path.stem.startswith("best") and best and best.get("step") == checkpoint.get("global_step"):
        return str(best.get("rule"))
    return "last" if path.stem.startswith("last") else "named by the user"


def module_class(class_path: object, where: str = "the checkpoint") -> type[OfflineModule]:
    """Find a method's class by its dotted path, as a file names it.

    Raises:
        ConfigError: there is no such class, it may not be imported, or it is no OfflineModule.
    """
    return class_named(class_path, OfflineModule, where)


def load_module(path: str | Path, map_location: str | torch.device = "cpu") -> OfflineModule:
    """Rebuild a trained method from its checkpoint alone, ready to act.

    Args:
        path: A ``.ckpt`` file written by ``lit-offrl fit``, or a reference to one in MLflow's
            store: ``runs:/ID`` or ``models:/NAME@ALIAS``.
        map_location: Device of its tensors.

    Raises:
        ConfigError: the file is missing, is no checkpoint of this library, or does not fit it.
    """
    path = checkpoint_path(path)
    module = module_of(read_checkpoint(path, map_location), path)
    module.loaded_from = path
    return module.to(map_location).eval()


def module_of(checkpoint: Mapping[str, Any], path: str | Path) -> OfflineModule:
    """Rebuild a method from what a checkpoint holds, with its weights if they are there.

    Raises:
        ConfigError: Its class may not be imported, or it does not fit it.
    """
    kind = module_class(checkpoint[CHECKPOINT_KEY]["class_path"], str(path))
    arguments = {
        key: value
        for key, value in checkpoint.get("hyper_parameters", {}).items()
        if not key.startswith("_")  # Lightning's own notes, such as _instantiator
    }
    try:
        module = kind(**arguments)
        module.on_load_checkpoint({**checkpoint})
        if "state_dict" in checkpoint:
            module.load_state_dict(checkpoint["state_dict"])
    except LitOffRLError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # whatever a value of another kind makes the method's code raise
        raise ConfigError(
            f"{path}: does not fit {kind.__name__} of this version: {reason(error)}"
        ) from error
    return module
