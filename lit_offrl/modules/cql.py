"""Conservative Q-learning: a soft actor-critic whose critics are pushed down off the data.

Source: Kumar et al. 2020, "Conservative Q-learning for offline reinforcement learning".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import TanhGaussianPolicy, TwinCritic, frozen_copy, polyak_update_


class CQLModule(OfflineModule):
    """CQL(H): twin critics fitted to r + γ Q(s', a'), and lowered where the data have no actions.

    Each critic's loss is its squared TD error plus ``cql_weight`` · (T log ∫ exp(Q(s, a)/T) da −
    Q(s, a_data)), the integral estimated from actions drawn uniformly, from π(s) and from π(s'),
    each weighted by one over its density (paper: Eq. 4 and appendix F). The actor ascends
    min Q + α · entropy, where α holds the entropy at ``target_entropy``.

    Facts that codes differ in, and how they are here:

    * densities are those of actions scaled to [−1, 1], so that entropies and the conservative gap
      mean the same in every environment;
    * log ∫ is a mean over the 3n actions; the authors' code takes a sum, which adds log 3n to the
      gap (3.4 for n = 10), to be taken off a ``lagrange`` that was chosen for it;
    * the squared TD error has no factor of ½, unlike Eq. 4, like the authors' code;
    * only true terminals end the bootstrap, time limits do not.

    Args:
        observation_dim: o, size of an observation; linked from the data.
        action_dim: a, size of an action; linked from the data.
        action_low: lower bounds (a,); linked from the data.
        action_high: upper bounds (a,); linked from the data.
        gamma: discount γ.
        cql_weight: weight of the conservative term; 0 is a plain soft actor-critic.
        num_actions: n, actions of each of the three kinds a state.
        min_q_temperature: T of the log-sum-exp.
        lagrange: multiplies ``cql_weight`` by a number that is tuned until the gap (the term in
            brackets) is this large; off by default. The paper has 5 and 10 with the authors' sum.
        backup_entropy: whether the target has the entropy bonus, too: Q(s', a') − α log π(a' | s').
        temperature: fixes α; tuned by default.
        target_entropy: entropy that α is tuned to, nats; −a by default.
        warmup_steps: optimiser steps in which the actor clones the data's actions.
        tau: rate of the target critics: target ← (1 − τ) · target + τ · online.
        hidden: widths of the DenseNet MLPs with LayerNorm.
        learning_rate: Adam's rate, of all networks.
        seed: names the stream of all random numbers in training.

    Raises:
        ConfigError: options contradict each other or the data, or a number is out of its range.
    """

    log_temperature: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        *,
        gamma: float = 0.99,
        cql_weight: float = 1.0,
        num_actions: int = 10,
        min_q_temperature: float = 1.0,
        lagrange: float | None = None,
        backup_entropy: bool = False,
        temperature: float | None = None,
        target_entropy: float | None = None,
        warmup_steps: int = 0,
        tau: float = 0.005,
        hidden: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(observation_dim, learning_rate, seed)
        if action_dim < 1:
            raise ConfigError("CQL needs a dataset with actions and rewards; this has no actions.")
        require_in("[0, 1)", gamma=gamma)
        require_in("(0, 1]", tau=tau)
        require_in("[0, inf)", cql_weight=cql_weight, warmup_steps=warmup_steps)
        require_in("[1, inf)", num_actions=num_actions)
        require_in("(0, inf)", min_q_temperature=min_q_temperature, temperature=temperature)
        require_in("(-inf, inf)", lagrange=lagrange, target_entropy=target_entropy)
        if lagrange is not None and cql_weight == 0:
            raise ConfigError("lagrange multiplies cql_weight, which is 0: leave one of them out.")
        self.save_hyperparameters()
        self.gamma = gamma
        self.cql_weight = cql_weight
        self.num_actions = num_actions
        self.min_q_temperature = min_q_temperature
        self.lagrange = lagrange
        self.backup_entropy = backup_entropy
        self.target_entropy = -float(action_dim) if target_entropy is None else target_entropy
        self.warmup_steps = warmup_steps
        self.tau = tau
        self.actor = TanhGaussianPolicy(
            observation_dim, action_dim, hidden=hidden, low=action_low, high=action_high
        )
        self.q = TwinCritic(observation_dim, action_dim, hidden, dense=True)
        self.target_q = frozen_copy(self.q)
        start = torch.tensor(math.log(1.0 if temperature is None else temperature))
        if temperature is None:
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start)
        self.log_multiplier = None if lagrange is None else nn.Parameter(torch.zeros(()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Critics, actor, and as far as they are tuned α and the multiplier."""
        groups = {"q": list(self.q.parameters()), "actor": list(self.actor.parameters())}
        if isinstance(self.log_temperature, nn.Parameter):
            groups["temperature"] = [self.log_temperature]
        if self.log_multiplier is not None:
            groups["lagrange"] = [self.log_multiplier]
        return groups

    def setup(self, stage: str) -> None:
        """Refuse rows whose reward is not known.

        Raises:
            ConfigError: the data have such rows.
        """
        super().setup(stage)
        if self.spec is not None and "reward_mask" in self.spec.columns:
            raise ConfigError(
                f"{self.spec.origin}: CQL needs the reward of every row, but 'reward_mask' says "
                "that some have none: take those rows out, or train DVFModule, which needs few."
            )

    # ---- losses --------------------------------------------------------------------------------

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """TD error and conservative term of the critics, and the losses of actor, α, multiplier.

        Raises:
            ConfigError: the view gives no plain transitions.
        """
        if not isinstance(batch, TransitionBatch):
            raise ConfigError(
                f"CQLModule trains on Transitions, but the view gives a {type(batch).__name__}: "
                "set data.init_args.view to Transitions, or leave the view to the model."
            )
        states, actions = self.normalizer.normalize(batch.observations), batch.actions
        next_states = self.normalizer.normalize(batch.next_observations)
        first, n = 1, self.num_actions  # the first action trains the actor or makes the target
        noise = self.noise.normal((len(states), 2 * (first + n), actions.shape[1]))
        uniform = self._uniform(self.noise.uniform((len(states), n, actions.shape[1])))
        drawn, density = self._draw(states, noise[:, : first + n])
        with torch.no_grad():
            next_drawn, next_density = self._draw(next_states, noise[:, first + n :])
            target = self._target(batch, next_states, next_drawn[:, 0], next_density[:, 0])
        proposals = torch.cat([uniform, drawn[:, first:].detach(), next_drawn[:, first:]], dim=1)
        densities = torch.cat(
            [
                torch.full_like(density[:, first:], -math.log(2.0) * actions.shape[1]),
                density[:, first:].detach(),
                next_density[:, first:],
            ],
            dim=1,
        )
        # one pass for the data's actions and all others: small products cost more than their share
        values = self.q.many(states, torch.cat([actions[:, None], proposals], dim=1)).float()
        seen = values[..., 0]
        self.log_scalar("q/mean", seen.mean())
        self.log_scalar("q/target_mean", target.mean())
        return {
            "critic": (seen - target).square().mean(dim=1).sum(),
            **self.conservative_losses(values[..., 1:], densities, seen),
            **self.actor_losses(states, actions, drawn[:, 0], density[:, 0]),
        }

    def conservative_losses(
        self, values: Tensor, densities: Tensor, seen: Tensor
    ) -> dict[str, Tensor]:
        """``conservative``, both critics' gaps; ``lagrange``, which moves the multiplier.

        Args:
            values: Q (2, B, 3n) of drawn actions.
            densities: their log densities (B, 3n).
            seen: Q (2, B) of the data's actions.
        """
        warmth = self.min_q_temperature
        soft = torch.logsumexp(values / warmth - densities, dim=-1) - math.log(values.shape[-1])
        gaps = (warmth * soft - seen).mean(dim=1)
        self.log_scalar("q/gap", gaps.mean())
        if self.log_multiplier is None:
            return {"conservative": self.cql_weight * gaps.sum()}
        multiplier = self.log_multiplier.exp()
        self.log_scalar("q/multiplier", multiplier)
        assert self.lagrange is not None
        excess = self.cql_weight * (gaps - self.lagrange).sum()
        return {
            "conservative": multiplier.detach() * excess,
            "lagrange": -multiplier * excess.detach(),
        }

    def actor_losses(
        self, states: Tensor, actions: Tensor, drawn: Tensor, density: Tensor
    ) -> dict[str, Tensor]:
        """``actor``, and where α is tuned ``temperature``.

        Args:
            states: normalised (B, o).
            actions: the data's (B, a).
            drawn: the actor's (B, a), differentiable.
            density: their log densities (B,), differentiable.
        """
        alpha = self.log_temperature.exp()
        self.log_scalar("temperature", alpha)
        self.log_scalar("actor/entropy", -density.mean())
        if self._trainer is not None and self.trainer.global_step < self.warmup_steps:
            worth = self.actor.log_prob(states, actions)
        else:
            worth = self.q.frozen(states, drawn).float().amin(dim=0)
            self.log_scalar("q/policy", worth.mean())
        losses = {"actor": (alpha.detach() * density - worth).mean()}
        if isinstance(self.log_temperature, nn.Parameter):
            short = (density + self.target_entropy).detach().mean()
            losses["temperature"] = -self.log_temperature * short
        return losses

    def _target(
        self, batch: TransitionBatch, next_states: Tensor, actions: Tensor, density: Tensor
    ) -> Tensor:
        """r + γ (1 − terminal) min Q(s', a') (B,), with the entropy bonus if it is backed up."""
        values = self.target_q.minimum(next_states, actions).float()
        if self.backup_entropy:
            values = values - self.log_temperature.exp() * density
        assert batch.rewards is not None  # required_columns
        return batch.rewards + self.gamma * torch.where(batch.terminals, 0.0, values)

    def _draw(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, k, a) for noise (B, k, a), and log densities (B, k) in [−1, 1]'s units."""
        mean, log_std = self.actor.moments(states)
        drawn, density = self.actor.draw(mean[:, None], log_std[:, None], noise)
        return drawn, density + self.actor.scale.log().sum()

    def _uniform(self, uniforms: Tensor) -> Tensor:
        """Actions anywhere within the bounds, from numbers in [0, 1)."""
        return self.actor.centre + self.actor.scale * (2.0 * uniforms - 1.0)

    def after_step(self) -> None:
        """Move the target critics."""
        polyak_update_(self.target_q, self.q, self.tau)

    def policy(self) -> NetworkPolicy:
        """Act by the squashed mean."""
        return NetworkPolicy(lambda rows: self.actor(self.normalizer.normalize(rows)), self.device)
