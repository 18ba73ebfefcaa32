"""What the second and the third stage share: the first stage inside, and snippets' latents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError
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
from lit_offrl.nets import AutoregressiveDecoder

PosteriorKind = Literal["sample", "mean"]
PosteriorsFrom = Literal["cached", "online"]


class StagedModule(OfflineModule):
    """A stage that holds the earlier stages, frozen, and learns from the latents of snippets.

    Args:
        posterior: Which latent represents a snippet: a ``sample`` of its posterior, drawn anew in
            each step, or the posterior's ``mean``.
        posteriors: When snippets are encoded: ``cached`` encodes each one once and stores its
            posterior in a table, ``online`` encodes a batch in each step.
        snippet_every: Distance in rows, 1 to H, between the beginnings of snippets in an episode; a
            larger one leaves fewer snippets to encode and to store (see ``Snippets``).
        **kwargs: Options of every method, see ``OfflineModule``.
    """

    cpu_advice = LDCQStage1Module.cpu_advice

    def __init__(
        self,
        *args: Any,
        posterior: PosteriorKind = "sample",
        posteriors: PosteriorsFrom = "cached",
        snippet_every: Annotated[int, "[1, inf)"] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.posterior_kind, self.posteriors_from = posterior, posteriors
        self.snippet_every = snippet_every
        self.earlier: StageRecord = {}
        """Record of the earlier stage, which must have been trained on the same data."""
        self.storable = False
        """Whether the data are those of training, for which tables are stored."""
        self.tables: dict[str, RowTable] = {}
        """What frozen networks compute from the data, once it is needed."""

    @property
    def first(self) -> LDCQStage1Module:
        """The first stage, of this one or of the second one within."""
        holder: Any = getattr(self, "stage2", None) or self
        return holder.stage1

    def take(self, name: str, source: str | dict[str, Any], kind: type[M]) -> M:
        """Load an earlier stage into this one.

        Its record replaces the option that named it, so that this stage's checkpoint can be loaded
        without the other's.

        Raises:
            ConfigError: The stage cannot be loaded, or does not fit the data.
        """
        dims = {"observation_dim": self.observation_dim, "action_dim": self.action_dim}
        stage, record = load_stage(source, kind, **dims)
        self.hparams[name] = self.earlier = record
        self.normalizer.load_state_dict(stage.normalizer.state_dict())
        return stage

    def setup(self, stage: str) -> None:
        """Refuse to train on other data than those of the earlier stage.

        Other data may be validated, tested and predicted on, but no tables are stored for them.
        """
        super().setup(stage)
        self.tables, self.storable = {}, False
        if self.datamodule is not None:
            if stage == "fit":
                require_same_data(self.earlier, self.datamodule.spec)
            self.storable = is_same_data(self.earlier, self.datamodule.spec)
            self._require_bounds()

    def _require_bounds(self) -> None:
        """Refuse action bounds in the data's options that are not those of stage 1's decoder."""
        options = (getattr(self.datamodule, name, None) for name in ("action_low", "action_high"))
        decoder, spec = self.first.decoder, self.datamodule.spec
        if not isinstance(decoder, AutoregressiveDecoder) or all(one is None for one in options):
            return
        for own, given in ((decoder.low, spec.action_low), (decoder.high, spec.action_high)):
            if not torch.equal(own.cpu(), torch.tensor(given).float()):
                raise ConfigError(
                    "action_low and action_high are not those that stage 1's decoder was trained "
                    f"with ({ranges(decoder.low.tolist(), decoder.high.tolist())}): leave them "
                    "out, or train stage 1 anew."
                )

    def batched_dataset(self, dataset: OfflineDataset) -> OfflineDataset:
        """Return the data that batches are made of, see ``LDCQStage1Module``."""
        return self.first.batched_dataset(dataset)

    def train(self, mode: bool = True) -> StagedModule:
        """Set the mode of this stage; earlier ones stay in eval mode."""
        super().train(mode)
        for child in self.children():
            if isinstance(child, OfflineModule):
                child.eval()
        return self

    @torch.no_grad()
    def moments(self, batch: SnippetBatch) -> tuple[Tensor, Tensor]:
        """Return μ and σ (B, z) of the posteriors of a batch's snippets."""
        if self.posteriors_from == "online" or not self.storable:
            return self.first.posterior(batch)
        if "posteriors" not in self.tables:
            record = self.earlier  # of stage 1, whatever stage this is, so that they share a file
            while "stage1" in record["hyper_parameters"]:
                record = record["hyper_parameters"]["stage1"]
            first = self.first
            made = Tables(self, record).posteriors(first.posterior, first.latent_dim)
            self.tables["posteriors"] = made
        mean, std = self.tables["posteriors"].at(batch.rows).unbind(1)
        return mean, std

    def latents_of(self, batch: SnippetBatch) -> Tensor:
        """Return latents (B, z) of a batch's snippets."""
        mean, std = self.moments(batch)
        if self.posterior_kind == "mean":
            return mean
        return mean + std * self.noise.normal(mean.shape)
