"""Multi-head attention on already projected queries, keys and values, and its pre-LN blocks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def attend(
    query: Float[Tensor, "#B L W"],
    key: Float[Tensor, "B T W"],
    value: Float[Tensor, "B T W"],
    heads: int,
    bias: Float[Tensor, "#B #L T"] | None = None,
) -> Float[Tensor, "B L W"]:
    """Attend from L queries to T keys with ``heads`` heads of W / heads channels, all projected.

    ``bias`` is added to the scores, −inf where a query must not attend to a key; 1 for B or L
    broadcasts. Returns the heads' results side by side.
    """
    query, key, value = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2)
        for x in (query.expand(key.shape[0], -1, -1), key, value)
    )
    if bias is not None:
        bias = bias.unsqueeze(1).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(-2)


def own_block(
    group: int, queries: int, keys: int, device: torch.device
) -> Float[Tensor, "{group*queries} {group*keys}"]:
    """Return a bias with which each of ``group`` rows side by side attends only to its own keys.

    Thousands of 4 × 4 attentions cost a CPU mostly overhead: eight of them as one 32 × 32 attention
    under this bias take a third of the time, backward too.
    """
    same = torch.full((group, group), -torch.inf, device=device).fill_diagonal_(0.0)
    return same.repeat_interleave(queries, 0).repeat_interleave(keys, 1)


class FeedForward(nn.Module):
    """Pre-LN residual MLP ``x + W2 gelu(W1 LN(x))`` with ``ratio * width`` hidden units."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, round(width * ratio))
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W"]:
        """Map ``(…, W)`` to ``(…, W)``."""
        return x + self.layers(x)


class CrossAttention(nn.Module):
    """Pre-LN residual attention to keys and values that the caller has projected, then an MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.out = nn.Linear(width, width)
        self.mlp = FeedForward(width, mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "#B L W"],
        key_value: Float[Tensor, "B T two_W"],
        bias: Float[Tensor, "#B #L T"] | None = None,
    ) -> Float[Tensor, "B L W"]:
        """Update ``x (B or 1, L, W)`` from ``key_value (B, T, 2 W)``."""
        key, value = key_value.chunk(2, dim=-1)
        return self.mlp(x + self.out(attend(self.to_query(x), key, value, self.heads, bias)))


class SelfAttention(nn.Module):
    """Pre-LN residual self-attention, then an MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_query_key_value = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width))
        self.out = nn.Linear(width, width)
        self.mlp = FeedForward(width, mlp_ratio)

    def forward(
        self, x: Float[Tensor, "B L W"], bias: Float[Tensor, "#B L L"] | None = None
    ) -> Float[Tensor, "B L W"]:
        """Update ``x (B, L, W)`` from itself."""
        query, key, value = self.to_query_key_value(x).chunk(3, dim=-1)
        return self.mlp(x + self.out(attend(query, key, value, self.heads, bias)))


def attend_in_turn(
    blocks: Sequence[tuple[nn.Module, nn.Module]],
    latents: Float[Tensor, "#B L W"],
    tokens: Sequence[Float[Tensor, "sets groups _ blocks two_W"]],
    bias: Float[Tensor, "#B #L T"] | None,
    among: Float[Tensor, "#B L L"] | None,
) -> Float[Tensor, "B L W"]:
    """Let latents attend to tokens and then to each other, block after block.

    A block is a `CrossAttention` and a `SelfAttention`. The tokens are projected to the keys and
    values of all blocks, with rows in their first two dimensions. ``bias`` is added to the scores
    of latents and tokens, ``among`` to those of latents and latents.
    """
    for index, (cross, mix) in enumerate(blocks):
        key_value = torch.cat([kind[..., index, :] for kind in tokens], dim=2).flatten(0, 1)
        latents = mix(cross(latents, key_value, bias), among)
    return latents
