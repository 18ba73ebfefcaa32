"""Estimates of a DVF: values and future states.

Nothing here takes part in a training step.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.views import FutureStateBatch
from lit_offrl.figures import value_against_return
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.dvf_value import DiffusedValue
from lit_offrl.modules.occupancy import History, OccupancyModel

_VALUE_BATCHES, _VALUE_SAMPLES = 2, 32  # for the comparison of values with returns in validation


class EstimatesModule(OfflineModule):
    """Estimates by the current networks of a DVF, which validation compares with the data's
    returns.

    Attributes:
        occupancy: Model of the occupancy, ρ.
        train_part: What is trained: ``occupancy`` has no values.
        gamma: Discount γ in [0, 1).
    """

    occupancy: OccupancyModel
    train_part: str
    gamma: float
    late_metrics = ("val/value_correlation",)
    _compared: tuple[Tensor, ...] = ()  # values and returns of held-out states

    @property
    @abstractmethod
    def diffused_value(self) -> DiffusedValue:
        """V of the policy that acts."""

    @torch.no_grad()
    def value(self, observations: Tensor, *, seed: int = 0, **options: Any) -> Tensor:
        """Return V(s) (B,) in the reward's units for raw observations (B, o).

        Args:
            observations: Raw observations (B, o), on the module's device.
            seed: Seed of the noise; the same seed gives the same value.
            **options: Options of ``DiffusedValue``: history, policy, steps_left, num_samples and
                actions.
        """
        return self.diffused_value(
            observations, ShardedGenerator(seed, device=self.device), **options
        )

    @torch.no_grad()
    def sample_future(
        self,
        observations: Tensor,
        offsets: Tensor,
        *,
        history: History | None = None,
        policy: Tensor | None = None,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Draw states Δt steps after the given ones.

        Args:
            observations: Raw observations (B, o).
            offsets: Δt in steps (B, n), one sample each.
            history: What came before, raw; needed by the sequential representation.
            policy: Scalar representation (B,).
            seed: Seed of the noise.

        Returns:
            Raw states (B, n, o) and which of them are absorbed, bool (B, n).
        """
        if history is not None:
            history = history.normalised(self.normalizer)
        observations = self.normalizer.normalize(observations)
        condition = self.occupancy.condition(observations, offsets.float(), history, policy)
        noise = ShardedGenerator(seed, device=self.device)
        states, absorbed = self.occupancy.sample(condition, noise)
        return self.normalizer.denormalize(states), absorbed

    @torch.no_grad()
    def predicted_reward(self, observations: Tensor) -> Tensor:
        """Return r(s, π(s)) (…) in the reward's units, for raw observations (…, o)."""
        observations = self.normalizer.normalize(observations)
        return self.diffused_value.reward_of(observations, self.diffused_value.actor(observations))

    # ---- validation ----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the values of the last validation."""
        self._compared = ()

    def validation_step(self, batch: FutureStateBatch, batch_idx: int) -> None:
        """Log the losses; for the first batches, keep values with the returns of the data."""
        super().validation_step(batch, batch_idx)
        if self.train_part == "occupancy" or batch.returns is None or batch_idx >= _VALUE_BATCHES:
            return
        values = self.value(
            batch.observations,
            history=History.before(batch),
            policy=batch.policy,
            num_samples=_VALUE_SAMPLES,
            seed=batch_idx,
        )
        self._compared += (torch.stack([values, batch.returns]).float().cpu(),)

    def on_validation_epoch_end(self) -> None:
        """Log the correlation of values and returns of this process's held-out states."""
        if self._compared:
            both = torch.cat(self._compared, dim=1)
            if bool((both.std(dim=1) > 0).all()):
                correlation = torch.corrcoef(both)[0, 1]
                self.log("val/value_correlation", correlation, rank_zero_only=True)

    def figures(self) -> dict[str, Figure]:
        """Values against discounted returns, for the held-out states of the last validation."""
        if not self._compared:
            return {}
        values, returns = torch.cat(self._compared, dim=1).numpy()
        return {"value_against_return": value_against_return(values, returns, self.gamma)}
