"""How methods are optimised: one AdamW, a parameter group and a clipping for each network."""

from __future__ import annotations

import math
from collections.abc import Hashable
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_in
from lit_offrl.modules.calls import Calls
from lit_offrl.modules.graphs import CapturableAdamW, go_without, reason_against
from lit_offrl.modules.hyperparameters import KeepsOptions

Decay = Literal["constant", "cosine"]


class CostChange(NamedTuple):
    """Where a step's cost changes."""

    step: int
    """The first optimiser step that costs something else."""
    dearer: bool
    """Whether it is known to cost more, rather than not known or less."""


class OneOptimizer(KeepsOptions):
    """A LightningModule whose networks share one optimiser and keep their gradients apart.

    Each optimiser step moves the parameters that the step's losses train, at rates that are
    functions of the step alone, and then calls ``after_step()``.

    Args:
        learning_rate: Adam's learning rate, at least 0.
        decay: The learning rate stays ``constant``, or falls by a ``cosine`` to 0 at
            ``trainer.max_steps``.
        steps_per_call: Largest number of optimiser steps, at least 1, in one call of the training
            loop. More steps share the cost of a call; by default a call has as many as take half a
            second, at most 100. A call ends early where a validation, a checkpoint or a log entry
            is due, so weights, curves and checkpoints do not depend on this number; only a signal
            has to wait for the end of a call.
        cuda_graphs: Whether the steps of a call are replays of a CUDA graph, so that the GPU does
            not wait for Python. By default graphs are used where they are possible, and a message
            says why if they are not. With ``true``, training is refused where graphs are not
            possible; with ``false``, they are never used. Results differ by rounding at most.

    Raises:
        ConfigError: A number is out of its range.
    """

    eager_because: str | None = None
    """Why no CUDA graph can hold the steps of this class, in words; None where one can.

    One can if ``losses()`` and ``after_step()`` do the same with any batch in all steps that have
    one ``graph_key()``, and never wait for the device: no ``item()``, no indexing by masks, no
    tensor made of Python's numbers, nothing kept from step to step but by weights and buffers.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 3e-4,
        decay: Decay = "constant",
        steps_per_call: int | None = None,
        cuda_graphs: bool | None = None,
    ) -> None:
        super().__init__()
        require_in("[0, inf)", learning_rate=learning_rate)
        require_in("[1, inf)", steps_per_call=steps_per_call)
        self.learning_rate = learning_rate
        self.decay = decay
        self.steps_per_call = steps_per_call
        self.cuda_graphs = cuda_graphs
        self.calls: Calls | None = None
        """Those of the fit under way, once its loader asks for them."""

    # ---- what a method gives -------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by the network's name."""
        raise NotImplementedError(f"{type(self).__name__} must define parameter_groups().")

    def after_step(self) -> None:
        """Move target networks and averages, after each optimiser step.

        ``self.trainer.global_step`` does not count the step yet: it is what ``losses()`` saw, 0
        after the first step.
        """

    def idle_parameters(self) -> list[nn.Parameter]:
        """Trained parameters that the losses of the current step do not depend on."""
        return []

    def trained_until(self, network: str) -> int | float:
        """Step after which a parameter group rests; its decaying rate is 0 by then."""
        return math.inf

    def cost_changes(self, step: int) -> CostChange | None:
        """The next step, after a given one, from which a step computes something else, if any."""
        return None

    def graph_key(self, step: int) -> Hashable:
        """What kind of step a step is, where ``losses()`` or ``after_step()`` depend on it."""
        return 0

    def weight_decay_of(self, network: str) -> float:
        """AdamW's decay of a parameter group's weights; none by default."""
        return 0.0

    def learning_rate_of(self, network: str, step: int) -> float:
        """Rate of a parameter group at an optimiser step: a function of the step alone.

        Raises:
            ConfigError: The rate is to decay, and the Trainer has no last step.
        """
        if self.decay == "constant":
            return self.learning_rate
        last = self.trainer.max_steps
        if last < 1:
            raise ConfigError(f"decay is '{self.decay}', which needs a positive trainer.max_steps.")
        done = min(1.0, step / min(last, self.trained_until(network)))
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    # ---- Lightning -----------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make one AdamW with a parameter group a network; without decay of weights it is Adam.

        Raises:
            ConfigError: CUDA graphs are required but not possible.
        """
        groups: list[dict[str, Any]] = [
            {"params": parameters, "name": name, "weight_decay": self.weight_decay_of(name)}
            for name, parameters in self.parameter_groups().items()
        ]
        optimizer = self._adamw(groups)
        optimizer.register_load_state_dict_post_hook(_require_fitting)
        return optimizer

    def _adamw(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        if self._trainer is not None and self.cuda_graphs is not False:
            if (why := reason_against(self)) is None:  # type: ignore[arg-type]
                return CapturableAdamW(groups, self.device)
            go_without(self, why)  # type: ignore[arg-type]
        # fused: one kernel for all tensors, since small networks spend a third of a step on the
        # rest; in float16 the gradients must be unscaled before they are clipped, which it cannot.
        fused = self._trainer is None or self.trainer.precision != "16-mixed"
        return torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=0.0, fused=fused)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep Adam's momentum from moving what this step does not train."""
        for parameter in self.idle_parameters():
            parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each network's gradients by themselves, as the papers' optimisers do.

        Lightning would take all networks for one, so that a critic's large gradients shrink an
        actor's, and refuses for a fused optimiser in any mixed precision.
        """
        if not gradient_clip_val:
            return
        by_value = gradient_clip_algorithm == "value"
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        for group in optimizer.param_groups:
            if moved := [p for p in group["params"] if p.grad is not None]:  # none: it rests
                clip(moved, gradient_clip_val)

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Set each network's learning rate of the current step, which overrides a resumed one."""
        step = self.trainer.global_step
        for group in optimizer.param_groups:
            rate = self.learning_rate_of(group["name"], step)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def teardown(self, stage: str) -> None:
        """Give back what calls hold, such as the memory of graphs."""
        self.calls = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the call's steps, the last as Lightning does; targets follow each."""
        begun, optimizer = perf_counter(), self.trainer.optimizers[0]
        calls = None if self.calls is None or self.calls.alone else self.calls
        if calls is not None:
            calls.train_on_earlier(optimizer)
        self.set_rates(optimizer)
        super().optimizer_step(*args, **kwargs)
        self.after_step()
        if calls is not None:
            calls.ended(perf_counter() - begun)


def _require_fitting(optimizer: torch.optim.Optimizer) -> None:
    """Refuse moments of other shapes than their weights', which the fused kernel does not look at.

    Raises:
        ValueError: The checkpoint's weights stood in another order, or were of other shapes.
    """
    for group in optimizer.param_groups:
        for number, weight in enumerate(group["params"]):
            state = optimizer.state.get(weight) or {}
            for name in ("exp_avg", "exp_avg_sq") if state else ():
                there = getattr(state.get(name), "shape", None)
                if there != weight.shape:
                    raise ValueError(
                        f"its optimiser has {name} of shape {there and tuple(there)} for weight "
                        f"{number} of '{group['name']}', whose shape is {tuple(weight.shape)}"
                    )
