"""Values from where a policy goes next and what is paid there: DVF's estimates and their use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator, truncated_geometric
from lit_offrl.datasets.views import FutureStateBatch
from lit_offrl.figures import value_against_return
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.history import History
from lit_offrl.modules.occupancy import OccupancyModel
from lit_offrl.modules.returns import lambda_returns
from lit_offrl.nets import GaussianPolicy, symexp

CHAINS = 8192  # futures sampled at once: bounds the memory
_CACHE_STREAM, _CACHE_KEY = 2, "dvf_cached_values"
_VALUE_BATCHES, _VALUE_SAMPLES = 2, 32  # for the comparison of values with returns in validation


class DiffusedValues(OfflineModule):
    """The half of DVF that turns its networks into values; ``DVFModule`` trains them.

    V(s) = r(s, π(s)) + γ (1 − γ^H)/(1 − γ) · mean of r(s', π(s')) over n samples
    s' ~ ρ(· | s, φ(π)), and r = 0 in the absorbing state (paper: Eq. 3 and Algorithm 1, line 6,
    which prints a sum and leaves r(s, π(s)) out; here the mean, since only it does not grow with
    n). π is the averaged actor, the one that acts.
    """

    occupancy: OccupancyModel
    reward: nn.Module
    reward_limits: Tensor
    actor: GaussianPolicy | None
    acting: GaussianPolicy | None
    gamma: float
    max_offset: int | None
    num_samples: int
    latest_policy: float | None
    """The φ that V(s_{t+1}) is asked with in training; None asks with that of each row."""
    late_metrics = ("val/value_correlation",)
    return_trace: float
    """λ of the returns that advantages are measured by."""
    _cache: Tensor | None
    _seen_values: list[Tensor]

    @torch.no_grad()
    def value(
        self,
        observations: Tensor,
        *,
        history: History | None = None,
        policy: Tensor | None = None,
        steps_left: Tensor | None = None,
        num_samples: int | None = None,
        actions: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """V(s), the expected discounted return from s under a policy, in the reward's units.

        V(s) = r(s, π(s)) + γ (1 − γ^H)/(1 − γ) · mean of r(s', π(s')) over s' ~ ρ(· | s, φ(π)),
        with Δt cut off at H, and r = 0 in the absorbing state (Eq. 3).

        φ says where π goes and ``actions`` what it does there; both must be of the same policy. The
        module's own actor clones all logged policies together, or is better than they are: for one
        of several logged policies neither is π, so give ``actions``.

        Args:
            observations: raw (B, o), on the module's device.
            history: what came before, raw; needed by the sequential representation.
            policy: scalar representation (B,).
            steps_left: H, steps before a time limit (B,); endless by default.
            num_samples: n; the module's own by default.
            actions: π, from raw observations (…, o) to actions (…, a) in the environment's units,
                drawn where π is random; the acting actor by default.
            seed: names the noise; the same seed gives the same value.

        Returns:
            (B,) values.
        """
        normalised = self.normalizer.normalize(observations)
        noise = ShardedGenerator(seed, device=self.device)
        history = self._normalised(history)
        return self._value(normalised, history, policy, noise, steps_left, num_samples, actions)

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
            observations: raw (B, o).
            offsets: Δt, (B, n): one sample each.
            history: as for :meth:`value`.
            policy: scalar representation (B,).
            seed: names the noise.

        Returns:
            Raw states (B, n, o) and which of them are absorbed, bool (B, n).
        """
        condition = self.occupancy.condition(
            self.normalizer.normalize(observations),
            offsets.float(),
            self._normalised(history),
            policy,
        )
        noise = ShardedGenerator(seed, device=self.device)
        states, absorbed = self.occupancy.sample(condition, noise)
        return self.normalizer.denormalize(states), absorbed

    @torch.no_grad()
    def predicted_reward(self, observations: Tensor) -> Tensor:
        """r(s, π(s)) in the reward's units (…), for raw observations (…, o)."""
        normalised = self.normalizer.normalize(observations)
        return self._reward(normalised, self._acting()(normalised))

    def _value(
        self,
        observations: Tensor,
        history: History | None,
        policy: Tensor | None,
        noise: ShardedGenerator,
        steps_left: Tensor | None = None,
        num_samples: int | None = None,
        actions: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """:meth:`value` of normalised observations (B, o), with noise given."""
        actor = self._acting()  # whoever acts, without one there is no reward model either
        rows, samples = observations.shape[0], num_samples or self.num_samples
        limit = torch.full((rows, 1), float(self.max_offset or math.inf), device=self.device)
        horizon = limit.new_full((rows,), math.inf)
        if steps_left is not None:
            horizon = steps_left.to(limit)
            limit = torch.minimum(limit, horizon.clamp_min(1.0)[:, None])
        # stratified, one Δt from each n-th of its distribution: the same mean with less noise
        slices = torch.arange(samples, device=self.device)
        # (float64: in float32 the last slice rounds up to 1, an endless Δt)
        uniforms = (slices + noise.uniform((rows, samples), torch.float64)) / samples
        offsets = truncated_geometric(uniforms, self.gamma, limit)
        condition = self.occupancy.condition(observations, offsets.float(), history, policy)
        states, absorbed = self.occupancy.sample(condition, noise)
        everywhere = torch.cat([observations[:, None], states], dim=1)
        if actions is None:
            taken = actor(everywhere)
        else:
            taken = actions(self.normalizer.denormalize(everywhere))
        paid = self._reward(everywhere, taken)
        later = torch.where(absorbed, 0.0, paid[:, 1:]).mean(dim=1)
        weight = self.gamma * (1.0 - self.gamma**horizon) / (1.0 - self.gamma)
        return paid[:, 0] + weight * later

    def _reward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """r(s, a) in the reward's units, within the data's range, for normalised (…, o)."""
        predicted = self.reward(torch.cat([observations, actions], dim=-1)).squeeze(-1).float()
        return symexp(predicted.clamp(self.reward_limits[0], self.reward_limits[1]))

    def _normalised(self, history: History | None) -> History | None:
        return None if history is None else history.normalised(self.normalizer)

    def _next_values(self, batch: FutureStateBatch, noise: ShardedGenerator) -> Tensor:
        """V(s_{t+1}) (B,) of each row's policy or the latest one, 0 where it is terminal."""
        policy = batch.policy
        if self.latest_policy is not None and policy is not None:
            policy = torch.full_like(policy, self.latest_policy)
        history = History.before(batch)
        if history is not None:
            history = history.advanced(batch.observations, batch.actions)
        values = self._value(
            self.normalizer.normalize(batch.next_observations),
            self._normalised(history),
            policy,
            noise,
        )
        return torch.where(batch.terminals, 0.0, values)

    @torch.no_grad()
    def _sample_cache(self) -> Tensor:
        """V(s_{t+1}) of every row of the training data, shared among the processes.

        Each row has draws of its own: Q averages their errors away over neighbouring rows, whereas
        draws that all rows share would leave the same error in all of them.
        """
        view = self.datamodule.train_view()
        cache = torch.zeros(int(view.rows.max()) + 1, device=self.device)
        chunks = view.rows.split(max(1, CHAINS // self.num_samples))
        step = self.trainer.global_step
        quiet = not self.trainer.is_global_zero or self.trainer.progress_bar_callback is None
        mine = range(self.global_rank, len(chunks), self.trainer.world_size)
        for number in tqdm(mine, "values", unit="chunk", leave=False, disable=quiet):
            index = chunks[number]
            unused = torch.zeros(len(index), view.num_uniforms, device=index.device)
            batch = self.transfer_batch_to_device(view.batch(index, unused), self.device, 0)
            keys = (self.seed, _CACHE_STREAM, step, number)  # the same for any number of processes
            noise = ShardedGenerator(*keys, device=self.device)
            cache[index.to(self.device)] = self._next_values(batch, noise)
        return self.trainer.strategy.reduce(cache, reduce_op="sum")

    @torch.no_grad()
    def _trajectory_returns(self, next_values: Tensor) -> Tensor:
        """The λ-return of every row of the training data, from cached values of the next states."""
        view = self.datamodule.train_view()
        rewards, terminals = torch.zeros_like(next_values), torch.zeros_like(next_values).bool()
        for index in view.rows.split(CHAINS):
            unused = torch.zeros(len(index), view.num_uniforms, device=index.device)
            batch = self.transfer_batch_to_device(view.batch(index, unused), self.device, 0)
            rows = index.to(self.device)
            rewards[rows], terminals[rows] = self._rewards_of(batch), batch.terminals
        known = torch.zeros_like(terminals)
        known[view.rows.to(self.device)] = True
        last = torch.from_numpy(self.datamodule.dataset.episodes[:, 1] - 1).to(self.device)
        followed = known.roll(-1)  # rows of other episodes in between are none that are known
        followed[last[last < len(followed)]] = False
        followed[-1] = False
        return lambda_returns(
            rewards, next_values, terminals, followed, gamma=self.gamma, trace=self.return_trace
        )

    def _rewards_of(self, batch: FutureStateBatch) -> Tensor:
        """The data's rewards (B,), and predicted ones where a row has no label."""
        actions, rewards = labels(batch)
        if batch.reward_mask is None:
            return rewards
        guess = self._reward(self.normalizer.normalize(batch.observations), actions)
        return torch.where(batch.reward_mask, rewards, guess)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the cached values too, which a resumed run must not sample anew."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_CACHE_KEY] = self._cache

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the cached values back."""
        super().on_load_checkpoint(checkpoint)
        cache = checkpoint.get(_CACHE_KEY)
        self._cache = None if cache is None else cache.to(self.device)

    def on_validation_epoch_start(self) -> None:
        """Forget the values of the last validation."""
        self._seen_values = []

    def validation_step(self, batch: FutureStateBatch, batch_idx: int) -> None:
        """Losses, and for the first batches values beside the returns that the data earned."""
        super().validation_step(batch, batch_idx)
        if self.train_part == "occupancy" or batch.returns is None:
            return
        if batch_idx < _VALUE_BATCHES:
            values = self.value(
                batch.observations,
                history=History.before(batch),
                policy=batch.policy,
                num_samples=_VALUE_SAMPLES,
                seed=batch_idx,
            )
            self._seen_values.append(torch.stack([values, batch.returns]).float().cpu())

    def on_validation_epoch_end(self) -> None:
        """Log how values and returns of held-out states go together (this process's states)."""
        if self._seen_values:
            both = torch.cat(self._seen_values, dim=1)
            if bool((both.std(dim=1) > 0).all()):
                correlation = torch.corrcoef(both)[0, 1]
                self.log("val/value_correlation", correlation, rank_zero_only=True)

    def figures(self) -> dict[str, Figure]:
        """Values against discounted returns, for the held-out states of the last validation."""
        if not self._seen_values:
            return {}
        values, returns = torch.cat(self._seen_values, dim=1).numpy()
        return {"value_against_return": value_against_return(values, returns, self.gamma)}

    def _acting(self) -> GaussianPolicy:
        if self.train_part == "occupancy" or self.acting is None:
            raise ConfigError(
                "This DVFModule was pre-trained on states alone and has no policy yet; train the "
                "rest with train 'heads' or 'all' and 'pretrained' set to this checkpoint."
            )
        return self.acting


def labels(batch: FutureStateBatch) -> tuple[Tensor, Tensor]:
    """Actions (B, a) and rewards (B,), without which only the occupancy can be trained.

    Raises:
        ConfigError: the dataset lacks one of them.
    """
    if batch.actions is None or batch.rewards is None:
        missing = "actions" if batch.actions is None else "rewards"
        raise ConfigError(
            f"the dataset has no column '{missing}'; "
            "set train to 'occupancy' to pre-train on states alone."
        )
    return batch.actions, batch.rewards
