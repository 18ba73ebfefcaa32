"""The rows of each view one at a time, as PyTorch's map-style datasets hand them out."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import FutureStates, Snippets, Transitions


class MapStyleTransitions(Dataset[tuple[Tensor, ...]]):
    """The rows of ``Transitions`` one at a time, as a map-style dataset hands them out."""

    def __init__(self, dataset: OfflineDataset, view: Transitions) -> None:
        self.rows = view.bind(dataset).rows.numpy()
        names = ("observations", "actions", "rewards", "terminals")
        self.columns = {name: torch.tensor(dataset.columns[name]) for name in names}
        self.stops = np.repeat(dataset.episodes[:, 1], dataset.episode_lengths)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, ...]:
        row, columns = self.rows[position], self.columns
        return (
            columns["observations"][row],
            columns["actions"][row],
            columns["rewards"][row],
            columns["observations"][min(row + 1, self.stops[row] - 1)],
            columns["terminals"][row],
        )


class MapStyleFutureStates(Dataset[tuple[Tensor, ...]]):
    """The rows of ``FutureStates`` one at a time, without the discounted returns."""

    def __init__(self, dataset: OfflineDataset, view: FutureStates, seed: int) -> None:
        self.steps = MapStyleTransitions(dataset, Transitions())
        self.rows = view.bind(dataset).rows.numpy()
        self.starts = np.repeat(dataset.episodes[:, 0], dataset.episode_lengths)
        self.terminated = np.repeat(dataset.episode_terminated, dataset.episode_lengths)
        self.log_gamma, self.history = math.log(view.gamma), view.history
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, ...]:
        return self.make(self.rows[position], self.random.random())

    def make(self, row: int, uniform: float) -> tuple[Tensor, ...]:
        """One row of a FutureStateBatch: the six tensors of a transition in the batch's order,
        then future state, absorbed, Δt, history, its actions and mask.
        """
        steps = self.steps
        states, actions = steps.columns["observations"], steps.columns["actions"]
        start, stop = self.starts[row], steps.stops[row]
        limit = math.inf if self.terminated[row] else float(stop - 1 - row)
        drawn = math.log1p(uniform * math.expm1(limit * self.log_gamma)) / self.log_gamma
        ahead = int(min(max(math.ceil(drawn), 1), limit))
        absorbed = bool(self.terminated[row]) and row + ahead >= stop
        future = torch.zeros_like(states[0]) if absorbed else states[row + ahead]
        first = max(start, row - self.history)
        missing = self.history - (row - first)
        mask = torch.ones(self.history, dtype=torch.bool)
        mask[:missing] = False
        return (
            states[row],
            actions[row],
            steps.columns["rewards"][row],
            states[min(row + 1, stop - 1)],
            steps.columns["terminals"][row],
            future,
            torch.tensor(absorbed),
            torch.tensor(ahead),
            torch.cat([states.new_zeros(missing, states.shape[1]), states[first:row]]),
            torch.cat([actions.new_zeros(missing, actions.shape[1]), actions[first:row]]),
            mask,
        )


class MapStyleSnippets(Dataset[tuple[Tensor, ...]]):
    """The rows of a ``SnippetBatch`` one at a time, without weights and rows."""

    def __init__(self, dataset: OfflineDataset, view: Snippets) -> None:
        self.rows = view.bind(dataset).rows.numpy()
        names = ("observations", "actions", "rewards", "terminals", "goals")
        self.columns = {name: torch.tensor(dataset.columns[name]) for name in names}
        self.stops = np.repeat(dataset.episodes[:, 1], dataset.episode_lengths)
        self.horizon = view.horizon
        self.powers = view.gamma ** torch.arange(view.horizon + 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, ...]:
        row, columns, horizon = self.rows[position], self.columns, self.horizon
        stop = min(row + horizon, self.stops[row])
        count = stop - row
        states, actions = columns["observations"][row:stop], columns["actions"][row:stop]
        mask = torch.ones(horizon, dtype=torch.bool)
        if count < horizon:
            mask[count:] = False
            states = torch.cat([states, states.new_zeros(horizon - count, states.shape[1])])
            actions = torch.cat([actions, actions.new_zeros(horizon - count, actions.shape[1])])
        terminal = columns["terminals"][stop - 1]
        return (
            states,
            actions,
            (columns["rewards"][row:stop] * self.powers[:count]).sum(),
            columns["observations"][stop - int(terminal)],
            terminal,
            self.powers[count],
            mask,
            columns["goals"][row],
        )
