"""The value of a state, from where a policy goes next and the rewards there (DVF, Eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator, truncated_geometric
from lit_offrl.datasets.normalizers import MinMaxNormalizer
from lit_offrl.datasets.views import FutureStateBatch
from lit_offrl.modules.occupancy import History, OccupancyModel
from lit_offrl.nets import symexp

CHAINS = 8192
"""Future states that are sampled at once, which bounds the memory."""


@dataclass(frozen=True)
class DiffusedValue:
    """V(s) of a policy, estimated with networks that somebody else owns and trains.

    V(s) = r(s, π(s)) + γ (1 − γ^H)/(1 − γ) · mean of r(s', π(s')) over n samples
    s' ~ ρ(· | s, φ(π)), and r = 0 in the absorbing state (paper: Eq. 3 and Algorithm 1, line 6,
    which prints a sum and leaves r(s, π(s)) out; here the mean, since only it does not grow with
    n).

    Attributes:
        normalizer: Scales observations for all networks.
        occupancy: Model of the occupancy, ρ.
        reward: Reward model r, which predicts symlog rewards from normalised observations and
            actions.
        reward_limits: Lowest and highest symlog reward of the data (2,), beyond which no predicted
            reward goes.
        actor: Policy π, from normalised observations (…, o) to actions (…, a).
        gamma: Discount γ in [0, 1).
        max_offset: Largest Δt that is sampled, in steps; None sets no limit.
        num_samples: Number n of states drawn for one value.
        latest_policy: The φ that ``next_values`` takes for all rows; None takes each row's own.
    """

    normalizer: MinMaxNormalizer
    occupancy: OccupancyModel
    reward: nn.Module
    reward_limits: Tensor
    actor: nn.Module
    gamma: float
    max_offset: int | None
    num_samples: int
    latest_policy: float | None = None

    def __call__(
        self,
        observations: Tensor,
        noise: ShardedGenerator,
        *,
        history: History | None = None,
        policy: Tensor | None = None,
        steps_left: Tensor | None = None,
        num_samples: int | None = None,
        actions: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return V(s), the expected discounted return from s under a policy.

        φ says where π goes and ``actions`` what it does there; both must be of the same policy. The
        module's own actor imitates all logged policies together, or is better than they are. If π
        is one of several logged policies, the actor is not π, so give ``actions``.

        Args:
            observations: Raw observations (B, o), on the networks' device.
            noise: Source of all random numbers.
            history: What came before, raw; needed by the sequential representation.
            policy: Scalar representation (B,).
            steps_left: H, the number of steps before a time limit (B,); endless by default.
            num_samples: n, in place of this object's.
            actions: π, from raw observations (…, o) to actions (…, a) in the environment's units,
                drawn where π is random; ``actor`` by default.

        Returns:
            Values (B,) in the reward's units.
        """
        normalised = self.normalizer.normalize(observations)
        rows, samples = len(observations), num_samples or self.num_samples
        limit = normalised.new_full((rows, 1), float(self.max_offset or math.inf))
        horizon = limit.new_full((rows,), math.inf)
        if steps_left is not None:
            horizon = steps_left.to(limit)
            limit = torch.minimum(limit, horizon.clamp_min(1.0)[:, None])
        # stratified, one Δt from each n-th of its distribution: the same mean with less noise
        slices = torch.arange(samples, device=normalised.device)
        # (float64: in float32 the last slice rounds up to 1, an endless Δt)
        uniforms = (slices + noise.uniform((rows, samples), torch.float64)) / samples
        offsets = truncated_geometric(uniforms, self.gamma, limit)
        if history is not None:
            history = history.normalised(self.normalizer)
        condition = self.occupancy.condition(normalised, offsets.float(), history, policy)
        states, absorbed = self.occupancy.sample(condition, noise)
        everywhere = torch.cat([normalised[:, None], states], dim=1)
        if actions is None:
            taken = self.actor(everywhere)
        else:
            taken = actions(self.normalizer.denormalize(everywhere))
        rewards = self.reward_of(everywhere, taken)
        future = torch.where(absorbed, 0.0, rewards[:, 1:]).mean(dim=1)
        weight = self.gamma * (1.0 - self.gamma**horizon) / (1.0 - self.gamma)
        return rewards[:, 0] + weight * future

    def next_values(self, batch: FutureStateBatch, noise: ShardedGenerator) -> Tensor:
        """Return V(s_{t+1}) (B,) of each row's policy or the latest one, 0 where it is terminal."""
        policy, history = batch.policy, History.before(batch)
        if self.latest_policy is not None and policy is not None:
            policy = torch.full_like(policy, self.latest_policy)
        if history is not None:
            history = history.advanced(batch.observations, batch.actions)
        values = self(batch.next_observations, noise, history=history, policy=policy)
        return torch.where(batch.terminals, 0.0, values)

    def reward_of(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return r(s, a) (…) in the reward's units, for normalised observations (…, o)."""
        predicted = self.reward(torch.cat([observations, actions], dim=-1)).squeeze(-1).float()
        return symexp(predicted.clamp(self.reward_limits[0], self.reward_limits[1]))

    def rewards(self, batch: FutureStateBatch) -> Tensor:
        """Return the data's rewards (B,), and predicted ones where a row has no label."""
        actions, rewards = labels(batch)
        if batch.reward_mask is None:
            return rewards
        predicted = self.reward_of(self.normalizer.normalize(batch.observations), actions)
        return torch.where(batch.reward_mask, rewards, predicted)


def labels(batch: FutureStateBatch) -> tuple[Tensor, Tensor]:
    """Return actions (B, a) and rewards (B,), without which only the occupancy can be trained.

    Raises:
        ConfigError: The dataset lacks one of them.
    """
    if batch.actions is None or batch.rewards is None:
        missing = "actions" if batch.actions is None else "rewards"
        raise ConfigError(
            f"the dataset has no column '{missing}'; "
            "set train to 'occupancy' to pre-train on states alone."
        )
    return batch.actions, batch.rewards
