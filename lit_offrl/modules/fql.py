"""Flow Q-learning (FQL): a one-step policy climbs the critics near a flow of the data's actions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lit_offrl.common.policy import Policy
from lit_offrl.common.randomness import draw_normal
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.extraction import mean_over_processes
from lit_offrl.modules.flow_actor import FlowActorModule
from lit_offrl.modules.twin_critics import TwinCriticModule
from lit_offrl.nets import MLP, glorot_, polyak_update_


class FQLModule(FlowActorModule, TwinCriticModule):
    """Flow Q-learning (Park, Li & Levine 2025, Algorithm 1); acts by its one-step policy μ(s, z).

    A flow imitates the data's actions. μ maps a state and normal noise z to an action: its loss is
    α · mean (μ(s, z) − flow(s, z))² − Q(s, clip μ(s, z)), with the mean over both critics and the
    squares' mean over dimensions, so that no gradient runs back through the flow's steps. Targets
    are r + γ (1 − terminal) Q̄(s', clip μ(s', z')).

    Departures from the authors' code: the critics' loss is the sum over both and not their mean, a
    factor that hardly matters to Adam; the target critics follow the critics as they are after a
    step, not before it; actions are in units of half the width of the action range, which are the
    authors' units if the bounds are ±1.

    Args:
        alpha: Weight α, at least 0, of the distance to the flow's actions. The authors use 300 for
            OGBench's cubes and scene, 1000 for its puzzles and 10 for AntMaze; with ``normalize_q``
            take 0.03 to 10.
        q_agg: How targets combine the two critics: by their ``mean`` or their ``min``.
        normalize_q: Whether the policy's Q is divided by the batch's mean |Q|.
        **kwargs: Options of ``FlowActorModule`` and of ``TwinCriticModule``.
    """

    eager_because = None
    actor: MLP

    def __init__(
        self,
        *args: Any,
        alpha: Annotated[float, "[0, inf)"] = 10.0,
        q_agg: Literal["mean", "min"] = "mean",
        normalize_q: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.alpha, self.q_agg, self.normalize_q = alpha, q_agg, normalize_q
        self.flow = self.flow_actor()
        sizes = (self.observation_dim + self.action_dim, self.hidden, self.action_dim)
        self.actor = MLP(*sizes, self.activation)
        glorot_(self)
        polyak_update_(self.target, self.q, 1.0)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Flow, critics and one-step policy."""
        return {"flow": list(self.flow.parameters())} | super().parameter_groups()

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``flow``, ``actor``, which is the one-step policy's, and ``critic``."""
        self.require_batch(batch, TransitionBatch, "Transitions", rewards=True)
        observations = self.normalize_observations(batch.observations)
        return {
            "flow": self.flow.loss(observations, batch.actions, self.noise).mean(),
            "actor": self._actor_loss(observations),
            "critic": self.critic_loss(batch, self.td_target(batch, self._next_value(batch))),
        }

    def one_step(self, observations: Tensor, noise: Tensor) -> Tensor:
        """μ(s, z) (B, a) of normalised states (B, o) and noise (B, a): not clipped to [−1, 1]."""
        return self.actor(torch.cat([observations, noise], dim=-1))

    def _actor_loss(self, observations: Tensor) -> Tensor:
        noise = self.noise.normal((len(observations), self.action_dim))
        with torch.no_grad():
            aims = self.flow.sample(observations, initial_noise=noise).squeeze(1)
        unit = self.one_step(observations, noise)
        distance = (unit - self.flow.scaled(aims)).square().mean()
        values = self.q.frozen(observations, self.flow.clipped(unit)).mean(dim=0)
        self.log_scalar("actor/q_mean", values.mean())
        self.log_scalar("actor/distance", distance)
        scale = mean_over_processes(values.abs()).clamp_min(1e-6) if self.normalize_q else 1.0
        return self.alpha * distance - values.mean() / scale

    @torch.no_grad()
    def _next_value(self, batch: TransitionBatch) -> Tensor:
        observations = self.normalize_observations(batch.next_observations)
        noise = self.noise.normal((len(observations), self.action_dim))
        values = self.target(observations, self.flow.clipped(self.one_step(observations, noise)))
        return values.mean(dim=0) if self.q_agg == "mean" else values.amin(dim=0)

    def policy(self, *, execute_steps: Annotated[int | None, "[1, inf)"] = None) -> Policy:
        """Act by the one-step policy: one pass of one network, with noise drawn for each state.

        Args:
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
        """

        def act(rows: Tensor) -> Tensor:
            noise = draw_normal((rows.shape[0], self.action_dim), None, device=rows.device)
            return self.flow.clipped(self.one_step(self.normalize_observations(rows), noise))

        return self.acting(act, execute_steps)
