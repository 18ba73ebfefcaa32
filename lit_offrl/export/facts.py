"""What an exported policy says of itself: where it came from, and what it takes and gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lit_offrl import __version__
from lit_offrl.common.errors import ConfigError, LitOffRLError, reason
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.record import config_sha256
from lit_offrl.modules.base import CHECKPOINT_KEY, OfflineModule
from lit_offrl.modules.checkpoints import checkpoint_rule, mlflow_runs, read_checkpoint

KEY = "lit_offrl"
"""Key of the facts among a file's metadata, whose value is their JSON."""
NOISE, STATE, NEXT_STATE = "noise", "state", "next_state"


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """Facts of an exported policy, in plain types.

    Attributes:
        method: Class of its module.
        policy_options: Options that the policy was made with.
        spec: Of the data that it was trained on: dimensions, bounds, environment, references,
            sha256, see ``DatasetSpec``.
        config_sha256: Hash of the module's options.
        training_seed: Seed of the training.
        training_steps: Number of optimiser steps that the weights have had, if it is known.
        checkpoint: Name of the checkpoint's file, if it came from one.
        checkpoint_sha256: Hash of that file.
        checkpoint_rule: Rule by which it was chosen, such as ``last``.
        mlflow: ``run_id`` and ``tracking_uri`` of the MLflow run that it came from, if any.
        inputs: Sizes of what a decision takes for each environment, by name and in order:
            ``observations``; ``goals`` or ``rewards`` where it is told them; ``noise``, standard
            normal numbers, and ``state``, where it has them.
        outputs: Sizes of what it gives: ``actions``, and ``next_state``.
        state: Names and shapes of the parts of the state, in the order in which it has them.
        version: Of the library.
    """

    method: str
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    config_sha256: str = ""
    training_seed: int = 0
    training_steps: int | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    checkpoint_rule: str | None = None
    mlflow: Mapping[str, str] | None = None
    inputs: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    state: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    version: str = __version__

    def to_json(self) -> str:
        """Return the facts as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, where: object) -> PolicyFacts:
        """Undo ``to_json``; facts that a later version added are left out.

        Args:
            text: What ``to_json`` gave.
            where: The file that it stood in, for messages.

        Raises:
            ConfigError: It is no such text.
        """
        try:
            values = dict(json.loads(text))
            known = {one.name for one in fields(cls)}
            facts = cls(**{name: value for name, value in values.items() if name in known})
            DatasetSpec.from_dict(facts.spec)
            for sizes in (facts.inputs, facts.outputs):
                if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
                    raise ValueError(f"sizes are {sizes}")
        except (ValueError, TypeError, AttributeError, LitOffRLError) as error:
            raise ConfigError(f"{where}: no policy of lit-offrl ({reason(error)}).") from error
        return facts


def facts_of(module: OfflineModule, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a module that it takes no graph to know, by their names.

    Args:
        module: Trained method.
        options: Options of its policy.

    Raises:
        ConfigError: It was never trained on a dataset.
    """
    if module.spec is None:
        raise ConfigError("This module was never trained on a dataset: fit it, then export it.")
    hyperparameters = {k: v for k, v in module.hparams.items() if not k.startswith("_")}
    found: dict[str, Any] = {
        "method": type(module).__name__,
        "policy_options": dict(options),
        "spec": module.spec.to_dict(),
        "config_sha256": config_sha256(hyperparameters),
        "training_seed": module.seed,
    }
    path = module.loaded_from
    if path is not None and path.is_file():
        checkpoint = read_checkpoint(path)
        found |= {
            "training_steps": checkpoint.get("global_step"),
            "checkpoint": path.name,
            "checkpoint_sha256": file_sha256(path),
            "checkpoint_rule": checkpoint_rule(path, checkpoint),
            "mlflow": next(iter(mlflow_runs(checkpoint[CHECKPOINT_KEY])), None),
        }
    return found
