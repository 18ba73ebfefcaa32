"""What a view is, for a config and once it is bound to a dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_offrl.datasets.rows import Spans
from lit_offrl.datasets.schema import OfflineDataset


class BoundView(ABC):
    """A view over one dataset on one device."""

    spans: Spans
    """Valid rows, as ranges."""
    device: torch.device
    """Device of the columns."""
    num_uniforms = 0
    """Number of uniform random numbers that each row takes."""

    @property
    def rows(self) -> Tensor:
        """Numbers of the valid rows (n,), int64, on the device; computed at each call."""
        return self.spans.all().to(self.device)

    @abstractmethod
    def batch(self, index: Tensor, uniforms: Tensor) -> Any:
        """Make the batch, a NamedTuple, of elements ``index`` (B,) of ``rows``.

        ``uniforms`` are random numbers, float64 (B, num_uniforms) in [0, 1).
        """


class View(ABC):
    """What a config names; views inherit from it, so that a config may give their short names."""

    def prepare(self, dataset: OfflineDataset) -> OfflineDataset:
        """Add to a whole dataset what the view needs, before episodes are taken from it."""
        return dataset

    @abstractmethod
    def bind(self, dataset: OfflineDataset, device: torch.device | str = "cpu") -> BoundView:
        """Put the columns on a device and find the valid rows."""
