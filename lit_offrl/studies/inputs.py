"""Inputs of studies, a checkpoint and data, and their results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lit_offrl.common.device import CPU, device
from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.common.files import file_sha256
from lit_offrl.common.ranges import SEEDS, require_fields
from lit_offrl.datasets.catalog import Reading
from lit_offrl.datasets.hdf5 import Format
from lit_offrl.datasets.minari_opening import PREFIX
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.sources import find_source
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.checkpoints import config_of, load_module, read_checkpoint
from lit_offrl.modules.dvf import DVFModule
from lit_offrl.tracking.references import Checkpoint


@dataclass(frozen=True)
class Study:
    """Results of a study.

    Attributes:
        numbers: All that the figure is drawn from, in plain types.
        metrics: The few numbers that summarise the study, by name.
        protocol: How the numbers were made.
        checkpoint: Checkpoint whose MLflow run they belong to, if any.
        experiment: MLflow's store and the id of the experiment that they belong to, if to any.
    """

    numbers: dict[str, Any]
    metrics: dict[str, float]
    protocol: dict[str, Any]
    checkpoint: Path | None = None
    experiment: tuple[str, str] | None = None

    def to_json(self) -> str:
        """Return all of it as JSON, a number that is none as null."""
        whole = {"metrics": self.metrics, "protocol": self.protocol, "numbers": self.numbers}
        return json.dumps(plain(whole), indent=1, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """Turn arrays into lists, numpy's numbers into Python's, and NaN and infinities into None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


@dataclass(frozen=True, kw_only=True)
class CheckpointStudy:
    """Options of a study of a checkpoint beside data.

    ``run`` raises a LitOffRLError if the checkpoint or the data do not fit the study.

    Args:
        ckpt_path: Checkpoint that the study is of: a path, runs:/ID or models:/NAME@ALIAS.
        data: Name or file of the dataset to compare with; held-out data are the better ones.
            Without it, the study takes what the checkpoint was trained on.
        seed: Seed of all that the study draws.
        device: Device that computes, such as cpu, cuda or cuda:1.

    Raises:
        ConfigError: A number is outside its interval.
    """

    ckpt_path: Checkpoint
    data: str | None = None
    seed: Annotated[int, SEEDS] = 0
    device: Annotated[str, device] = CPU

    def __post_init__(self) -> None:
        require_fields(self)


def load_dvf(path: Path, on: str, *, values: bool) -> DVFModule:
    """Load a DVFModule with a scalar φ(π), which has values if ``values`` are needed.

    Raises:
        ConfigError: The checkpoint is of something else.
    """
    module = load_module(path, on)
    if not isinstance(module, DVFModule):
        raise ConfigError(
            f"{path}: is a {type(module).__name__}; this figure is of a DVFModule: give its .ckpt."
        )
    if module.policy_representation != "scalar":
        raise ConfigError(
            f"{path}: its policy_representation is '{module.policy_representation}'; this figure "
            "needs one trained with model.init_args.policy_representation scalar."
        )
    if values and module.train_part == "occupancy":
        raise ConfigError(
            f"{path}: was trained with train 'occupancy' and has no values: train the rest with "
            "train 'heads' and 'pretrained' set to it."
        )
    return module


def load_data(given: str | None, checkpoint: Path, require: Sequence[str]) -> OfflineDataset:
    """Read the data given, else those that the checkpoint was trained on.

    Raises:
        ConfigError: No data are given, and the checkpoint names none.
        DatasetError: The data cannot be read, or lack a column.
    """
    parts = folder = None
    layout: Format = "auto"
    if given is None or given.startswith(PREFIX):
        config = config_of(read_checkpoint(checkpoint), checkpoint)
        options = config.get("data", {}).get("init_args", {})
        parts = options.get("minari_observations")
    if given is None:
        given, folder = options.get("dataset"), options.get("data_dir")
        layout = options.get("format", layout)
        if not isinstance(given, str) or not isinstance(folder, str | None):
            raise ConfigError(
                f"{checkpoint}: does not say what it was trained on: give --data NAME or FILE."
            )
    source = find_source(given, folder, Reading(layout), minari_observations=parts)
    dataset = source.read()
    for name in require:  # said here, since what to do depends on the column
        if name not in dataset.columns:
            how = " collect data of several planners" if name == "policy" else " choose other data"
            raise DatasetError(
                f"{dataset.spec.origin}: has no column '{name}', which this figure needs:{how}."
            )
    return dataset


def policies_of(dataset: OfflineDataset) -> np.ndarray:
    """Return the policy of each episode (E,), float32.

    Raises:
        DatasetError: The policy changes within an episode, or there are fewer than two.
    """
    column = dataset.column("policy")
    first = column[dataset.episodes[:, 0]]
    rows = np.flatnonzero(column != np.repeat(first, dataset.episode_lengths))
    if len(rows):
        raise DatasetError(
            f"{dataset.spec.origin}: column 'policy' changes within an episode, at row {rows[0]}:"
            " choose data in which each episode is of one policy."
        )
    if len(np.unique(first)) < 2:
        raise DatasetError(
            f"{dataset.spec.origin}: all rows are of one policy: choose data of several."
        )
    return first


def known_rewards(dataset: OfflineDataset) -> np.ndarray:
    """Return the reward of each row (N,), float64.

    Raises:
        DatasetError: The data have no rewards, or none in some rows.
    """
    rewards = dataset.column("rewards").astype(np.float64)
    known = dataset.columns.get("reward_mask", np.ones(len(rewards), bool))
    if not known.all():
        raise DatasetError(
            f"{dataset.spec.origin}: row {known.argmin()} has no reward (column 'reward_mask'), so"
            " returns are not known: choose data with all rewards."
        )
    return rewards


def protocol_of(checkpoint: Path, dataset: OfflineDataset | None, **more: Any) -> dict[str, Any]:
    """Say what a study's numbers are of: checkpoint, step, data, and whatever else is given."""
    saved = read_checkpoint(checkpoint)
    facts: dict[str, Any] = {
        "method": saved[CHECKPOINT_KEY]["class_path"].rpartition(".")[2],
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": file_sha256(checkpoint),
        "training_seed": saved.get("hyper_parameters", {}).get("seed"),
        "gradient_steps": saved.get("global_step"),
        "trained_on": (saved[CHECKPOINT_KEY].get("spec") or {}).get("name"),
        "trained_on_sha256": (saved[CHECKPOINT_KEY].get("spec") or {}).get("sha256"),
    }
    if dataset is not None:
        facts |= {"dataset": dataset.spec.name, "dataset_sha256": dataset.spec.sha256}
        facts["environment"] = dataset.spec.env_id
    return facts | more
