"""Conservative Q-learning: a soft actor-critic whose critics are pushed down off the data.

Source: Kumar et al. 2020, "Conservative Q-learning for offline reinforcement learning".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.actor import ActorModule
from lit_offrl.nets import EnsembleCritic, TanhGaussianPolicy, frozen_copy, polyak_update_


class CQLModule(ActorModule):
    """CQL(H): twin critics fitted to r + γ Q(s', a'), and lowered where the data have no actions.

    Each critic's loss is its squared TD error plus ``cql_weight`` · (T log ∫ exp(Q(s, a)/T) da −
    Q(s, a_data)), the integral estimated from actions drawn uniformly, from π(s) and from π(s'),
    each weighted by one over its density (paper: Eq. 4 and appendix F). The actor ascends
    min Q + α · entropy, where α holds the entropy at ``target_entropy``.

    Implementations differ in these points. Here:

    * densities are those of actions scaled to [−1, 1], so that entropies and the conservative gap
      mean the same in every environment;
    * log ∫ is a mean over the 3n actions; the authors' code takes a sum, which adds log 3n to the
      gap (3.4 for n = 10); subtract it from a ``lagrange`` that was chosen for their code;
    * the squared TD error has no factor of ½, unlike in Eq. 4, but as in the authors' code;
    * only true terminals end the bootstrap, time limits do not.

    Args:
        gamma: Discount γ in [0, 1).
        cql_weight: Weight of the conservative term, at least 0; 0 is a plain soft actor-critic.
        num_actions: Number n of actions, at least 1, that are drawn in each state from each of the
            three distributions.
        min_q_temperature: Temperature T of the log-sum-exp, above 0.
        lagrange: Target of the gap (the term in brackets) to which a learned multiplier of
            ``cql_weight`` is tuned; no multiplier by default. The paper uses 5 and 10, with the
            authors' sum.
        backup_entropy: Whether the target also has the entropy bonus: Q(s', a') − α log π(a' | s').
        temperature: Fixed value, above 0, of the entropy's weight α; α is learned by default.
        target_entropy: Entropy in nats to which α is tuned; by default minus the number of action
            dimensions.
        warmup_steps: Number of optimiser steps, at least 0, in which the actor is trained by
            behaviour cloning.
        tau: Rate in (0, 1] at which the target critics follow the critics in each step.
        hidden: Widths of the hidden layers of all networks, which are DenseNet MLPs with LayerNorm.
        **kwargs: Options of ``OfflineModule``; observations are scaled to [-1, 1].

    Raises:
        ConfigError: Options contradict each other or the data, or a number is out of its range.
    """

    eager_because = None
    actor: TanhGaussianPolicy
    log_temperature: Tensor

    def __init__(
        self,
        *args: Any,
        gamma: Annotated[float, "[0, 1)"] = 0.99,
        cql_weight: Annotated[float, "[0, inf)"] = 1.0,
        num_actions: Annotated[int, "[1, inf)"] = 10,
        min_q_temperature: Annotated[float, "(0, inf)"] = 1.0,
        lagrange: Annotated[float | None, "(-inf, inf)"] = None,
        backup_entropy: bool = False,
        temperature: Annotated[float | None, "(0, inf)"] = None,
        target_entropy: Annotated[float | None, "(-inf, inf)"] = None,
        warmup_steps: Annotated[int, "[0, inf)"] = 0,
        tau: Annotated[float, "(0, 1]"] = 0.005,
        hidden: Sequence[int] = (256, 256),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, normalize=True, weight_decay=0.0, decay="constant", **kwargs)
        if lagrange is not None and cql_weight == 0:
            raise ConfigError("lagrange multiplies cql_weight, which is 0: leave one of them out.")
        dims = (self.observation_dim, self.action_dim)
        self.gamma, self.tau = gamma, tau
        self.cql_weight, self.lagrange = cql_weight, lagrange
        self.num_actions, self.min_q_temperature = num_actions, min_q_temperature
        self.backup_entropy, self.warmup_steps = backup_entropy, warmup_steps
        self.target_entropy = -float(dims[1]) if target_entropy is None else target_entropy
        self.actor = TanhGaussianPolicy(*dims, hidden=hidden, **self.bounds)
        self.q = EnsembleCritic(*dims, hidden, dense=True)
        self.target_q = frozen_copy(self.q)
        start = torch.tensor(math.log(1.0 if temperature is None else temperature))
        if temperature is None:
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start)
        self.log_multiplier = None if lagrange is None else nn.Parameter(torch.zeros(()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Critics, actor, and α and the Lagrange multiplier if they are learned."""
        groups = {"q": list(self.q.parameters()), "actor": list(self.actor.parameters())}
        if isinstance(self.log_temperature, nn.Parameter):
            groups["temperature"] = [self.log_temperature]
        if self.log_multiplier is not None:
            groups["lagrange"] = [self.log_multiplier]
        return groups

    def graph_key(self, step: int) -> bool:
        """Whether the actor is trained by behaviour cloning."""
        return step < self.warmup_steps

    # ---- losses --------------------------------------------------------------------------------

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """TD error and conservative term of the critics, and the losses of actor, α, multiplier."""
        self.require_batch(batch, TransitionBatch, "Transitions")
        states, actions = self.normalize_observations(batch.observations), batch.actions
        next_states = self.normalize_observations(batch.next_observations)
        first, n = 1, self.num_actions  # the first action trains the actor or makes the target
        noise = self.noise.normal((len(states), 2 * (first + n), actions.shape[1]))
        uniform = 2.0 * self.noise.uniform((len(states), n, actions.shape[1])) - 1.0
        uniform = self.actor.centre + self.actor.scale * uniform  # anywhere within the bounds
        drawn, density = self._draw(states, noise[:, : first + n])
        with torch.no_grad():
            next_drawn, next_density = self._draw(next_states, noise[:, first + n :])
            td_target = self._td_target(batch, next_states, next_drawn[:, 0], next_density[:, 0])
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
        data_q = values[..., 0]
        self.log_scalar("q/mean", data_q.mean())
        self.log_scalar("q/target_mean", td_target.mean())
        return {
            "critic": (data_q - td_target).square().mean(dim=1).sum(),
            **self.conservative_losses(values[..., 1:], densities, data_q),
            **self.actor_losses(states, actions, drawn[:, 0], density[:, 0]),
        }

    def conservative_losses(
        self, values: Tensor, densities: Tensor, data_q: Tensor
    ) -> dict[str, Tensor]:
        """``conservative``, both critics' gaps; ``lagrange``, which moves the multiplier.

        Args:
            values: Q (2, B, 3n) of drawn actions.
            densities: Their log densities (B, 3n).
            data_q: Q (2, B) of the data's actions.
        """
        scaled = values / self.min_q_temperature
        soft = torch.logsumexp(scaled - densities, dim=-1) - math.log(values.shape[-1])
        gaps = (self.min_q_temperature * soft - data_q).mean(dim=1)
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
            states: Normalised observations (B, o).
            actions: The data's actions (B, a).
            drawn: The actor's actions (B, a), differentiable.
            density: Their log densities (B,), differentiable.
        """
        alpha = self.log_temperature.exp()
        self.log_scalar("temperature", alpha)
        self.log_scalar("actor/entropy", -density.mean())
        if self._trainer is not None and self.graph_key(self.trainer.global_step):
            objective = self.actor.log_prob(states, actions)
        else:
            objective = self.q.frozen(states, drawn).float().amin(dim=0)
            self.log_scalar("q/policy", objective.mean())
        losses = {"actor": (alpha.detach() * density - objective).mean()}
        if isinstance(self.log_temperature, nn.Parameter):
            shortfall = (density + self.target_entropy).detach().mean()
            losses["temperature"] = -self.log_temperature * shortfall
        return losses

    def _td_target(
        self, batch: TransitionBatch, next_states: Tensor, actions: Tensor, density: Tensor
    ) -> Tensor:
        """r + γ (1 − terminal) min Q(s', a') (B,), with the entropy bonus if it is backed up."""
        values = self.target_q.minimum(next_states, actions).float()
        if self.backup_entropy:
            values = values - self.log_temperature.exp() * density
        assert batch.rewards is not None  # required_columns
        ahead = torch.where(batch.terminals, 0.0, values)
        return batch.rewards + batch.discount(self.gamma) * ahead

    def _draw(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, k, a) for noise (B, k, a), and log densities (B, k) in [−1, 1]'s units."""
        mean, log_std = self.actor.moments(states)
        drawn, density = self.actor.draw(mean[:, None], log_std[:, None], noise)
        return drawn, density + self.actor.scale.log().sum()

    def after_step(self) -> None:
        """Move the target critics."""
        polyak_update_(self.target_q, self.q, self.tau)
