"""Diffusion Q-learning (Diffusion-QL): a diffusion policy that climbs its critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lit_offrl.common.policy import Policy
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.diffusion import Clipping, Variance
from lit_offrl.modules.diffusion_actor import DiffusionActorModule
from lit_offrl.modules.extraction import by_turns
from lit_offrl.modules.twin_critics import TwinCriticModule
from lit_offrl.nets.mlp import Activation

Weights = Literal["trained", "average"]


class DQLModule(DiffusionActorModule, TwinCriticModule):
    """DQL, or Diffusion-QL (Wang et al. 2023): denoising loss − η · E[Q(s, a)] / E|Q|.

    The gradient of Q runs back through the whole chain that draws the action. Targets are
    r + γ (1 − terminal) min_j Q̄_j(s', a') with a' by the averaged denoiser. Networks, sampler and
    averages are those of the authors' code: three layers of 256 with Mish for the denoiser and for
    each critic; steps that clip the estimate of the action, with noise of the posterior's variance.

    Departures from the authors' code: the actor climbs the critics as they are before the step
    and not as they are after it, since all losses have one backward pass.

    Args:
        eta: Weight η, at least 0, of Q. The authors use 1 for locomotion; for AntMaze 0.5 (umaze),
            2 (umaze-diverse and medium-play), 3 (medium-diverse), 4.5 (large-play) and 3.5
            (large-diverse); 0.15 and 0.1 for pen-human and pen-cloned; 0.005 for kitchen. Their
            learning rate is 1e-3 for AntMaze medium-play and 3e-5 for pen, and they clip gradients
            at 1 to 10 (``trainer.gradient_clip_val``).
        backup_samples: Number of actions in a next state, at least 1, over which each target
            critic's maximum is taken: 1 takes no maximum; the authors use 10 for AntMaze.
        num_samples: Number of candidates when acting, at least 1, one of which is drawn with
            probability ∝ exp(Q).
        climbed: Which critic the actor maximises, while the mean size of the other one scales it:
            one drawn at random for the whole ``batch``, as in the authors' code, or the two
            alternately over its ``rows``.
        acts: Denoiser that acts: the ``trained`` one, as in the authors' code, or its ``average``.
        hidden: Widths of the critics' hidden layers.
        activation: The critics' activation.
        critic_decay: Whether ``decay`` also applies to the critics' learning rate.
        denoiser: Network of the denoiser: the authors' plain ``mlp``, or ``residual`` blocks with
            LayerNorm (IDQL, ACD), which take four times as long.
        dropout: Probability in [0, 1) of dropping a unit of the denoiser.
        clipping: What is clipped to the actions' range in each step: the ``estimate`` of the clean
            action, the noisy ``sample``, or ``none``, so that only the final action is clipped.
        variance: Variance of the noise in a step of ``ddpm``: ``posterior`` or ``beta``.
        actor_ema_rate: Rate in (0, 1] at which the averaged denoiser, which draws the actions of
            targets, follows the trained one.
        actor_ema_every: Number of steps, at least 1, from one update of the averaged denoiser to
            the next.
        actor_ema_start: Number of steps, at least 0, before the first update of the averaged
            denoiser.
        **kwargs: Options of ``DiffusionActorModule`` but for sampling_steps, and of
            ``TwinCriticModule``.
    """

    eager_because = None

    def __init__(
        self,
        *args: Any,
        eta: Annotated[float, "[0, inf)"] = 1.0,
        backup_samples: Annotated[int, "[1, inf)"] = 1,
        num_samples: Annotated[int, "[1, inf)"] = 50,
        climbed: Literal["batch", "rows"] = "batch",
        acts: Weights = "trained",
        hidden: Sequence[int] = (256, 256, 256),
        activation: Activation = "mish",
        critic_decay: bool = True,
        denoiser: Literal["mlp", "residual"] = "mlp",
        dropout: float = 0.0,
        clipping: Clipping = "estimate",
        variance: Variance = "posterior",
        actor_ema_rate: float = 0.005,
        actor_ema_every: Annotated[int, "[1, inf)"] = 5,
        actor_ema_start: Annotated[int, "[0, inf)"] = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            hidden=hidden,
            activation=activation,
            denoiser=denoiser,
            dropout=dropout,
            sampling_steps=None,
            clipping=clipping,
            variance=variance,
            actor_ema_rate=actor_ema_rate,
            **kwargs,
        )
        self.eta, self.backup_samples, self.num_samples = eta, backup_samples, num_samples
        self.climbed, self.acts, self.critic_decay = climbed, acts, critic_decay
        self.actor_ema_every, self.actor_ema_start = actor_ema_every, actor_ema_start
        self.actor = self.diffusion_actor(self.observation_dim)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``critic`` by temporal differences and ``actor``."""
        self.require_batch(batch, TransitionBatch, "Transitions", rewards=True)
        critic = self.critic_loss(batch, self.td_target(batch, self._next_value(batch)))
        observations = self.normalize_observations(batch.observations)
        denoising = self.actor.loss(observations, batch.actions, self.noise).mean()
        drawn = self.actor.sample(observations, noise=self.noise, denoiser=self.actor.denoiser)
        q_values = self.q.frozen(observations, drawn.squeeze(1))
        climbed, scale = by_turns(q_values, self._turn(len(observations)))
        self.log_scalar("actor/q_mean", climbed)
        self.log_scalar("actor/denoising", denoising)
        return {"critic": critic, "actor": denoising - self.eta * climbed / scale}

    @torch.no_grad()
    def _next_value(self, batch: TransitionBatch) -> Tensor:
        observations = self.normalize_observations(batch.next_observations)
        drawn = self.actor.sample(observations, number=self.backup_samples, noise=self.noise)
        return self.target.many(observations, drawn).amax(dim=2).amin(dim=0)

    def _turn(self, rows: int) -> Tensor:
        """Critic that each row maximises, (B,): drawn at random for all, or by turns."""
        if self.climbed == "rows":
            return torch.arange(rows, device=self.device) % 2
        return (2 * self.noise.common((1,))).long().to(self.device).expand(rows)

    def graph_key(self, step: int) -> bool:
        """Whether the averaged denoiser moves after a step."""
        return step >= self.actor_ema_start and step % self.actor_ema_every == 0

    def average_moves(self) -> bool:
        """Whether the averaged denoiser is updated after the current step."""
        return self.graph_key(self.global_step)

    def learning_rate_of(self, network: str, step: int) -> float:
        """The actor's rate may decay, and the critics' with it."""
        return super().learning_rate_of("actor" if self.critic_decay else network, step)

    def policy(
        self,
        num_samples: Annotated[int | None, "[1, inf)"] = None,
        acts: Weights | None = None,
        *,
        execute_steps: Annotated[int | None, "[1, inf)"] = None,
        **drawing: Any,
    ) -> Policy:
        """Act by a sample drawn among candidates with probability ∝ exp(Q).

        Args:
            num_samples: Number of candidates; the module's own by default. 1 needs no critic.
            acts: Whose samples: ``trained`` or ``average``; the module's own by default.
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
            **drawing: Options of ``Drawing``; those that are None or left out are as trained.
        """
        number = num_samples or self.num_samples
        trained = (acts or self.acts) == "trained"
        denoiser = self.actor.denoiser if trained else self.actor.average
        return self.best_of_samples(
            self.target, number, "softmax", denoiser, execute_steps, **drawing
        )
