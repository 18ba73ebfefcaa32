"""A causal transformer of (return, observation, action) tokens (Chen et al. 2021)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.nets.mlp import Dropout, make_activation
from lit_offrl.nets.policies import BoundedActions

Tokens = Float[Tensor, "B L W"]

_ALL = slice(None)
_OBSERVATIONS = slice(1, None, 3)  # among tokens of a return, an observation and an action a step
_STD = 0.02  # of GPT-2's initial weights


class CausalBlock(nn.Module):
    """Pre-LN residual self-attention to no later token, then an MLP of 4 times the width.

    Source: GPT-2 (Radford et al. 2019); dropout acts on the attention's weights and on the results
    of both.

    Args:
        width: Width W of a token, a multiple of the heads.
        heads: Number of attention heads.
        dropout: Probability in [0, 1) of dropping a unit.
        activation: A name of `lit_offrl.nets.mlp.ACTIVATIONS`.
    """

    def __init__(self, width: int, heads: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_query, self.to_key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.weights_dropout = Dropout(dropout)
        self.out = nn.Sequential(nn.Linear(width, width), Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            make_activation(activation, overwrite=True),
            nn.Linear(4 * width, width),
            Dropout(dropout),
        )
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=_STD)
                nn.init.zeros_(part.bias)

    def forward(self, x: Tokens, only: slice = _ALL) -> Float[Tensor, "B some W"]:
        """Update ``(B, L, W)``, or ``only`` some of the L tokens, which are returned."""
        normed = self.norm(x)
        parts = (self.to_query(normed[:, only]), *self.to_key_value(normed).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()[only]
        mixed = self._attend(query, key, value, seen).transpose(1, 2).flatten(-2)
        x = x[:, only] + self.out(mixed)
        return x + self.mlp(x)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
        if not self.training or self.weights_dropout.probability == 0.0:
            return F.scaled_dot_product_attention(query, key, value, seen)
        # PyTorch's own would drop weights by the global generator
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        return self.weights_dropout(weights) @ value


class ActionTransformer(BoundedActions):
    """Actions from returns-to-go, observations and earlier actions (Chen et al. 2021, Fig. 1).

    A step has three tokens, R̂_t, s_t and a_t, each by a linear layer of its own plus the learned
    embedding of t. The action of a step is read at s_t, so it sees R̂ and s up to t, and the actions
    before t. Actions are scaled to [−1, 1] on their way in and back on their way out.

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        max_timesteps: Number of embeddings of t; later steps have the last one.
        width: Width of a token.
        blocks: Number of blocks.
        heads: Number of attention heads, which divides the width.
        dropout: Probability in [0, 1) of dropping a unit.
        activation: Activation of the blocks' MLPs.
        low: Lower bounds ``(a,)``; −1 if None.
        high: Upper bounds ``(a,)``; 1 if None.

    Raises:
        ConfigError: The heads do not divide the width, or the dropout is outside [0, 1).
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        max_timesteps: int,
        width: int,
        blocks: int,
        heads: int,
        dropout: float,
        activation: Literal["relu", "gelu"],
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        if width % heads:
            raise ConfigError(f"heads is {heads}: give a number that divides the width, {width}.")
        super().__init__(action_dim, low, high)
        self.of_return = nn.Linear(1, width)
        self.of_observation = nn.Linear(observation_dim, width)
        self.of_action = nn.Linear(action_dim, width)
        self.of_timestep = nn.Embedding(max_timesteps, width)
        self.embedded = nn.Sequential(nn.LayerNorm(width), Dropout(dropout))
        self.blocks = nn.ModuleList(
            CausalBlock(width, heads, dropout, activation) for _ in range(blocks)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim), nn.Tanh())

    def forward(
        self,
        observations: Float[Tensor, "B K o"],
        actions: Float[Tensor, "B K a"],
        returns: Float[Tensor, "B K"],
        timesteps: Int[Tensor, "B K"],
    ) -> Float[Tensor, "B K a"]:
        """Return the action of each step, inside the bounds.

        Args:
            observations: Normalised observations.
            actions: Actions in the environment's units; that of a step is seen by later ones alone.
            returns: Returns-to-go, scaled.
            timesteps: Numbers of the steps in their episodes.
        """
        kinds = (
            self.of_return(returns[..., None]),
            self.of_observation(observations),
            self.of_action((actions - self.centre) / self.scale),
        )
        time = self.of_timestep(timesteps.clamp(max=self.of_timestep.num_embeddings - 1))
        tokens = torch.stack([kind + time for kind in kinds], dim=2).flatten(1, 2)
        mixed = self.embedded(tokens)
        for block in self.blocks[:-1]:
            mixed = block(mixed)
        mixed = self.blocks[-1](mixed, _OBSERVATIONS)  # of the others nothing is read
        return self.centre + self.scale * self.head(mixed).float()
