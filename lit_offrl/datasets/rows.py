"""The columns of a dataset as tensors on one device, with the bounds of each row's episode."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.errors import DatasetError


def as_tensor(values: np.ndarray, device: torch.device | str) -> Tensor:
    """Return a column on a device; on the CPU it shares the dataset's memory."""
    with warnings.catch_warnings():  # torch warns that the column is read-only; nothing writes it
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(values).to(device)


class Rows:
    """What the views over one dataset on one device share.

    Attributes:
        columns: by name, on the device; on the CPU they share the dataset's memory.
        episode: the episode of each row (N,), int32.
        starts: first row of each episode (E,), int64.
        stops: the row after each episode's last (E,), int64.
        terminated: whether each episode (E,) ended in a true terminal.
    """

    def __init__(self, dataset: OfflineDataset, device: torch.device | str) -> None:
        self._origin = dataset.spec.origin
        self.columns = {k: as_tensor(v, device) for k, v in dataset.columns.items()}
        episodes = as_tensor(dataset.episodes, device)
        self.starts, self.stops = episodes[:, 0].contiguous(), episodes[:, 1].contiguous()
        self.terminated = self.columns["terminals"][self.stops - 1]
        # An int32 a row, rather than two int64 bounds, keeps memory near that of the columns.
        ids = torch.arange(len(episodes), dtype=torch.int32, device=self.starts.device)
        self.episode = ids.repeat_interleave(self.stops - self.starts)

    def take(self, name: str, index: Tensor) -> Tensor | None:
        """Return rows ``index`` of a column, or None where the data lack it."""
        column = self.columns.get(name)
        return None if column is None else column.index_select(0, index)

    def need(self, name: str, index: Tensor) -> Tensor:
        """Return rows ``index`` of a column that is there."""
        return self.columns[name].index_select(0, index)

    def next_observations(self, index: Tensor, stop: Tensor) -> Tensor:
        """Return s_{t+1}; where only the episode's end lies ahead and it is unknown, s_t."""
        if "next_observations" in self.columns:
            return self.need("next_observations", index)
        return self.need("observations", torch.minimum(index + 1, stop - 1))

    def with_next(self, past_terminals: bool = True) -> Tensor:
        """Return the rows (n,) whose next state is known or, if ``past_terminals``, terminal.

        Raises:
            DatasetError: if there is none.
        """
        count = len(self.columns["observations"])
        valid = torch.ones(count, dtype=torch.bool, device=self.starts.device)
        if "next_observations" not in self.columns:
            unknown = ~self.terminated if past_terminals else torch.ones_like(self.terminated)
            valid[self.stops[unknown] - 1] = False
        if not valid.any():
            raise DatasetError(
                f"{self._origin}: no row has a next state, as every episode is a single row and "
                "ends in a timeout: record longer ones, or the column 'next_observations'."
            )
        return valid.nonzero().squeeze(1)
