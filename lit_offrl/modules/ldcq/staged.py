"""What the second and third stage share: the first one inside, and latents of the windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.bounds import ranges
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import SnippetBatch
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.ldcq.stage1 import LDCQStage1Module
from lit_offrl.modules.ldcq.stages import (
    M,
    StageRecord,
    is_same_data,
    load_stage,
    require_same_data,
)
from lit_offrl.modules.ldcq.tables import RowTable, Tables
from lit_offrl.modules.optimizer import Decay
from lit_offrl.nets import AutoregressiveDecoder

PosteriorKind = Literal["sample", "mean"]
PosteriorsFrom = Literal["cached", "online"]


class StagedModule(OfflineModule):
    """A stage that holds the frozen earlier ones.

    Args:
        observation_dim: o.
        action_dim: a.
        action_low: lower bounds (a,).
        action_high: upper bounds (a,).
        posterior: a window's latent is a ``sample`` of its posterior, drawn anew in each step, or
            its ``mean``.
        posteriors: ``cached`` encodes each window of the data once, beside the dataset; ``online``
            encodes in each step.
        window_every: windows begin at every so many rows of an episode.
        learning_rate: Adam's rate.
        decay: of the rate.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: a number is out of its range.
    """

    cpu_advice = LDCQStage1Module.cpu_advice

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: Sequence[float] | None,
        action_high: Sequence[float] | None,
        *,
        posterior: PosteriorKind,
        posteriors: PosteriorsFrom,
        window_every: int,
        learning_rate: float,
        decay: Decay,
        seed: int,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            action_low,
            action_high,
            learning_rate=learning_rate,
            decay=decay,
            seed=seed,
        )
        require_in("[1, inf)", window_every=window_every)
        self.posterior_kind, self.posteriors_from = posterior, posteriors
        self.window_every = window_every
        self.taken: StageRecord = {}
        """Record of the earlier stage, whose data must be this stage's."""
        self.storable = False
        """Whether the data are those of training, for whose windows latents are stored."""
        self._posteriors: RowTable | None = None

    @property
    def first(self) -> LDCQStage1Module:
        """The first stage."""
        raise NotImplementedError(f"{type(self).__name__} must say where stage 1 is.")

    def take(self, name: str, source: str | dict[str, Any], kind: type[M], action_dim: int) -> M:
        """Load an earlier stage into this one, after ``save_hyperparameters``.

        Its record takes the place of the option that named it, so that this stage's checkpoint can
        be loaded without the other's.

        Raises:
            ConfigError: it cannot be had, or does not fit the data.
        """
        observation_dim = len(self.normalizer.low)
        stage, record = load_stage(
            source, kind, observation_dim=observation_dim, action_dim=action_dim
        )
        self.hparams[name] = record
        self.taken = record
        self.normalizer.load_state_dict(stage.normalizer.state_dict())
        return stage

    def setup(self, stage: str) -> None:
        """Refuse to train on other data than those of the earlier stage.

        Other data may be validated, tested and predicted on: nothing is stored for them.
        """
        super().setup(stage)
        self._posteriors, self.storable = None, False
        if self.datamodule is not None:
            if stage == "fit":
                require_same_data(self.taken, self.datamodule.spec)
            self.storable = is_same_data(self.taken, self.datamodule.spec)
            self._require_bounds()

    def _require_bounds(self) -> None:
        """Refuse action bounds that are asked for and are not those of stage 1's decoder.

        Raises:
            ConfigError: they differ.
        """
        options = (getattr(self.datamodule, name, None) for name in ("action_low", "action_high"))
        decoder, spec = self.first.decoder, self.datamodule.spec
        if not isinstance(decoder, AutoregressiveDecoder) or all(one is None for one in options):
            return
        for own, asked in ((decoder.low, spec.action_low), (decoder.high, spec.action_high)):
            if not torch.equal(own.cpu(), torch.tensor(asked).float()):
                raise ConfigError(
                    "action_low and action_high are not those that stage 1's decoder was trained "
                    f"with ({ranges(decoder.low.tolist(), decoder.high.tolist())}): leave them "
                    "out, or train stage 1 anew."
                )

    def stand_in(self, dataset: OfflineDataset) -> OfflineDataset:
        """The data of which batches are made, as stage 1 says."""
        return self.first.stand_in(dataset)

    def train(self, mode: bool = True) -> StagedModule:
        """As in any module, but earlier stages stay in eval mode."""
        super().train(mode)
        for child in self.children():
            if isinstance(child, OfflineModule):
                child.eval()
        return self

    def require_windows(self, batch: Any) -> None:
        """Refuse a batch that is not of windows of stage 1's H steps.

        Raises:
            ConfigError: it is none.
        """
        if not isinstance(batch, SnippetBatch) or batch.mask.shape[1] != self.first.horizon:
            raise ConfigError(
                f"{type(self).__name__} trains on Snippets of its stage 1's horizon, "
                f"{self.first.horizon}: leave data.init_args.view to the model, or set it to those."
            )

    @torch.no_grad()
    def moments(self, batch: SnippetBatch) -> tuple[Tensor, Tensor]:
        """μ and σ (B, z) of the posteriors of a batch's windows."""
        if self.posteriors_from == "online" or not self.storable:
            return self.first.posterior(batch)
        if self._posteriors is None:
            record = self.taken  # of stage 1, whatever stage this is: they share its file
            while "stage1" in record["hyper_parameters"]:
                record = record["hyper_parameters"]["stage1"]
            first = self.first
            self._posteriors = Tables(self, record).posteriors(first.posterior, first.latent_dim)
        mean, std = self._posteriors.at(batch.rows).unbind(1)
        return mean, std

    def latents_of(self, batch: SnippetBatch) -> Tensor:
        """Latents (B, z) of a batch's windows."""
        mean, std = self.moments(batch)
        if self.posterior_kind == "mean":
            return mean
        return mean + std * self.noise.normal(mean.shape)
