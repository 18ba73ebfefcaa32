"""The columns of a dataset as tensors on one device, its episodes' bounds, and ranges of rows."""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.schema import OfflineDataset

_CHUNK = 1 << 16  # rows looked up at once, so that their copy is short


def as_tensor(values: np.ndarray, device: torch.device | str) -> Tensor:
    """Return a column on a device; on the CPU it shares the dataset's memory."""
    with warnings.catch_warnings():  # torch warns that the column is read-only; nothing writes it
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(values).to(device)


class Spans:
    """Row numbers as ranges, in rising order: a few numbers an episode instead of one a row.

    Args:
        starts: First row of each range (E,), int64 on the CPU, rising.
        stops: Row after the last of each range (E,); at or before ``starts`` for an empty range.
    """

    def __init__(self, starts: Tensor, stops: Tensor) -> None:
        some = stops > starts
        starts, stops = starts[some], stops[some]
        joined = starts[1:] == stops[:-1]  # ranges that touch are one
        self._starts = torch.cat([starts[:1], starts[1:][~joined]])
        self._stops = torch.cat([stops[:-1][~joined], stops[-1:]])
        self._lengths = self._stops - self._starts
        self._ends = self._lengths.cumsum(0)
        self._shifts = self._starts - (self._ends - self._lengths)
        self._count = int(self._lengths.sum())

    @classmethod
    def first(cls, count: int) -> Spans:
        """Return rows 0 … count−1."""
        return cls(torch.tensor([0]), torch.tensor([count]))

    @property
    def stop(self) -> int:
        """The number after the last row's."""
        return int(self._stops[-1])

    def __len__(self) -> int:
        return self._count

    def at(self, positions: Tensor) -> Tensor:
        """Return the rows at positions (B,) in [0, len), on the CPU: int64."""
        if len(self._starts) == 1:
            return positions + self._shifts
        return positions + self._shifts[torch.searchsorted(self._ends, positions, right=True)]

    def within(self, others: Spans) -> Spans:
        """Return the rows that are in both."""
        bounds = [part for one in (self, others) for part in (one._starts, one._stops)]
        cuts = torch.cat(bounds).unique()
        inside = self._hold(cuts[:-1]) & others._hold(cuts[:-1])
        return Spans(cuts[:-1][inside], cuts[1:][inside])

    def _hold(self, rows: Tensor) -> Tensor:
        if not len(self):
            return torch.zeros_like(rows, dtype=torch.bool)
        span = torch.searchsorted(self._starts, rows, right=True) - 1
        return (span >= 0) & (rows < self._stops[span.clamp(min=0)])

    def all(self, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return every row (n,)."""
        rows = torch.ones(self._count, dtype=dtype)  # from each row to the next, summed up below
        rows[:1] = self._starts[:1]
        rows[self._ends[:-1]] = (self._starts[1:] - self._stops[:-1] + 1).to(dtype)
        return rows.cumsum_(0, dtype=dtype)

    def replace(self, positions: Tensor) -> None:
        """Put rows in the place of positions in [0, len), of which there are about as many.

        They are looked up in a table of all rows: to search the range of each, as ``at`` does,
        takes ten times as long where positions are in no order.
        """
        if len(self._starts) == 1:
            positions += self._shifts
            return
        rows = self.all(positions.dtype)
        for part in positions.split(_CHUNK):
            part.copy_(rows.index_select(0, part))


class Rows:
    """What the views over one dataset on one device share.

    Attributes:
        columns: Columns by name, on the device; on the CPU they share the dataset's memory.
        starts: First row of each episode (E,), int64.
        stops: Row after the last of each episode (E,), int64.
        terminated: Whether each episode (E,) ended in a true terminal.
        beyond: Whether the state after the last row of each episode (E,) is in the data.
    """

    def __init__(self, dataset: OfflineDataset, device: torch.device | str) -> None:
        self._origin = dataset.spec.origin
        self.columns = {k: as_tensor(v, device) for k, v in dataset.columns.items()}
        episodes = as_tensor(dataset.episodes, device)
        self.starts, self.stops = episodes[:, 0].contiguous(), episodes[:, 1].contiguous()
        self.terminated = self.columns["terminals"][self.stops - 1]
        self.device = self.starts.device
        self.beyond = torch.full_like(self.terminated, "next_observations" in self.columns)
        if "next_unknown" in self.columns:
            self.beyond &= ~self.columns["next_unknown"][self.stops - 1]

    @cached_property
    def episode(self) -> Tensor:
        """Number of the episode of each row (N,), int32; computed at its first use.

        An int32 a row, rather than two int64 bounds, keeps memory near that of the columns.
        """
        ids = torch.arange(len(self.starts), dtype=torch.int32, device=self.device)
        return ids.repeat_interleave(self.stops - self.starts)

    def take(self, name: str, index: Tensor) -> Tensor | None:
        """Return rows ``index`` of a column, or None where the data lack it."""
        column = self.columns.get(name)
        return None if column is None else column.index_select(0, index)

    def need(self, name: str, index: Tensor) -> Tensor:
        """Return rows ``index`` of a column that the data have."""
        return self.columns[name].index_select(0, index)

    def next_observations(self, index: Tensor, terminals: Tensor | None = None) -> Tensor:
        """Return s_{t+1} of rows of ``with_next``; where it is terminal and unknown, s_t.

        ``terminals`` are those of the rows, if they are at hand.
        """
        if "next_observations" in self.columns:
            return self.need("next_observations", index)
        if terminals is None:
            terminals = self.need("terminals", index)
        return self.need("observations", index + ~terminals)

    def with_next(self, past_terminals: bool = True, steps: int = 1, actions: int = 0) -> Spans:
        """Return the rows whose next state is known or, if ``past_terminals``, terminal.

        Args:
            past_terminals: Whether the last rows before a true terminal are among them.
            steps: How many steps later the next state is, at least 1.
            actions: How many actions from the next state on have to be known, too.

        Raises:
            DatasetError: There is none.
        """
        missing = (~self.beyond).long() if actions == 0 else torch.full_like(self.stops, actions)
        missing = (missing + steps - 1).masked_fill(self.terminated & past_terminals, 0)
        spans = Spans(self.starts.cpu(), (self.stops - missing).cpu())
        if len(spans) == 0 and steps == 1 and actions == 0:
            raise DatasetError(
                f"{self._origin}: no row has a next state, as every episode is a single row and "
                "ends in a timeout: record longer ones, or the column 'next_observations'."
            )
        if len(spans) == 0:
            longest = int((self.stops - self.starts).max())
            raise DatasetError(
                f"{self._origin}: a row and what it needs are {int(missing.min()) + 1} rows, and "
                f"every episode ends in a timeout after {longest} or fewer: record longer ones, or "
                "set a smaller chunk or n_step."
            )
        return spans

    def discounted_returns(self, gamma: float, terminal_reward: float = 0.0) -> Tensor | None:
        """Return Σ_i γ^i r_{t+i} to each row's episode's end, or None if any reward is unknown.

        ``terminal_reward`` is added to the last reward of episodes that ended in a true terminal.

        Sums of 1, 2, 4, … terms, each made of two of half its length: log₂ of the longest episode
        passes over all rows, rather than one pass a step.
        """
        mask = self.columns.get("reward_mask")
        if "rewards" not in self.columns or (mask is not None and not bool(mask.all())):
            return None
        sums = self.columns["rewards"].to(torch.float64, copy=True)
        if terminal_reward != 0:
            sums[self.stops[self.terminated] - 1] += terminal_reward
        span, longest = 1, int((self.stops - self.starts).max())
        while span < longest:
            same = self.episode[:-span] == self.episode[span:]
            following = torch.where(same, sums[span:], 0.0) * gamma**span
            sums = torch.cat([sums[:-span] + following, sums[-span:]])
            span *= 2
        return sums.float()
