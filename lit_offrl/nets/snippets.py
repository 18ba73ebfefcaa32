"""Networks of snippets of H steps: their encoder, the prior of their latents, and the world model.

Source: LDCQ, appendix A.2.1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_offrl.nets.gru import run_gru
from lit_offrl.nets.mlp import MLP

_HOLD = 1e4  # a sigmoid of it is 1 in every precision


class GaussianHead(nn.Module):
    """Maps features to μ and σ by a 2-layer MLP each; σ goes through a softplus.

    Args:
        in_dim: Size of the features.
        out_dim: Size z of μ and of σ.
        width: Width of the hidden layers.
        min_std: Number added to σ, so that no density is infinite.
    """

    def __init__(self, in_dim: int, out_dim: int, width: int = 256, min_std: float = 1e-4) -> None:
        super().__init__()
        self.mean = MLP(in_dim, [width], out_dim)
        self.std = MLP(in_dim, [width], out_dim)
        self.min_std = min_std

    def forward(self, x: Float[Tensor, "*B in"]) -> tuple[Tensor, Tensor]:
        """Return μ and σ ``(…, z)``, float32 in any precision."""
        return self.mean(x).float(), F.softplus(self.std(x).float()) + self.min_std


class SnippetEncoder(nn.Module):
    """q(z | s_0, a_0, …, s_{H−1}, a_{H−1}): bidirectional GRU layers over encoded steps.

    A step's features are an MLP of the state with the raw action appended. The head takes the end
    states of both directions: the forward one after the last real step, the backward one after the
    first.

    Padded steps change nothing: their features are zeros, and a flag beside them opens the GRU's
    update gate, which then keeps its state (up to rounding, as kernels compute n + (h − n)), and
    through which no gradient passes. So one call of the fused kernels serves snippets of all
    lengths, and nothing has to be sorted or counted.

    Args:
        observation_dim: Size o of an observation.
        action_dim: Size a of an action.
        latent_dim: Size z of a latent.
        width: Width of all layers.
        layers: Number of GRU layers (paper: 2; its authors' code has 4).
        min_std: Least σ.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        latent_dim: int = 16,
        *,
        width: int = 256,
        layers: int = 2,
        min_std: float = 1e-4,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers is {layers}; give at least 1")
        self.state = nn.Sequential(MLP(observation_dim, [width], width, precise=False), nn.ReLU())
        dims = (width + action_dim, *[2 * width] * (layers - 1))
        self.layers = nn.ModuleList(nn.GRU(dim + 1, width, bidirectional=True) for dim in dims)
        with torch.no_grad():
            for name, weight in self.layers.named_parameters():
                if "weight_ih" in name:  # rows: reset gate, update gate, candidate
                    weight[:, -1] = 0.0
                    weight[width : 2 * width, -1] = _HOLD
        self.head = GaussianHead(2 * width, latent_dim, width, min_std)

    def forward(
        self,
        observations: Float[Tensor, "B H o"],
        actions: Float[Tensor, "B H a"],
        mask: Bool[Tensor, "B H"],
    ) -> tuple[Float[Tensor, "B z"], Float[Tensor, "B z"]]:
        """Return μ and σ of the latents of snippets, whose padding follows at least one step."""
        left_out = (~mask).transpose(0, 1)[..., None]  # time first, as the kernels have it
        states = self.state(observations.transpose(0, 1)).masked_fill(left_out, 0.0)
        taken = actions.transpose(0, 1).masked_fill(left_out, 0.0).to(states.dtype)
        padding = left_out.to(states.dtype)
        x = torch.cat([states, taken, padding], dim=-1)
        for layer in self.layers[:-1]:
            x = torch.cat([_run(layer, x), padding], dim=-1)
        forwards, backwards = _run(self.layers[-1], x).chunk(2, dim=-1)
        return self.head(torch.cat([forwards[-1], backwards[0]], dim=-1))


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the states (H, B, 2 h) of both directions after each step."""
    assert isinstance(layer, nn.GRU)
    if x.device.type == "cpu":
        return run_gru(layer, x)
    if x.device.type != "cuda":
        outputs: Tensor = layer(x)[0]
        return outputs
    # Under autocast cuDNN's GRU runs in float16 even if bfloat16 was requested, and then nothing
    # scales the loss for its gradients.
    with torch.autocast("cuda", enabled=False):
        outputs = layer(x.float())[0]
        return outputs


class GaussianPrior(nn.Module):
    """The VAE's conditional prior p(z | s), with the options of the `SnippetEncoder`."""

    def __init__(
        self,
        observation_dim: int,
        latent_dim: int = 16,
        *,
        width: int = 256,
        min_std: float = 1e-4,
    ) -> None:
        super().__init__()
        self.state = nn.Sequential(MLP(observation_dim, [width], width, precise=False), nn.ReLU())
        self.head = GaussianHead(width, latent_dim, width, min_std)

    def forward(
        self, observations: Float[Tensor, "*B o"]
    ) -> tuple[Float[Tensor, "*B z"], Float[Tensor, "*B z"]]:
        """Return μ and σ of the latents of snippets that begin in a state."""
        return self.head(self.state(observations))


class WorldModel(nn.Module):
    """Predicts the state s_{t+H} after a skill z as a change of the state s_t before it."""

    def __init__(
        self, observation_dim: int, latent_dim: int = 16, *, hidden: Sequence[int] = (256, 256)
    ) -> None:
        super().__init__()
        self.change = MLP(observation_dim + latent_dim, hidden, observation_dim)

    def forward(
        self, observations: Float[Tensor, "*B o"], latents: Float[Tensor, "*B z"]
    ) -> Float[Tensor, "*B o"]:
        """Return the state after the skill, in the units of ``observations``."""
        return observations + self.change(torch.cat([observations, latents], dim=-1)).float()


def gaussian_kl(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(μ_p, σ_p²)) of each dimension, in nats."""
    ratio = std / prior_std
    shift = (mean - prior_mean) / prior_std
    return 0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()
