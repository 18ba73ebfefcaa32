"""What BCQ proposes actions with: a VAE of the data's, and a network that moves them by little."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lit_offrl.nets.mlp import MLP
from lit_offrl.nets.policies import BoundedActions

Observations = Float[Tensor, "B o"]
Actions = Float[Tensor, "B a"]
Latents = Float[Tensor, "B z"]

_LOG_STD_RANGE = (-4.0, 15.0)  # of the authors' code, for numerical stability


class ActionVAE(BoundedActions):
    """A VAE of actions given observations (Fujimoto et al. 2019, appendix D).

    Actions are scaled to [−1, 1] before they are encoded, and scaled back when they are decoded.

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        latent_dim: Size z of a latent.
        hidden: Widths of the hidden layers of encoder and decoder.
        low: Lower bounds ``(a,)``; −1 if None.
        high: Upper bounds ``(a,)``; 1 if None.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        latent_dim: int,
        hidden: Sequence[int] = (750, 750),
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        super().__init__(action_dim, low, high)
        self.encoder = MLP(observation_dim + action_dim, hidden, 2 * latent_dim)
        self.decoder = MLP(observation_dim + latent_dim, hidden, action_dim)

    def scaled(self, actions: Actions) -> Actions:
        """Return actions of the environment in half widths of the bounds, around their centre."""
        return (actions - self.centre) / self.scale

    def encode(self, observations: Observations, actions: Actions) -> tuple[Latents, Latents]:
        """Return mean and log σ ``(B, z)`` of the latent posterior, float32 in any precision."""
        joined = torch.cat([observations, self.scaled(actions)], dim=-1)
        mean, log_std = self.encoder(joined).float().chunk(2, dim=-1)
        return mean, log_std.clamp(*_LOG_STD_RANGE)

    def decode(self, observations: Observations, latents: Latents) -> Actions:
        """Return the actions ``(B, a)`` of latents ``(B, z)``, inside the bounds."""
        decoded = self.decoder(torch.cat([observations, latents], dim=-1)).float()
        return self.centre + self.scale * torch.tanh(decoded)


class Perturbation(BoundedActions):
    """a + Φ · scale · tanh(MLP(s, a)), clipped to the bounds (Fujimoto et al. 2019, section 4).

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        reach: Largest change Φ of each dimension, in half widths of the bounds.
        hidden: Widths of the hidden layers.
        low: Lower bounds ``(a,)``; −1 if None.
        high: Upper bounds ``(a,)``; 1 if None.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        reach: float = 0.05,
        hidden: Sequence[int] = (400, 300),
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        super().__init__(action_dim, low, high)
        self.reach = reach
        self.net = MLP(observation_dim + action_dim, hidden, action_dim)

    def forward(self, observations: Observations, actions: Actions) -> Actions:
        """Return the moved actions ``(B, a)``."""
        change = torch.tanh(self.net(torch.cat([observations, actions], dim=-1)).float())
        moved = actions + self.reach * self.scale * change
        return moved.clamp(self.centre - self.scale, self.centre + self.scale)
