"""Optimiser steps as CUDA graphs, captured once and replayed for each further batch.

A small network's step is a few hundred kernels of microseconds, and Python takes longer to start
them than they run. A graph starts them all at once. It repeats exactly what was captured: the same
kernels on the same memory. So a batch is copied to where the captured one lay, noise comes
from a generator that is seeded before each replay, and Adam reads its rates from tensors.

Steps of different kinds (``OneOptimizer.graph_key``) or batch sizes have graphs of their own. What
else a step does in Python happens once, at its capture.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lit_offrl.common.errors import ConfigError, reason, root
from lit_offrl.common.quiet import say

if TYPE_CHECKING:
    from lit_offrl.modules.base import OfflineModule

WARM_UP = 3
"""Steps of a kind before one is captured; by then libraries and Adam have allocated what stays."""
MOST = 8
"""Graphs of a fit at most, as each keeps its memory; steps of further kinds are not captured."""


class Recorder(Protocol):
    """Captures what a function computes on a device."""

    def __init__(self, device: torch.device) -> None:
        """Capture on a device."""

    def warm_up(self, step: Callable[[], object]) -> None:
        """Call a function where captures happen."""

    def capture(
        self, step: Callable[[], object], generator: torch.Generator
    ) -> Callable[[], object]:
        """Call a function without computing anything, and return what computes it.

        Args:
            step: The function.
            generator: The one from which it draws, seeded before each replay.

        Raises:
            RuntimeError: It waits for the device, or does something else that no graph can hold.
        """


class CUDARecorder:
    """PyTorch's CUDA graphs, on a stream of their own and with memory that they share.

    They may share it, as what one leaves there, none reads after another one has run.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Callable[[], object]) -> None:
        """Call it on the stream of captures, between what comes before and after."""
        around = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(around)
        with torch.cuda.stream(self._stream):
            step()
        around.wait_stream(self._stream)

    def capture(
        self, step: Callable[[], object], generator: torch.Generator
    ) -> Callable[[], object]:
        """Capture; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        around = torch.cuda.current_stream(self._stream.device)
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                step()
        finally:
            torch.cuda.set_stream(around)  # where a failed capture would stay on its own
        return graph.replay


RECORDERS: dict[str, type[Recorder]] = {"cuda": CUDARecorder}
"""What captures on a type of device."""


class CapturableAdamW(torch.optim.AdamW):
    """AdamW whose rates are tensors, which a captured step reads at each replay.

    Checkpoints have what those of any AdamW have: rates as numbers, and nothing about graphs.

    Args:
        groups: Parameter groups.
        device: Where the parameters are.
    """

    def __init__(self, groups: list[dict[str, Any]], device: torch.device) -> None:
        # CUDA's kernel reads float32
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self._rate = torch.zeros((), dtype=dtype, device=device)
        groups = [{**group, "lr": self._rate.clone()} for group in groups]
        super().__init__(groups, weight_decay=0.0, fused=True, capturable=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state with rates as numbers."""
        state = super().state_dict()
        return state | {
            "param_groups": [
                {**group, "lr": float(group["lr"]), "capturable": False}
                for group in state["param_groups"]
            ]
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of any AdamW."""
        own = {"fused": True, "capturable": True}
        super().load_state_dict(
            state_dict
            | {
                "param_groups": [
                    {**group, **own, "lr": torch.full_like(self._rate, float(group["lr"]))}
                    for group in state_dict["param_groups"]
                ]
            }
        )


@dataclass
class _Kind:
    """Steps that are the same but for the numbers in their batch."""

    taken: int = 0
    batch: Any = None
    """Where the captured step finds its batch."""
    replay: Callable[[], object] | None = None


class Graphs:
    """The captured steps of a fit.

    Args:
        module: The module in training.
        step: Takes the step of a batch with its number in the epoch.
    """

    def __init__(self, module: OfflineModule, step: Callable[[Any, int], None]) -> None:
        self._module, self._step = module, step
        self._recorder: Recorder | None = RECORDERS[module.device.type](module.device)
        self._kinds: dict[Hashable, _Kind] = {}

    def take(self, batch: Any, number: int) -> None:
        """Take the step of a batch (a named tuple of columns), as a replay where there is one.

        Raises:
            ConfigError: The step cannot be captured, and the user insists on graphs.
        """
        if self._recorder is None:
            return self._step(batch, number)
        module = self._module
        shapes = tuple(None if part is None else part.shape for part in batch)
        key = (module.graph_key(module.trainer.global_step), shapes)
        if key not in self._kinds and len(self._kinds) == MOST:
            return self._step(batch, number)
        kind = self._kinds.setdefault(key, _Kind())
        kind.taken += 1
        if kind.taken <= WARM_UP:
            return self._recorder.warm_up(lambda: self._step(batch, number))
        module.seed_step(number)
        if kind.replay is None:
            kind.batch = type(batch)._make(None if part is None else part.clone() for part in batch)
            try:
                kind.replay = self._recorder.capture(
                    lambda: self._step(kind.batch, number), module.noise.source
                )
            except RuntimeError as error:
                self._give_up(f"a step cannot be captured ({reason(root(error), 160)})")
                return self._step(batch, number)
        else:
            columns = zip(kind.batch, batch, strict=True)
            held, given = zip(*(pair for pair in columns if pair[0] is not None), strict=True)
            torch._foreach_copy_(held, given)
        kind.replay()

    def _give_up(self, why: str) -> None:
        self._kinds, self._recorder = {}, None
        self._module.renew_noise()  # the generator may be that of a broken capture
        go_without(self._module, why)


def reason_against(module: OfflineModule) -> str | None:
    """Why the steps of a module's fit cannot be captured, as far as its options tell."""
    trainer = module.trainer
    if module.device.type not in RECORDERS:
        return f"the fit runs on {module.device.type}"
    if trainer.world_size > 1:
        return "several processes train together"
    if trainer.accumulate_grad_batches > 1:
        return "gradients are accumulated"
    if trainer.precision == "16-mixed":
        return "in float16 the loss is scaled by what earlier steps found"
    return module.eager_because


def go_without(module: OfflineModule, why: str) -> None:
    """Say why steps are not captured, where the user may expect it.

    Raises:
        ConfigError: The user insists on it.
    """
    if module.cuda_graphs:
        raise ConfigError(
            f"cuda_graphs is true, but {why}: leave it out, and graphs are used where they can be."
        )
    if module.cuda_graphs is None and module.device.type in RECORDERS:
        say(f"steps run without CUDA graphs: {why}")
