"""Multi-layer perceptrons: plain, and densely connected as in DVF (Table 1)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.common.ranges import require_in
from lit_offrl.common.tracing import traced

_MANY = 1 << 14
"""Size of a tensor from which on several simple passes are faster than PyTorch's `Mish`."""
_TYPES = (torch.float32, torch.bfloat16)


class _MishOnCPU(torch.autograd.Function):
    """Computes x tanh(softplus(x)) by one sigmoid p: with u = p (2 − p) it is x u / (2 − u).

    No term cancels for x < 0, and none overflows for x > 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = x.float()  # of bfloat16's eight digits few would be left
        sigmoid = torch.sigmoid(wide)
        u = (2 - sigmoid).mul_(sigmoid)
        gate = u.div_(2 - u)
        out = wide * gate
        if ctx.needs_input_grad[0]:
            # d gate / dx = (1 − gate²) sigmoid
            slope = torch.addcmul(wide, out, gate, value=-1)
            ctx.save_for_backward(torch.addcmul(gate, slope, sigmoid).to(x.dtype))
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return derivative * gradient


class Mish(nn.Module):
    """x · tanh(softplus(x)) (Misra 2019).

    Large tensors on a CPU are computed otherwise than by PyTorch, whose function takes as long as
    the products around it. The two differ by rounding, and the gradient of this one cannot be
    differentiated again.
    """

    def forward(self, x: Float[Tensor, "*B dim"]) -> Float[Tensor, "*B dim"]:
        """Apply the activation to each number."""
        if traced() or x.device.type != "cpu" or x.dtype not in _TYPES or x.numel() < _MANY:
            return F.mish(x)
        return _MishOnCPU.apply(x if torch.is_grad_enabled() else x.detach())


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "mish": Mish,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}
"""Activations by their names in options; ``gelu_tanh`` is GELU as JAX computes it by default."""

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "mish", "tanh", "elu"]
"""A name of them."""

LayerNorms = Literal[False, True, "after"]
"""Whether there is a LayerNorm between a layer and its activation, or ``after`` the activation."""


def make_activation(name: str, overwrite: bool = False) -> nn.Module:
    """Make an activation from its name.

    Args:
        name: A name of `ACTIVATIONS`.
        overwrite: Whether nothing else needs the numbers that it gets. ReLU then writes over them,
            since its gradient needs the result alone.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    activation = ACTIVATIONS[name]()
    if isinstance(activation, nn.ReLU):
        activation.inplace = overwrite
    return activation


def require_widths(hidden: Sequence[int], name: str = "hidden") -> None:
    """Refuse layers without units, by the name of the option that has them.

    Raises:
        ConfigError: A width is below 1.
    """
    if not all(width >= 1 for width in hidden):
        raise ConfigError(f"{name} is {list(hidden)}: give widths of at least 1.")


class Dropout(nn.Module):
    """Dropout whose masks come from the noise of the training step, like all other noise.

    That of torch draws from the global generator, which a resumed run would have to restore and two
    processes could not share.

    Args:
        probability: Probability in [0, 1) of dropping a unit.

    Attributes:
        noise: Generator of the masks in training; the global generator if None.

    Raises:
        ConfigError: The probability is outside [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        require_in("[0, 1)", dropout=probability)
        self.probability = probability
        self.noise: ShardedGenerator | None = None

    def forward(self, x: Float[Tensor, "*B dim"]) -> Float[Tensor, "*B dim"]:
        """Zero units of ``(…, dim)`` and scale the others; in eval mode return all as they are."""
        if not self.training or self.probability == 0.0:
            return x
        if self.noise is None:
            return F.dropout(x, self.probability)
        kept = self.noise.uniform(x.shape) >= self.probability
        return x * (kept / (1.0 - self.probability)).to(x.dtype)


def in_float32(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply the last layer of values or moments in float32, also where autocast holds.

    Near 100, bfloat16's numbers lie 0.5 apart, and values of actions less. What is before the last
    layer may be rounded: its errors are small beside the features, and the layer averages them. A
    narrow product is faster so, too.
    """
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return layer(*inputs)
    with torch.autocast(device, enabled=False):
        return layer(*(each.float() for each in inputs))


class MLP(nn.Sequential):
    """Linear layers; all but the last are followed by [LayerNorm,] activation [and dropout].

    They map ``(…, in_dim)`` to ``(…, out_dim)``.

    Args:
        in_dim: Size of an input.
        hidden: Widths of the hidden layers; without any there is one linear layer.
        out_dim: Size of an output.
        activation: A name of `ACTIVATIONS`.
        layer_norm: Whether a LayerNorm is applied between each hidden layer and its activation, or
            ``after`` it.
        dropout: Probability in [0, 1) of dropping a hidden unit.
        precise: Whether the last layer is one of `in_float32`; not where it gives features.

    Raises:
        ConfigError: A width is below 1, or the probability is outside [0, 1).
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        activation: str = "relu",
        layer_norm: LayerNorms = False,
        dropout: float = 0.0,
        precise: bool = True,
    ) -> None:
        require_widths(hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise((in_dim, *hidden)):
            layers.append(nn.Linear(before, after))
            if layer_norm is True:
                layers.append(nn.LayerNorm(after))
            layers.append(make_activation(activation, overwrite=True))
            if layer_norm == "after":
                layers.append(nn.LayerNorm(after))
            if dropout != 0:
                layers.append(Dropout(dropout))
        super().__init__(*layers, nn.Linear((in_dim, *hidden)[-1], out_dim))
        self.precise = precise

    def forward(self, x: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        """Map ``(…, in_dim)`` to ``(…, out_dim)``."""
        *hidden, last = self
        for layer in hidden:
            x = layer(x)
        return in_float32(last, x) if self.precise else last(x)


class DenseNetMLP(nn.Module):
    """An MLP in which every layer takes the input and the features of all layers before it.

    Each hidden layer is linear → LayerNorm → activation, and the last one of `in_float32`. Source:
    DVF, Table 1 ("256 × 256 DenseNet MLP", "LayerNorm in between all layers"); connections as in
    Huang et al. 2017. The options are those of `MLP`.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int] = (256, 256),
        out_dim: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        require_widths(hidden)
        self.hidden = nn.ModuleList()
        for width in hidden:
            self.hidden.append(
                nn.Sequential(
                    nn.Linear(in_dim, width),
                    nn.LayerNorm(width),
                    make_activation(activation, overwrite=True),
                )
            )
            in_dim += width
        self.out = nn.Linear(in_dim, out_dim)

    def forward(self, x: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        """Map ``(…, in_dim)`` to ``(…, out_dim)``."""
        for layer in self.hidden:
            x = torch.cat([x, layer(x)], dim=-1)
        return in_float32(self.out, x)
