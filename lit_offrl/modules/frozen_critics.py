"""Advantages from critics that are trained no more (ACD, Eq. 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.quiet import say
from lit_offrl.datasets.labels import critic_hash, labels_path, load_labels, save_labels
from lit_offrl.datasets.rows import as_tensor
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import (
    AdvantageBatch,
    AdvantageLabelled,
    Transitions,
    View,
)
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.checkpoints import load_parts, read_checkpoint
from lit_offrl.modules.critic_guided import CriticGuidedModule

_ROWS = 65_536  # labelled at once


class FrozenCriticsModule(CriticGuidedModule):
    """An actor whose critics are trained beside it, or were trained before and label all rows once.

    Args:
        labels: ``joint`` labels each batch by the critics of that step (Algorithm 1);
            ``precomputed`` labels all rows once by frozen critics (Eq. 3).
        critic: Checkpoint with the critics for precomputed labels: of an IQLModule, or of any
            method with IQL's critics.
        **kwargs: Options of ``CriticGuidedModule``.

    Raises:
        ConfigError: Only one of precomputed labels and a critic's checkpoint is given.
    """

    def __init__(
        self,
        *args: Any,
        labels: Literal["joint", "precomputed"] = "joint",
        critic: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if (labels == "precomputed") != (critic is not None):
            raise ConfigError(
                f"labels is '{labels}' and critic is {critic}: precomputed labels need a critic's "
                "checkpoint, joint ones train their own."
            )
        self.frozen_from = critic
        if critic is not None:
            self.critics.requires_grad_(False)

    def load_critics(self) -> None:
        """Take critics and normaliser from the critic's checkpoint, or from the run's own.

        The run's own has them, too, and the other may have gone. A line says where they were
        trained with another γ or expectile than this module names, for they stay as they are.

        Raises:
            ConfigError: The checkpoint has no such critics, untrained ones or others than this
                module's, or they see their observations otherwise.
        """
        path = self.resumed_from or self.frozen_from
        assert path is not None  # labels are precomputed
        checkpoint = read_checkpoint(path)
        state, hyper = checkpoint["state_dict"], checkpoint.get("hyper_parameters", {})
        if not any(key.startswith("critics.") for key in state):
            raise ConfigError(
                f"critic: {path} has no critics of IQL; give a checkpoint of IQLModule, IDQLModule "
                "or ACDModule."
            )
        if hyper.get("bootstrap") is False:
            raise ConfigError(
                f"critic: {path} was trained with bootstrap false, so its Q never was; give one "
                "trained with bootstrap true, or a checkpoint of IQLModule."
            )
        if hyper.get("values") == "returns":
            raise ConfigError(
                f"critic: {path} has values of returns and no Q; give one with values expectile, "
                "or a checkpoint of IQLModule."
            )
        theirs, ours = hyper.get("normalize", False), self.normalize
        same = (True, "min_max")  # two names of one scaling
        if theirs != ours and not (theirs in same and ours in same):
            raise ConfigError(
                f"critic: {path} was trained with normalize {theirs}, this model has {ours}: give "
                "both the same."
            )
        their_units, our_units = hyper.get("activation", "relu"), self.activation
        if their_units != our_units:
            raise ConfigError(
                f"critic: {path} was trained with activation {their_units}, this model has "
                f"{our_units}: give both the same."
            )
        critics = self.critics
        named = {
            "gamma": (hyper.get("gamma", critics.gamma), critics.gamma),
            "expectile": (hyper.get("expectile", critics.expectile), critics.expectile),
            "n_step": (hyper.get("n_step") or hyper.get("chunk", 1), self.n_step or self.chunk),
        }
        for name, (there, here) in named.items():
            if there != here:
                say(
                    f"critic: {path} was trained with {name} {there}, and its labels are of that; "
                    f"the {here} of this model trains nothing."
                )
        refusal = (
            f"critic: {path} does not fit this model; give both the same data, chunk, hidden and "
            "layer_norm"
        )
        load_parts(self, ("critics", "normalizer"), state, refusal)

    def view(self) -> View:
        """``Transitions``; with precomputed labels those of the frozen critics beside them."""
        if self.frozen_from is None:
            return self.transitions()
        self.load_critics()
        return LabelledBy(self)

    def setup(self, stage: str) -> None:
        """Set up as any method; labels of a view that the user chose must be the critics' own.

        Raises:
            ConfigError: The critics' checkpoint cannot be used.
            DatasetError: The labels are of other critics.
        """
        view = getattr(self.datamodule, "view", None)
        # view() has loaded them, where it was called
        if self.frozen_from is not None and stage == "fit" and not isinstance(view, LabelledBy):
            self.load_critics()
            if isinstance(view, AdvantageLabelled):
                made_by = critic_hash(self.critics.state_dict())
                load_labels(Path(view.labels), self.datamodule.dataset, made_by)
        super().setup(stage)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The actor, and the critics unless they are frozen."""
        groups = super().parameter_groups()
        return groups if self.frozen_from is None else {"actor": groups["actor"]}

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The actor's loss and, unless labels are precomputed, the critics'."""
        if self.frozen_from is None:
            return super().losses(batch)
        if not isinstance(batch, AdvantageBatch):
            raise ConfigError(
                f"labels is 'precomputed', but the view gives a {type(batch).__name__}: leave the "
                "view to the model, or set it to AdvantageLabelled."
            )
        observations = self.normalize_observations(batch.observations)
        condition = self.actor_condition(batch, batch.advantages)
        return {"actor": self.actor_loss(observations, batch.actions, condition)}

    def after_step(self) -> None:
        """Move the target critics, unless they are frozen."""
        if self.frozen_from is None:
            super().after_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the frozen critics' checkpoint too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["critic"] = self.frozen_from


class LabelledBy(AdvantageLabelled):
    """``AdvantageLabelled`` by a module's frozen critics, which label what has no labels yet."""

    def __init__(self, module: FrozenCriticsModule) -> None:
        super().__init__("", critic_hash(module.critics.state_dict()), module.chunk)
        object.__setattr__(self, "_module", module)

    def prepare(self, dataset: OfflineDataset) -> OfflineDataset:
        """Read the labels stored with the dataset's file, or compute them, and add them as a
        column."""
        assert self.critic is not None
        path = labels_path(dataset.spec, self.critic)
        if not path.is_file():
            save_labels(path, self._label(dataset), dataset, self.critic)
        return AdvantageLabelled(str(path), self.critic, self.chunk).prepare(dataset)

    def _label(self, dataset: OfflineDataset) -> np.ndarray:
        """Return the advantages of all rows of a dataset, (N,), float32."""
        module: FrozenCriticsModule = self._module  # type: ignore[attr-defined]
        view, parts = Transitions(chunk=self.chunk).bind(dataset), []
        observations = as_tensor(dataset.column("observations"), "cpu")
        for rows in torch.arange(len(dataset)).split(_ROWS):
            pair = (part.to(module.device) for part in (observations[rows], view.actions(rows)))
            parts.append(module.advantages(*pair).float().cpu().numpy())
        return np.concatenate(parts)
