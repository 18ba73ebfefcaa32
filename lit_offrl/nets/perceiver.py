"""DVF's denoiser: a Perceiver IO over the noisy state and its condition (DVF, appendix 7.1)."""

import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.nets.attention import CrossAttention, SelfAttention, attend_in_turn, own_block
from lit_offrl.nets.embeddings import NumberEmbedding


class FutureCondition(NamedTuple):
    """What a future state is conditioned on, for S states and n samples of each.

    States are normalised; D includes the flag of the absorbing state if there is one. Fields that
    the denoiser's policy representation does not use may be None and are ignored.
    """

    states: Float[Tensor, "S D"]
    """The current state s_t."""
    offsets: Num[Tensor, "S n"]
    """Offset Δt ≥ 1 in environment steps of each sample; n = 1 in training."""
    policy: Num[Tensor, " S"] | None = None
    """Scalar φ(π): the policy's index or its training step."""
    history: Float[Tensor, "S k D"] | None = None
    """Sequential φ(π): the k states before s_t, oldest first."""
    history_actions: Float[Tensor, "S k a"] | None = None
    """The actions in the states of ``history``."""
    history_mask: Bool[Tensor, "S k"] | None = None
    """True where ``history`` holds a state; None if everywhere."""


class Encoded(NamedTuple):
    """A condition as keys and values of every block."""

    condition: Float[Tensor, "S C blocks two_width"]
    """Keys and values of s_t and φ(π): C tokens per state, which its n samples share."""
    offsets: Float[Tensor, "S n blocks two_width"]
    """Keys and values of Δt: one token per sample."""
    bias: Float[Tensor, "#groups #queries tokens"] | None
    """−inf where a row's latents must not see a token: masked, or another row's (see `_grid`)."""
    among: Float[Tensor, "1 group_latents group_latents"] | None
    """−inf where a latent must not see another row's; None where no rows are side by side."""


class EncodedLatents(NamedTuple):
    """A condition as what the queries of all its samples read."""

    latents: Float[Tensor, "sets group_latents blocks two_width"]
    """Keys and values of each state's latents for every readout, of several states side by side."""
    offsets: Float[Tensor, "S n width"]
    """Tokens of Δt."""
    bias: Float[Tensor, "1 group_samples group_latents"] | None
    """−inf where a sample must not see the latents of another state."""


