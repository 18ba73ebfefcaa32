"""What a command takes over of a checkpoint's config: the method, the data, and plain numbers.

A checkpoint may come from anybody. Its callbacks, loggers and profilers could write to any folder,
contact any server or run any program, so that none of them is made unless the user's own command
names it. What is left out is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.named_classes import checked_part, checked_value, class_named
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.datasets.catalog import default_cache_dir, default_data_dir, resolve
from lit_offrl.datasets.views import View
from lit_offrl.modules import OfflineModule
from lit_offrl.tracking.store import is_own, redacted, store_uri

LeftOut = tuple[str, str]
"""The dotted name of an option of a checkpoint's that is not taken over, and what it is."""

# A run's folder is where its checkpoint lies; loggers are looked at one by one.
_ELSEWHERE = ("checkpoint.dirpath", "trainer.logger")
# Of the Trainer's options, those that are objects, folders or names of services.
_OBJECTS = [
    f"trainer.{name}"
    for name in ("callbacks", "profiler", "plugins", "default_root_dir", "model_registry")
]
_WORD = re.compile(r"[\w:,/ +-]*")  # no dotted path to import; files are looked for
_TRACKING_URI = "tracking_uri"
_MLFLOW_RUN = ("lit_offrl.callbacks.MLflowRun", "lit_offrl.callbacks.mlflow_run.MLflowRun")
_LOGGERS_FOLDERS = ("save_dir", "artifact_location")  # of Lightning's own, which its store knows
_KINDS: dict[str, type[Any]] = {
    "callbacks": Callback,
    "logger": Logger,
    "profiler": Profiler,
    "strategy": Strategy,
    "accelerator": Accelerator,
    "plugins": object,
}
_LONGEST = 200  # letters of a value in a message


def require_classes(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config of a sweep's or a pipeline's file that names a class which no file may name.

    Bare names are left to the parser, which looks for them among the classes that are there.

    Raises:
        ConfigError: naming the first such class, and before it ``where``.
    """
    trainer = config.get("trainer")
    options = trainer if isinstance(trainer, Mapping) else {}
    parts: list[tuple[str, Any, type[Any], type[Any]]] = [
        ("model", config.get("model"), OfflineModule, torch.nn.Module),
        ("data", config.get("data"), OfflineDataModule, View),
    ]
    parts += [(f"trainer.{name}", options.get(name), kind, kind) for name, kind in _KINDS.items()]
    for name, given, base, below in parts:
        for each in given if isinstance(given, list) else [given]:
            if isinstance(each, str) and "." in each and not Path(each).is_file():
                class_named(each, base, f"{where}{name}")
            elif isinstance(each, Mapping) and "." in str(each.get("class_path", "")):
                checked_part(each, base, below, f"{where}{name}")
            elif isinstance(each, Mapping):
                checked_value(each.get("init_args"), below, f"{where}{name}.init_args")


def take_over(
    config: Mapping[str, Any], path: str, *, fit: bool
) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return what may be taken of a checkpoint's config, by section, and what is left out.

    With ``fit`` also what a fit alone needs: the Trainer, checkpoints and evaluations.

    Raises:
        ConfigError: the method or the data are of a class that a file may not name.
    """
    layer: dict[str, Any] = {}
    left: list[LeftOut] = []
    seed = config.get("seed_everything")
    if seed is not None:
        layer["seed_everything"] = seed if isinstance(seed, int) else str(seed)
    if "model" in config:
        where = f"{path}: model"
        layer["model"] = checked_part(config["model"], OfflineModule, torch.nn.Module, where)
    if "data" in config:
        layer["data"], folders = data_part(config, path)
        left += folders
    if fit:
        for section in ("trainer", "checkpoint", "evaluation"):
            layer[section] = {}
            for name, value in config.get(section, {}).items():
                option = f"{section}.{name}"
                if option in _ELSEWHERE:
                    continue
                if value is None or (option not in _OBJECTS and _is_plain(value)):
                    layer[section][name] = value
                else:
                    left.append((option, _names(value)))
        left += _take_loggers(layer["trainer"], config.get("trainer", {}).get("logger"))
    return layer, left


def data_part(config: Mapping[str, Any], path: str | Path) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the section ``data`` of a checkpoint's config, its classes checked.

    Without folders that caches would be written to, unless they are the user's own or hold the data
    already; these are returned beside it.

    Raises:
        ConfigError: a class in it may not be used.
    """
    part = checked_part(config["data"], OfflineDataModule, View, f"{path}: data")
    return part, [*_drop_folders(part["init_args"])]


def _drop_folders(options: dict[str, Any]) -> Iterator[LeftOut]:
    usual = {"data_dir": default_data_dir(), "cache_dir": default_cache_dir()}
    for name, own in usual.items():
        folder = options.get(name)
        if folder is None or Path(str(folder)).expanduser() == own:
            continue
        if name != "data_dir" or not _lies_in(options.get("dataset"), str(folder)):
            del options[name]
            yield f"data.init_args.{name}", str(folder)[:_LONGEST]


def _lies_in(dataset: object, folder: str) -> bool:
    """Whether a dataset's file is in a folder of data already."""
    try:
        source = resolve(str(dataset), folder)
    except (DatasetError, OSError, ValueError):
        return False
    root = Path(folder).expanduser().resolve()
    return source.on_disk and source.path.resolve().is_relative_to(root)


def _take_loggers(trainer: dict[str, Any], given: object) -> Iterator[LeftOut]:
    """Take MLflow's loggers over, this library's and Lightning's, to the user's own store alone."""
    taken = []
    for each in given if isinstance(given, list) else [given]:
        if each is None or isinstance(each, bool):
            trainer["logger"] = each
            continue
        try:
            logger = checked_part(each, MLFlowLogger, MLFlowLogger, "trainer.logger")
        except ConfigError:
            yield "trainer.logger", _names(each)
            continue
        options, ours = logger["init_args"], logger["class_path"] in _MLFLOW_RUN
        uri = options.get(_TRACKING_URI)
        if not ours and (uri is None or not is_own(str(uri))):
            yield "trainer.logger", f"MLFlowLogger to {redacted(str(uri))}"
            continue
        if uri is not None and is_own(str(uri)):
            options[_TRACKING_URI] = store_uri()
        elif uri is not None:
            del options[_TRACKING_URI]
            yield f"trainer.logger.init_args.{_TRACKING_URI}", redacted(str(uri))
        for name in _LOGGERS_FOLDERS:
            options.pop(name, None)
        taken.append(logger)
    if taken:
        trainer["logger"] = taken if isinstance(given, list) else taken[0]


def _is_plain(value: object) -> bool:
    """Whether a value is of numbers and words, in none of which jsonargparse sees a class."""
    if isinstance(value, dict):
        return "class_path" not in value and all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return bool(_WORD.fullmatch(value)) and not Path(value).is_file()
    return isinstance(value, int | float)


def _names(value: object) -> str:
    """Return the names of the classes in an option, or what else it is, for a message."""
    names = []
    for each in value if isinstance(value, list) else [value]:
        path = each.get("class_path") if isinstance(each, Mapping) else None
        names.append(str(each if path is None else path.rpartition(".")[2]))
    return " ".join(", ".join(names).split())[:_LONGEST]
