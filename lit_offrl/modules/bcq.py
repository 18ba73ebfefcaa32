"""Batch-constrained Q-learning (BCQ): the best of few actions that the data could have had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lit_offrl.common.policy import Policy
from lit_offrl.common.randomness import draw_normal
from lit_offrl.datasets.views import TransitionBatch
from lit_offrl.modules.twin_critics import TwinCriticModule
from lit_offrl.nets import ActionVAE, Perturbation, frozen_copy, polyak_update_
from lit_offrl.nets.mlp import require_widths

_LATENT_LIMIT = 0.5  # of the paper, section 4: latents that are drawn are clipped to ±0.5


class BCQModule(TwinCriticModule):
    """BCQ (Fujimoto, Meger & Precup 2019, Algorithm 1).

    A VAE imitates the data's actions, and a network ξ moves an imitated action by Φ at most, where
    Q_1 ascends. Targets are r + γ (1 − terminal) max_i [λ min_j Q̄_j(s', a_i) + (1 − λ) max_j
    Q̄_j(s', a_i)] over n actions a_i that the VAE draws and the slow copy of ξ moves.

    Departures from the authors' code: in each step, all networks compute their losses with the
    weights from before the step, while in the authors' code the critics use the VAE after its
    update, and ξ uses the critics after theirs; Φ and the VAE's error are in units of half the
    width of the action range, which are the authors' units if the bounds are ±1.

    Args:
        phi: Largest change Φ, at least 0, of an imitated action, in units of half the width of the
            action range; 0 leaves the VAE's actions as they are.
        soft_minimum: Weight λ in [0, 1] of the smaller of the two target critics; the larger one
            has weight 1 − λ.
        backup_samples: Number n of actions that are drawn in a next state for the target, at least
            1.
        num_samples: Number of candidates when acting, at least 1; the one with the highest Q_1 is
            executed. The paper uses 10, the authors' code 100.
        kl_weight: Weight, at least 0, of the VAE's KL divergence relative to its squared error.
            Both are means over dimensions, as in the authors' code; the paper sums the error over
            them.
        latent_dim: Size of the VAE's latent, at least 1; twice the action's size by default.
        vae_hidden: Widths of the hidden layers of the VAE's encoder and decoder.
        hidden: Widths of the hidden layers of the critics and of ξ.
        learning_rate: Adam's learning rate, at least 0.
        **kwargs: Options of ``TwinCriticModule``.
    """

    eager_because = None
    actor: Perturbation

    def __init__(
        self,
        *args: Any,
        phi: Annotated[float, "[0, inf)"] = 0.05,
        soft_minimum: Annotated[float, "[0, 1]"] = 0.75,
        backup_samples: Annotated[int, "[1, inf)"] = 10,
        num_samples: Annotated[int, "[1, inf)"] = 100,
        kl_weight: Annotated[float, "[0, inf)"] = 0.5,
        latent_dim: Annotated[int | None, "[1, inf)"] = None,
        vae_hidden: Sequence[int] = (750, 750),
        hidden: Sequence[int] = (400, 300),
        learning_rate: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, hidden=hidden, learning_rate=learning_rate, **kwargs)
        self.soft_minimum, self.kl_weight = soft_minimum, kl_weight
        self.backup_samples, self.num_samples = backup_samples, num_samples
        self.latent_dim = latent_dim or 2 * self.action_dim
        require_widths(vae_hidden, "vae_hidden")
        dims = (self.observation_dim, self.action_dim)
        self.vae = ActionVAE(*dims, self.latent_dim, vae_hidden, **self.bounds)
        self.actor = Perturbation(*dims, phi, hidden, **self.bounds)
        self.target_actor = frozen_copy(self.actor)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """VAE, critics and ξ."""
        return {"vae": list(self.vae.parameters())} | super().parameter_groups()

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """``vae``, ``critic`` by temporal differences, and ``actor``, which is ξ's."""
        self.require_batch(batch, TransitionBatch, "Transitions", rewards=True)
        observations = self.normalize_observations(batch.observations)
        return {
            "vae": self._vae_loss(observations, batch.actions),
            "critic": self.critic_loss(batch, self.td_target(batch, self._next_value(batch))),
            "actor": self._actor_loss(observations),
        }

    def _vae_loss(self, observations: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = self.vae.encode(observations, actions)
        latents = mean + log_std.exp() * self.noise.normal(mean.shape)
        decoded = self.vae.decode(observations, latents)
        error = self.vae.scaled(decoded) - self.vae.scaled(actions)
        kl = 0.5 * (mean.square() + (2.0 * log_std).exp() - 1.0) - log_std
        self.log_scalar("vae/squared_error", error.square().mean())
        self.log_scalar("vae/kl", kl.mean())
        return error.square().mean() + self.kl_weight * kl.mean()

    @torch.no_grad()
    def _next_value(self, batch: TransitionBatch) -> Tensor:
        observations = self.normalize_observations(batch.next_observations)
        shape = (len(observations), self.backup_samples, self.latent_dim)
        proposed = self.propose(observations, self.noise.normal(shape), self.target_actor)
        values = self.target.many(observations, proposed)
        smaller, larger = values.amin(dim=0), values.amax(dim=0)
        return torch.lerp(larger, smaller, self.soft_minimum).amax(dim=1)

    def _actor_loss(self, observations: Tensor) -> Tensor:
        noise = self.noise.normal((len(observations), 1, self.latent_dim))
        proposed = self.propose(observations, noise, self.actor).squeeze(1)
        value = self.q.frozen(observations, proposed)[0].mean()
        self.log_scalar("actor/q_mean", value)
        return -value

    def propose(self, observations: Tensor, noise: Tensor, perturb: Perturbation) -> Tensor:
        """Draw actions of the VAE and move them; no gradient reaches the VAE.

        Args:
            observations: Normalised observations (B, o).
            noise: Standard normal (B, n, z); latents are clipped to ±0.5 (paper, section 4).
            perturb: Moves the actions.

        Returns:
            Actions (B, n, a) in the environment's units.
        """
        repeated = observations.repeat_interleave(noise.shape[1], dim=0)
        with torch.no_grad():
            latents = noise.flatten(0, 1).clamp(-_LATENT_LIMIT, _LATENT_LIMIT)
            imitated = self.vae.decode(repeated, latents)
        return perturb(repeated, imitated).unflatten(0, noise.shape[:2])

    def after_step(self) -> None:
        """Move the target critics and the slow copy of ξ."""
        super().after_step()
        polyak_update_(self.target_actor, self.actor, self.tau)

    def policy(
        self,
        num_samples: Annotated[int | None, "[1, inf)"] = None,
        *,
        execute_steps: Annotated[int | None, "[1, inf)"] = None,
    ) -> Policy:
        """Act by the best of several moved actions of the VAE.

        Args:
            num_samples: Number of candidates; the module's own by default.
            execute_steps: Number of steps, at most h, for which a chunk is executed; the module's
                own by default.
        """
        number = num_samples or self.num_samples

        def act(rows: Tensor) -> Tensor:
            observations = self.normalize_observations(rows)
            shape = (rows.shape[0], number, self.latent_dim)
            noise = draw_normal(shape, None, device=rows.device)
            candidates = self.propose(observations, noise, self.actor)
            best = self.q.many(observations, candidates)[0].argmax(dim=1)
            return candidates[torch.arange(rows.shape[0], device=rows.device), best]

        return self.acting(act, execute_steps)