class PerceiverDenoiser(nn.Module):
    """Predicts the noise (or x0, or v) in future states x_t given s_t, Δt and φ(π).

    Every input is one token plus a learned encoding of its position: x_t, s_t, Δt, the diffusion
    time, and φ(π) as one token (scalar) or one for each preceding state (sequential). Learned
    latents attend to all tokens, then to themselves, in each of ``blocks`` pre-LN blocks; then a
    query made of x_t and the diffusion time attends to the latents and is mapped to D numbers.

    ``encode`` projects the condition to the keys and values of all blocks: s_t and φ(π) once per
    state, Δt once per sample. ``denoise`` projects only x_t and the diffusion time. Rows are
    state-major: row i * n + j is sample j of state i.

    Source: DVF, section 3.3, Figure 1 and appendix 7.1; Jaegle et al. 2021 (Perceiver IO). Defaults
    are the paper's where it gives them; it does not give the number of latents and the MLPs' ratio
    (here 1, as in Perceiver IO). A state's 1×1 convolution is written as the linear map that it is.
    ``width=64, blocks=2, latents=4`` suits a CPU: a training step at the paper's size costs about
    two hundred times as much.

    Args:
        state_dim: Size D of a state, with the absorbing flag.
        width: Number of channels of tokens and latents; even, divisible by both numbers of heads.
        blocks: Number of blocks of cross-attention and self-attention, each with its own weights.
        cross_heads: Number of heads of the attention from latents to tokens, and of the output's.
        self_heads: Number of heads of the attention among latents.
        latents: Number of latents.
        mlp_ratio: Hidden units of the MLPs after each attention, relative to ``width``.
        policy: Representation φ(π): ``"none"``, ``"scalar"`` or ``"sequential"``.
        history: Largest number of preceding states in a sequential φ(π).
        action_dim: Size a of an action; if it is not 0, a sequential φ(π) has state-action pairs.
        max_offset_period: Longest wavelength of Δt's embedding over 2π, in environment steps.
        max_policy_period: Longest wavelength of a scalar φ(π) over 2π, in its own units.

    Raises:
        ConfigError: A size is below 1, or ``width`` is odd or not divisible by the heads.
        ValueError: ``policy`` and ``history`` do not fit each other.
    """

    _own_tokens = 3  # of a row, beside those of its state: Δt, x_t and the diffusion time

    def __init__(
        self,
        state_dim: int,
        *,
        width: int = 256,
        blocks: int = 8,
        cross_heads: int = 4,
        self_heads: int = 4,
        latents: int = 64,
        mlp_ratio: float = 1.0,
        policy: Literal["none", "scalar", "sequential"] = "none",
        history: int = 0,
        action_dim: int = 0,
        max_offset_period: float = 10_000.0,
        max_policy_period: float = 1_000_000.0,
    ) -> None:
        super().__init__()
        require_in("[1, inf)", width=width, blocks=blocks, latents=latents)
        require_in("[1, inf)", heads=min(cross_heads, self_heads))
        if width % 2 or width % cross_heads or width % self_heads:
            heads = " and ".join(map(str, dict.fromkeys((cross_heads, self_heads))))
            raise ConfigError(
                f"width is {width} and heads {heads}: give an even width that heads divide."
            )
        if (policy == "sequential") != (history > 0):
            raise ValueError(
                f"policy='sequential' needs history > 0, the others history=0; "
                f"got policy={policy!r} with history={history}"
            )
        self.state_dim = state_dim
        self.policy = policy
        self.history = history

        self.noisy_token = nn.Linear(state_dim, width)
        self.state_token = nn.Linear(state_dim, width)
        self.time_token = NumberEmbedding(width)
        self.offset_token = NumberEmbedding(width, max_offset_period)
        self.policy_token = (
            NumberEmbedding(width, max_policy_period) if policy == "scalar" else None
        )
        self.action_token = (
            nn.Linear(action_dim, width) if policy == "sequential" and action_dim else None
        )
        # Positions: x_t, time, Δt, s_t, then φ(π). A scale near the tokens', because the LayerNorm
        # that follows would otherwise hide how large a state is; 0.3 learned faster than 1.
        self.positions = nn.Parameter(0.3 * torch.randn(4 + (policy == "scalar") + history, width))
        self.latents = nn.Parameter(0.3 * torch.randn(1, latents, width))
        # One normalisation serves all blocks (what a block would scale, its projection can scale),
        # so that one product makes the keys and values of all of them.
        self.to_key_value = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, blocks * 2 * width),
            nn.Unflatten(-1, (blocks, -1)),
        )
        self.cross_blocks = nn.ModuleList(
            CrossAttention(width, cross_heads, mlp_ratio) for _ in range(blocks)
        )
        self.self_blocks = nn.ModuleList(
            SelfAttention(width, self_heads, mlp_ratio) for _ in range(blocks)
        )
        self.latents_to_key_value = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width))
        self.readout = CrossAttention(width, cross_heads, mlp_ratio)
        last = nn.Linear(width, state_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.LayerNorm(width), last)

    def encode(self, condition: FutureCondition) -> Encoded:
        """Project a condition of S states with n samples each, once for all diffusion steps.

        Masked entries of the history influence nothing and may hold anything, also NaN.

        Raises:
            ValueError: The condition lacks what the policy representation needs.
        """
        offsets = condition.offsets
        tokens, mask = self._state_tokens(condition)
        offset_tokens = self.offset_token(offsets) + self.positions[2]
        bias = self._token_bias(mask, tokens.shape[1], *offsets.shape)
        among = self._among(self._grid(*offsets.shape)[2])
        return Encoded(self.to_key_value(tokens), self.to_key_value(offset_tokens), bias, among)

    def _state_tokens(
        self, condition: FutureCondition
    ) -> tuple[Float[Tensor, "S C width"], Bool[Tensor, "S k"] | None]:
        """Return the tokens of s_t and φ(π), and where the history that ends them has states."""
        tokens = [(self.state_token(condition.states) + self.positions[3]).unsqueeze(1)]
        mask = None
        if self.policy_token is not None:
            if condition.policy is None:
                raise ValueError("policy='scalar' needs a condition with `policy` (S,)")
            tokens.append((self.policy_token(condition.policy) + self.positions[4]).unsqueeze(1))
        elif self.policy == "sequential":
            tokens.append(self._history_tokens(condition))
            mask = condition.history_mask
        return torch.cat(tokens, dim=1), mask

    def _among(self, group: int) -> Float[Tensor, "1 group_latents group_latents"] | None:
        count = self.latents.shape[1]
        if group == 1:
            return None
        return own_block(group, count, count, self.latents.device).unsqueeze(0)

    def _grid(self, states: int, samples: int) -> tuple[int, int, int]:
        """Return the numbers of sets of state tokens, of groups per set, and of rows per group.

        Rows of a group attend side by side. They are samples of one state, whose tokens they share,
        or, with one sample per state, several states. On a CPU a group has up to 32 latents,
        elsewhere one row.
        """
        most = max(1, 32 // self.latents.shape[1]) if self.latents.device.type == "cpu" else 1
        if samples > 1:
            group = math.gcd(most, samples)
            return states, samples // group, group
        group = math.gcd(most, states)
        return states // group, 1, group

    def _token_bias(
        self, mask: Bool[Tensor, "S k"] | None, per_state: int, states: int, samples: int
    ) -> Float[Tensor, "#groups #queries tokens"] | None:
        sets, groups, group = self._grid(states, samples)
        if group == 1 and mask is None:
            return None
        device = self.latents.device
        own = own_block(group, 1, 1, device)
        shared = torch.zeros(group, per_state, device=device)
        of_state = shared if samples > 1 else own_block(group, 1, per_state, device)
        bias = torch.cat([of_state, *[own] * self._own_tokens], dim=1).unsqueeze(0)
        if mask is not None:
            hidden = torch.zeros(mask.shape, device=device).masked_fill(~mask, -torch.inf)
            hidden = nn.functional.pad(hidden, (1, 0))  # s_t comes first and is never masked
            hidden = hidden.reshape(sets, -1).repeat_interleave(groups, 0)
            bias = bias + nn.functional.pad(hidden, (0, self._own_tokens * group)).unsqueeze(1)
        return bias.repeat_interleave(self.latents.shape[1], 1) if group > 1 else bias

    def _history_tokens(self, condition: FutureCondition) -> Float[Tensor, "S k width"]:
        states, mask = condition.history, condition.history_mask
        actions = condition.history_actions
        if states is None or not 0 < states.shape[1] <= self.history:
            raise ValueError(
                f"policy='sequential' needs a condition with `history` (S, k, D), k from 1 to "
                f"{self.history}; got {None if states is None else tuple(states.shape)}"
            )
        if mask is not None:
            # A weight of 0 would let a NaN through.
            states = states.where(mask.unsqueeze(-1), 0)
        tokens = self.state_token(states)
        if self.action_token is not None:
            if actions is None:
                raise ValueError("action_dim > 0 needs a condition with `history_actions`")
            if mask is not None:
                actions = actions.where(mask.unsqueeze(-1), 0)
            tokens = tokens + self.action_token(actions)
        # Counted from s_t backwards, so that a shorter history keeps its meaning.
        return tokens + self.positions[-states.shape[1] :]

    def denoise(
        self, x_t: Float[Tensor, "B D"], t: Int[Tensor, " B"], encoded: Encoded
    ) -> Float[Tensor, "B D"]:
        """Predict from B = S * n noisy states at times t, row i * n + j for sample j of state i.

        In sampling t is the same in all rows and is embedded once. An expanded tensor
        (``torch.tensor([t]).expand(rows)``) shows it on any device. On a CPU other tensors are
        compared, which on a GPU would wait for the device.
        """
        sets, groups, group = self._grid(*encoded.offsets.shape[:2])
        noisy = self.noisy_token(x_t) + self.positions[0]
        time = self.time_token(_shared(t)) + self.positions[1]
        of_state = encoded.condition.reshape(sets, 1, -1, *encoded.condition.shape[2:])
        tokens = [of_state.expand(-1, groups, -1, -1, -1)]
        by_row = (encoded.offsets.flatten(0, 1), self.to_key_value(noisy), self.to_key_value(time))
        for own in by_row:
            tokens.append(own.expand(len(x_t), -1, -1).unflatten(0, (sets, groups, group)))

        latents, among = self.latents.repeat(1, group, 1), encoded.among
        blocks = list(zip(self.cross_blocks, self.self_blocks, strict=True))
        latents = attend_in_turn(blocks, latents, tokens, encoded.bias, among)
        to_own = None if among is None else among[:, :: self.latents.shape[1]]
        query = (noisy + time).unflatten(0, (-1, group))
        read = self.readout(query, self.latents_to_key_value(latents), to_own)
        return self.out(read.flatten(0, 1))

    def forward(
        self, x_t: Float[Tensor, "B D"], t: Int[Tensor, " B"], condition: FutureCondition
    ) -> Float[Tensor, "B D"]:
        """Return ``denoise(x_t, t, encode(condition))``, as a training step needs it."""
        return self.denoise(x_t, t, self.encode(condition))


class StatePerceiverDenoiser(PerceiverDenoiser):
    """The same in another order: latents read the condition, and queries of x_t read the latents.

    Departure from the paper, whose latents attend to x_t, Δt and the diffusion time as well, so
    that all blocks run anew for each sample and solver step: here the latents of a state see s_t
    and φ(π) alone and are made once, in ``encode``. One query a sample, made of x_t, Δt and the
    diffusion time, attends to them in ``blocks`` cross-attentions, whose MLPs are ``READ_RATIO``
    times as wide as those of the latents. A prediction then costs what one latent costs there: with
    64 latents, 32 samples a state and 10 solver steps a fiftieth in all.

    Args:
        state_dim: Size D of a state, with the absorbing flag.
        **options: As ``PerceiverDenoiser``'s.
    """

    READ_RATIO = 4

    _own_tokens = 0

    def __init__(self, state_dim: int, **options: Any) -> None:
        super().__init__(state_dim, **options)
        blocks, width, heads = len(self.cross_blocks), self.latents.shape[-1], self.readout.heads
        ratio = self.READ_RATIO * options.get("mlp_ratio", 1.0)
        del self.readout  # the paper's one
        self.readouts = nn.ModuleList(CrossAttention(width, heads, ratio) for _ in range(blocks))
        self.latents_to_key_value = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, blocks * 2 * width),
            nn.Unflatten(-1, (blocks, -1)),
        )

    def encode(self, condition: FutureCondition) -> EncodedLatents:  # type: ignore[override]
        """Make the latents of S states, once for all their samples and diffusion steps.

        Raises:
            ValueError: The condition lacks what the policy representation needs.
        """
        states, samples = condition.offsets.shape
        sets, _, group = self._grid(states, 1)
        tokens, mask = self._state_tokens(condition)
        bias = self._token_bias(mask, tokens.shape[1], states, 1)
        key_value = self.to_key_value(tokens).unflatten(0, (sets, -1)).flatten(1, 2).unsqueeze(1)
        latents = attend_in_turn(
            list(zip(self.cross_blocks, self.self_blocks, strict=True)),
            self.latents.repeat(1, group, 1),
            [key_value],
            bias,
            self._among(group),
        )
        apart = None
        if group > 1:
            apart = own_block(group, samples, self.latents.shape[1], self.latents.device)[None]
        offsets = self.offset_token(condition.offsets) + self.positions[2]
        return EncodedLatents(self.latents_to_key_value(latents), offsets, apart)

    def denoise(  # type: ignore[override]
        self, x_t: Float[Tensor, "B D"], t: Int[Tensor, " B"], encoded: EncodedLatents
    ) -> Float[Tensor, "B D"]:
        """Predict from B = S * n noisy states at times t, row i * n + j for sample j of state i."""
        noisy = self.noisy_token(x_t) + self.positions[0]
        time = self.time_token(_shared(t)) + self.positions[1]
        query = noisy + time + encoded.offsets.flatten(0, 1)
        query = query.unflatten(0, (len(encoded.latents), -1))
        for index, block in enumerate(self.readouts):
            query = block(query, encoded.latents[:, :, index], encoded.bias)
        return self.out(query.flatten(0, 1))


def _shared(t: Int[Tensor, " B"]) -> Int[Tensor, " #B"]:
    """Return one time in place of many equal ones, as far as that shows without a wait."""
    if t.stride(0) == 0 or (t.device.type == "cpu" and bool((t == t[0]).all())):
        return t[:1]
    return t
