"""A checkpoint on the command line: its config is the ground layer, files and flags go on top."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from lit_offrl.cli.layer import LeftOut, take_over
from lit_offrl.common.configs import flat
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256
from lit_offrl.modules.base import CHECKPOINT_KEY, OfflineModule
from lit_offrl.modules.checkpoints import config_of, read_checkpoint
from lit_offrl.tracking.references import checkpoint_path

_LAYER = ("seed_everything", "model", "data")
_LINKED = ("observation_dim", "action_dim", "action_low", "action_high", "seed")


class ResumeFrom:
    """A checkpoint that a verb starts from.

    Raises:
        ConfigError: it is missing or not one of this library's.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        checkpoint = read_checkpoint(path)
        self.ours: dict[str, Any] = checkpoint[CHECKPOINT_KEY]
        self._whole = {"optimizer_states", "loops", "global_step"} <= checkpoint.keys()
        self._shapes = {name: tuple(v.shape) for name, v in checkpoint["state_dict"].items()}
        self._hyperparameters: Mapping[str, Any] = checkpoint.get("hyper_parameters", {})
        self.config = self._config(config_of(checkpoint, path), self._hyperparameters)
        self.left_out: list[LeftOut] = []
        """Options of its config that the layer is without."""

    def require_whole(self) -> None:
        """Refuse a checkpoint of weights alone, as ``save_weights_only`` leaves them.

        Raises:
            ConfigError: it has no optimiser's state.
        """
        if not self._whole:
            raise ConfigError(
                f"{self.path}: the checkpoint holds weights alone: it cannot be resumed, only "
                "evaluated; resume from one that was saved with save_weights_only false."
            )

    def _config(self, config: dict[str, Any], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        if config:
            options = config.get("model", {}).get("init_args", {})
            for name, value in options.items():
                record = hyperparameters.get(name)
                if not (isinstance(record, Mapping) and isinstance(value, str)):
                    continue
                # an earlier stage's checkpoint that has gone, or is no more what it was: this one
                # has its weights and record
                if not _as_it_was(value, record):
                    options[name] = json.loads(json.dumps(record))  # lists, as YAML would have it
            return config
        plain = {k: v for k, v in hyperparameters.items() if not k.startswith("_")}
        return {
            "seed_everything": plain.get("seed", 0),
            "model": {
                "class_path": self.ours["class_path"],
                "init_args": {k: v for k, v in plain.items() if k not in _LINKED},
            },
        }

    def layer(self, verb: str) -> str:
        """Return the part of its config that a verb takes over, as YAML; see ``take_over``.

        An environment of a module's is left out, as only the user may name one.

        Raises:
            ConfigError: a class that it names may not be used.
        """
        layer, self.left_out = take_over(self.config, self.path, fit=verb == "fit")
        if self.env_of_module() is not None:
            options = {k: v for k, v in layer["data"]["init_args"].items() if k != "env_id"}
            layer["data"] = {**layer["data"], "init_args": options}
        return yaml.safe_dump(layer)

    def env_of_module(self) -> str | None:
        """Return the data's ``env_id`` where it is of the form ``module:id``."""
        env_id = self.config.get("data", {}).get("init_args", {}).get("env_id")
        return env_id if isinstance(env_id, str) and ":" in env_id else None

    def changes(self, config: Mapping[str, Any]) -> list[str]:
        """Name the options of module and data that differ from the checkpoint's."""
        sections = [key for key in _LAYER if key in self.config]
        before = flat({key: self.config[key] for key in sections})
        after = flat({key: config.get(key) for key in sections})
        return [
            f"{name}: {before.get(name)} → {value}"
            for name, value in after.items()
            if not _is_linked(name) and value != before.get(name)
        ]

    def require_fit(self, module: OfflineModule, config: Mapping[str, Any]) -> None:
        """Refuse a module that these weights cannot be loaded into, or belong to no more.

        Raises:
            ConfigError: naming a weight and the options that differ, or an earlier stage's
                checkpoint that is not the one whose weights these are.
        """
        shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        if shapes == self._shapes:
            self._require_same_stages(module)
            return
        name = next(n for n in {**shapes, **self._shapes} if shapes.get(n) != self._shapes.get(n))
        changes = self.changes(config)
        raise ConfigError(
            f"{self.path} does not fit this module: '{name}' has shape {self._shapes.get(name)} "
            f"there and {shapes.get(name)} here; "
            + (f"options that differ: {'; '.join(changes)}." if changes else "give its options.")
        )

    def _require_same_stages(self, module: OfflineModule) -> None:
        for name, there in self._hyperparameters.items():
            here = module.hparams.get(name)
            if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
                continue
            if there.get("sha256") != here.get("sha256"):
                raise ConfigError(
                    f"{self.path} was trained on another {name} than {here.get('path')} is now:"
                    f" leave {name} out to go on with the one that it keeps, or begin a new run."
                )


def _is_linked(name: str) -> bool:
    """Say whether an option follows from others; the data's bounds are given."""
    return name.rpartition(".")[2] in _LINKED and not name.startswith("data.init_args.action_")


def _as_it_was(source: str, record: Mapping[str, Any]) -> bool:
    try:
        return file_sha256(checkpoint_path(source)) == record.get("sha256")
    except (ConfigError, OSError):
        return False
