"""Policies made from networks: one function of observations and a state, which the policy holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.randomness import given_noise

if TYPE_CHECKING:
    from lit_offrl.modules.base import OfflineModule

State = dict[str, Tensor]
"""What E environments' policy remembers: tensors (E, …) by name. Where an environment's rows are 0
it begins an episode; where there are no tensors, all do."""


class StepPolicy(ABC):
    """A policy that is one function: observations and a state in, actions and the next state out.

    A subclass gives ``step``, which has no effects; the policy holds the state between steps.

    Args:
        device: Where the function computes.
    """

    made_by: tuple[OfflineModule, Mapping[str, Any]] | None = None
    """The method and the options that it was made by, where a method's ``policy`` made it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: State = {}

    @abstractmethod
    def step(self, observations: Tensor, state: State, **beside: Tensor) -> tuple[Tensor, State]:
        """Return actions (E, a) and the next state for raw observations (E, o) and a state.

        Args:
            observations: Raw observations on the policy's device.
            state: What the step before returned; without tensors at the begin.
            **beside: What ``beside_sizes`` names.
        """

    def beside_sizes(self) -> dict[str, int]:
        """Sizes g of the further arguments (E, g) of ``step``, by name."""
        return {}

    def _beside(self, observations: np.ndarray) -> dict[str, Tensor]:
        """Return what ``step`` takes beside observations (E, o)."""
        return {}

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Begin new episodes where ``mask`` (E,) is True, everywhere when it is None."""
        held = next(iter(self._state.values()), None)
        if mask is None or held is None or len(held) != len(mask):
            self._state = {}
            return
        begun = torch.from_numpy(np.asarray(mask, bool)).to(self._device)
        self._state = {
            name: part.masked_fill(begun.view(-1, *(1,) * (part.ndim - 1)), 0)
            for name, part in self._state.items()
        }

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map raw observations (E, o) to actions (E, a), float32."""
        rows = torch.as_tensor(observations, dtype=torch.float32).to(self._device)
        if any(len(part) != len(rows) for part in self._state.values()):
            self._state = {}
        with torch.no_grad():
            actions, self._state = self.step(rows, self._state, **self._beside(observations))
            return actions.float().cpu().numpy()

    def export(
        self,
        output: str | Path,
        format: Literal["onnx", "torch_export", "safetensors"] = "onnx",
    ) -> Path:
        """Write the policy to a folder, for a robot, a registry or a hub.

        Args:
            output: The folder; see ``lit_offrl.export.export_policy`` for its files.
            format: Of the file.

        Returns:
            The policy's file.

        Raises:
            LitOffRLError: As in ``export_policy``.
        """
        from lit_offrl.export import export_policy  # which imports all modules

        return export_policy(self, output, format)


class NetworkPolicy(StepPolicy):
    """A memoryless policy around a function from raw observations to actions.

    Args:
        act: Maps observations (E, o) on ``device`` to actions (E, a).
        device: Device of the function.
    """

    def __init__(self, act: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__(device)
        self._act = act

    def step(self, observations: Tensor, state: State, **beside: Tensor) -> tuple[Tensor, State]:
        """Return actions (E, a); nothing lasts between steps."""
        return self._act(observations), state


def renewed(
    due: Tensor, choose: Callable[..., Tensor], conditions: Sequence[Tensor], held: Tensor
) -> Tensor:
    """Return choices (E, …) that are made anew where they are due, and held elsewhere.

    Only for rows that are due a choice is made; in a graph, which has no such thing, for all rows,
    and where the numbers of a decision are given, of which each draw then has its own.

    Args:
        due: Where to choose (E,), bool.
        choose: Maps conditions of N rows to choices (N, …).
        conditions: Tensors (E, …).
        held: Choices so far (E, …).
    """
    if (given := given_noise()) is not None:
        chosen = choose(*conditions)
        given.choices.append((due, chosen))
        return torch.where(due.view(-1, *(1,) * (held.ndim - 1)), chosen, held)
    index = due.nonzero()[:, 0]
    if not len(index):
        return held
    return held.index_copy(0, index, choose(*(part[index] for part in conditions)))
