"""``Windows``: H steps of an episode that a plan may show, with the return from its first on.

episode [start, stop), H = 4:   s_start … s_t  s_{t+1} s_{t+2} s_{t+3} | s_{t+4} …
cut short by its end:           s_t  s_{t+1}  s_{t+2}  s_{t+2}           mask 1 1 0 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_offrl.common.ranges import require_in
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views.base import View
from lit_offrl.datasets.views.snippets import BoundSnippets, Partial, Snippets


class WindowBatch(NamedTuple):
    """Windows of H steps, of which n are real; what the data lack is None.

    Attributes:
        observations: States s_t … s_{t+n−1}, then s_{t+n} as often as it takes.
        actions: Actions a_t … a_{t+n−1}, then zeros.
        mask: Which of the H steps are real.
        returns: Discounted rewards from row t to the episode's end; None where any reward of the
            data is unknown.
    """

    observations: Float[Tensor, "B H o"]
    actions: Float[Tensor, "B H a"]
    mask: Bool[Tensor, "B H"]
    returns: Float[Tensor, " B"] | None


@dataclass(frozen=True)
class Windows(View):
    """The rows of ``Snippets``, each a window that stays where its episode ended.

    Args:
        horizon: Number H of steps of a window, at least 1.
        gamma: Discount of the returns, in [0, 1].
        partial: Which windows of fewer than H steps are kept, as in ``Snippets``.
        terminal_reward: Added to the last reward of an episode that ended in a true terminal,
            in the returns alone.
    """

    horizon: int = 32
    gamma: float = 0.99
    partial: Partial = "terminal"
    terminal_reward: float = 0.0

    def __post_init__(self) -> None:
        require_in("(-inf, inf)", terminal_reward=self.terminal_reward)
        self._snippets()  # refuses what else cannot be

    def bind(self, dataset: OfflineDataset, device: torch.device | str = "cpu") -> BoundWindows:
        """Put the columns on a device; without actions, or where none fits, raise DatasetError."""
        return BoundWindows(self._snippets(), dataset, device, self.terminal_reward)

    def _snippets(self) -> Snippets:
        return Snippets(self.horizon, self.gamma, self.partial)


class BoundWindows(BoundSnippets):
    """``Windows`` over one dataset on one device.

    Attributes:
        returns: Discounted rewards of each row (N,) to its episode's end, or None.
    """

    def __init__(
        self,
        view: Snippets,
        dataset: OfflineDataset,
        device: torch.device | str,
        terminal_reward: float,
    ) -> None:
        super().__init__(view, dataset, device)
        self.returns = self._rows.discounted_returns(view.gamma, terminal_reward)

    def batch(  # type: ignore[override]
        self, index: Int[Tensor, " B"], uniforms: Float[Tensor, "B 0"] | None = None
    ) -> WindowBatch:
        """Return the windows that begin at rows ``index``, elements of ``self.rows``."""
        found = super().batch(index)
        observations = found.observations
        if not self._all_full:
            held = found.next_observations[:, None]
            observations = torch.where(found.mask[..., None], observations, held)
        returns = None if self.returns is None else self.returns.index_select(0, index)
        return WindowBatch(observations, found.actions, found.mask, returns)
