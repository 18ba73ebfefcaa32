"""A policy's decision as a graph of tensors, for any number of environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import CountedNoise, GivenNoise
from lit_offrl.common.tracing import tracing
from lit_offrl.export.facts import NEXT_STATE, NOISE, STATE
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.policies import State, StepPolicy

_COUNTED, _TRACED = 2, 1009
"""Numbers of environments of a first run, and while tracing. The latter is a size that nothing else
has: what has the same size in an example is taken for the same symbol."""


@dataclass(frozen=True)
class Graph:
    """A decision of E environments, E ≥ 1, as a graph.

    Attributes:
        program: Takes and gives tensors (E, size), in the order of ``inputs`` and ``outputs``.
        inputs: Sizes by name: ``observations``, what the policy is told beside, ``noise``,
            ``state``.
        outputs: Sizes by name: ``actions``, ``next_state``.
        state: Shapes of the parts of the state, in order.
        choices: Number of choices that last for several decisions. Where each is due (E,), and what
            it is (E, …), the program gives after the outputs.
    """

    program: ExportedProgram
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    state: Mapping[str, tuple[int, ...]]
    choices: int = 0


class Decision(nn.Module):
    """What is traced: a step of a policy, with its state as one tensor.

    Args:
        policy: The policy.
        module: Its method, whose weights the graph has.
        beside: Names of what the policy is told beside observations.
        noise: Counts of numbers that the draws of a step take, in order.
        state: Example of the state, which gives names, shapes and types of its parts.
        with_choices: Whether choices that last are given, too.
    """

    def __init__(
        self,
        policy: StepPolicy,
        module: OfflineModule,
        beside: Sequence[str],
        noise: Sequence[int],
        state: State,
        with_choices: bool = False,
    ) -> None:
        super().__init__()
        self._with_choices = with_choices
        self.nets = nn.ModuleDict(dict(module.named_children()))
        self._policy, self._beside, self._noise = policy, beside, noise
        self._parts = [(name, part.shape[1:], part.dtype) for name, part in state.items()]

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Map what ``Graph.inputs`` names to what ``Graph.outputs`` names."""
        rows = iter(parts)
        observations = next(rows)
        beside = {name: next(rows) for name in self._beside}
        noise = next(rows) if sum(self._noise) else observations[:, :0]
        state = self._unpacked(next(rows)) if self._parts else {}
        with GivenNoise(noise, self._noise).used() as given:
            actions, following = self._policy.step(observations, state, **beside)
        choices = given.choices if self._with_choices else []
        kept = (self._packed(following),) if self._parts else ()
        return (actions.float(), *kept, *(part for choice in choices for part in choice))

    def _unpacked(self, packed: Tensor) -> State:
        columns = packed.split([math.prod(shape) for _, shape, _ in self._parts], dim=1)
        return {
            name: part.unflatten(1, shape).to(dtype) if shape else part.squeeze(1).to(dtype)
            for part, (name, shape, dtype) in zip(columns, self._parts, strict=True)
        }

    def _packed(self, state: State) -> Tensor:
        parts = [state[name].float() for name, *_ in self._parts]
        return torch.cat([part.reshape(part.shape[0], -1) for part in parts], dim=1)


def graph_of(policy: StepPolicy, module: OfflineModule, with_choices: bool = False) -> Graph:
    """Trace a policy's decision, the whole of it, from raw observations to actions.

    Args:
        policy: A policy of ``module``.
        module: In eval mode, on the CPU, in float32.
        with_choices: Whether the program also gives the choices that last for several decisions.

    Raises:
        ConfigError: The decision does something that no graph can do.
    """
    beside, width = policy.beside_sizes(), module.observation_dim
    told = {name: torch.zeros(_COUNTED, size) for name, size in beside.items()}
    state: State = {}
    for _ in range(2):  # the first step has no state yet, so no choice that may last
        counted = CountedNoise(_COUNTED)
        with torch.no_grad(), counted.used():
            actions, state = policy.step(torch.zeros(_COUNTED, width), state, **told)
    inputs = {"observations": width, **beside, NOISE: sum(counted.sizes)}
    inputs[STATE] = sum(math.prod(part.shape[1:]) for part in state.values())
    outputs = {"actions": actions.shape[1], NEXT_STATE: inputs[STATE]}
    told_of = (list(beside), counted.sizes, state, with_choices)
    decision = Decision(policy, module, *told_of)
    inputs, outputs = ({k: v for k, v in sizes.items() if v} for sizes in (inputs, outputs))
    examples = tuple(torch.zeros(_TRACED, size) for size in inputs.values())
    try:
        with torch.no_grad(), tracing():
            program = _exported(decision, examples, by_operators=counted.differentiates)
    except Exception as error:  # torch raises many kinds, with pages of advice to its developers
        raise ConfigError(
            f"The policy of {type(module).__name__} cannot be written as a graph"
            f" ({type(error).__name__}): its step has to be of tensor operations alone, the same"
            " ones for any number of rows."
        ) from error
    shapes = {name: tuple(part.shape[1:]) for name, part in state.items()}
    choices = len(counted.choices) if with_choices else 0
    return Graph(program, inputs, outputs, shapes, choices)


def _exported(
    decision: nn.Module, examples: tuple[Tensor, ...], by_operators: bool
) -> ExportedProgram:
    """Trace; first to single operators, those of gradients too, where ``torch.export`` fails."""
    if by_operators:
        operators = make_fx(
            decision,
            _simpler_gradients(),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )
        decision = _Called(operators(*examples))
    rows = ({0: Dim("E", min=1)},) * len(examples)
    return torch.export.export(decision, examples, dynamic_shapes={"parts": rows}, strict=False)


def _simpler_gradients() -> dict[Any, Callable[..., Any]]:
    """Return what operators that ONNX lacks are made of: gradients of Mish and of convolutions."""
    aten = torch.ops.aten
    return {
        **get_decompositions([aten.mish_backward]),
        aten.convolution_backward.default: _convolution_backward,
    }


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> Any:
    """Gradient of a convolution by its input, a transposed convolution; others are left as is."""
    if transposed or list(wanted) != [True, False, False]:
        return NotImplemented
    # what the strides have left over at the input's end
    rest = [
        (x.shape[2 + at] + 2 * padding[at] - dilation[at] * (weight.shape[2 + at] - 1) - 1) % step
        for at, step in enumerate(stride)
    ]
    options = (stride, padding, dilation, True, rest, groups)
    return torch.ops.aten.convolution.default(gradient, weight, None, *options), None, None


class _Called(nn.Module):
    """A traced function, with the signature of ``Decision``."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, *parts: Tensor) -> Any:
        return self.function(*parts)
