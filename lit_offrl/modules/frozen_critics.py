"""Advantages from critics that are trained no more (ACD, Eq. 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.labels import critic_hash, labels_path, save_labels
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import AdvantageLabelled
from lit_offrl.modules.checkpoints import load_parts, read_checkpoint

if TYPE_CHECKING:
    from lit_offrl.modules.critic_guided import CriticGuidedModule

_ROWS = 65_536  # labelled at once


def load_critics(module: CriticGuidedModule, path: str) -> None:
    """Take critics, and the normaliser, from another method's checkpoint.

    Raises:
        ConfigError: the checkpoint has no such critics, untrained ones or others than this
            module's, or they see their observations otherwise.
    """
    checkpoint = read_checkpoint(path)
    state, hyper = checkpoint["state_dict"], checkpoint.get("hyper_parameters", {})
    if not any(key.startswith("critics.") for key in state):
        raise ConfigError(
            f"critic: {path} has no critics of IQL; give a checkpoint of IQLModule, IDQLModule or "
            "ACDModule."
        )
    if hyper.get("bootstrap") is False:
        raise ConfigError(
            f"critic: {path} was trained with bootstrap false, so its Q never was; give one "
            "trained with bootstrap true, or a checkpoint of IQLModule."
        )
    theirs, ours = hyper.get("normalize", False), module.normalize
    same = (True, "min_max")  # two names of one scaling
    if theirs != ours and not (theirs in same and ours in same):
        raise ConfigError(
            f"critic: {path} was trained with normalize {theirs}, this model has {ours}: give both "
            "the same."
        )
    refusal = (
        f"critic: {path} does not fit this model; give both the same data, hidden and layer_norm"
    )
    load_parts(module, ("critics", "normalizer"), state, refusal)


@torch.no_grad()
def label(module: CriticGuidedModule, dataset: OfflineDataset) -> np.ndarray:
    """Advantages of all rows of a dataset, (N,), float32."""
    observations, actions = dataset.column("observations"), dataset.column("actions")
    parts = []
    for begin in range(0, len(dataset), _ROWS):
        rows = slice(begin, begin + _ROWS)
        states = torch.as_tensor(np.array(observations[rows]), device=module.device)
        taken = torch.as_tensor(np.array(actions[rows]), device=module.device)
        parts.append(module.advantages(states, taken).float().cpu().numpy())
    return np.concatenate(parts)


class LabelledBy(AdvantageLabelled):
    """``AdvantageLabelled`` by a module's frozen critics, which label what has no labels yet."""

    def __init__(self, module: CriticGuidedModule) -> None:
        super().__init__(labels="", critic=critic_hash(module.critics.state_dict()))
        object.__setattr__(self, "_module", module)

    def prepare(self, dataset: OfflineDataset) -> OfflineDataset:
        """Find the labels beside the dataset's file, or make them, and add them as a column."""
        assert self.critic is not None
        path = labels_path(dataset.spec, self.critic)
        if not path.is_file():
            save_labels(path, label(self._module, dataset), dataset, self.critic)  # type: ignore[attr-defined]
        return AdvantageLabelled(str(path), self.critic).prepare(dataset)
