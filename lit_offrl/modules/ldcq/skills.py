"""What acts by latents: a skill is chosen, executed for some steps, and chosen anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError


class SkillPolicy:
    """Decodes one latent an environment for ``execute_steps`` steps, then takes another.

    Environments begin and end their episodes at different times: those that need a latent at a step
    get theirs in one call, the others go on with what they have.

    Args:
        choose: maps raw observations (N, o) on ``device`` to latents (N, z).
        decode: maps raw observations (E, o) and latents (E, z) to actions (E, a).
        execute_steps: steps of a latent.
        device: where both compute.

    Raises:
        ConfigError: ``execute_steps`` is below 1.
    """

    def __init__(
        self,
        choose: Callable[[Tensor], Tensor],
        decode: Callable[[Tensor, Tensor], Tensor],
        execute_steps: int,
        device: torch.device,
    ) -> None:
        if execute_steps < 1:
            raise ConfigError(f"execute_steps is {execute_steps}; give at least 1.")
        self._choose, self._decode, self._steps = choose, decode, execute_steps
        self._device = device
        self._latents: Tensor | None = None
        self._left = np.zeros(0, np.int64)  # steps for which each environment's latent still holds

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Forget the skills of the environments that begin an episode."""
        if mask is None or len(self._left) != len(mask):
            self._latents = None
        else:
            self._left[np.asarray(mask, bool)] = 0

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Map raw observations (E, o) to actions (E, a), float32."""
        rows = torch.as_tensor(observations, dtype=torch.float32).to(self._device)
        if self._latents is None or len(self._latents) != len(rows):
            self._latents = self._choose(rows)
            self._left = np.full(len(rows), self._steps)
        elif not self._left.all():
            due = np.flatnonzero(self._left == 0)
            index = torch.from_numpy(due).to(self._device)
            self._latents = self._latents.index_copy(0, index, self._choose(rows[index]))
            self._left[due] = self._steps
        self._left -= 1
        return self._decode(rows, self._latents).float().cpu().numpy()
