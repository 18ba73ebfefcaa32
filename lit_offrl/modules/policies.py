"""Policies made from networks: normalise, run, hand back numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class NetworkPolicy:
    """A memoryless policy around a function from raw observations to actions.

    Args:
        act: maps observations (E, o) on ``device`` to actions (E, a).
        device: where the function computes.
    """

    def __init__(self, act: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._act = act
        self._device = device

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Nothing lasts between steps."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map raw observations (E, o) to actions (E, a), float32."""
        rows = torch.as_tensor(observations, dtype=torch.float32).to(self._device)
        with torch.no_grad():
            return self._act(rows).float().cpu().numpy()
