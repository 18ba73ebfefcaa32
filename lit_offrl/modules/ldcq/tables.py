"""Tables of what frozen networks compute from the data: made once, and kept beside the data.

There are three: ``posteriors``, μ and σ of each snippet's latent, float32; ``candidates``, n
latents of the prior for each distinct state that a snippet ends in, float16; and ``features``, an
image encoder's numbers for each frame, float32, which take the frames' place. They are files in the
folder ``latents`` of the data's cache. Their names depend on the earlier stage's checkpoint, the
data's file and all else that they follow from, so that all processes, seeds and resumed runs share
them. They are computed in the precision of the weights, whatever that of the step that needs them
first. A fit that is stopped or killed while it makes a table goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_offrl.common import signals
from lit_offrl.common.errors import DatasetError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.rows import as_tensor
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.stored import fetch_array
from lit_offrl.datasets.views import SnippetBatch
from lit_offrl.datasets.views.snippets import BoundSnippets
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.ldcq.prior import CHAINS
from lit_offrl.modules.ldcq.stages import StageRecord

_CHUNK = 1024  # snippets or frames encoded at once
_GPU_SHARE = 0.5  # of a GPU's free memory that a table may take
_NOISE = 0x1DC0  # seed of the candidates' noise, which is no run's own


class RowTable:
    """Values of some of a dataset's rows.

    Args:
        rows: Numbers of those rows (K,), int64.
        values: Their values (K, …), in that order, in memory or memory-mapped.
        total: Number N of the dataset's rows.
        device: Where the values are used; a GPU holds them if half of its free memory suffices.
    """

    def __init__(self, rows: Tensor, values: np.ndarray, total: int, device: torch.device) -> None:
        places = torch.full((total,), -1, dtype=torch.int32)
        places[rows.cpu()] = torch.arange(len(rows), dtype=torch.int32)
        held = torch.device("cpu")
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            held = device if values.nbytes <= _GPU_SHARE * free else held
        self._places, self._values = places.to(held), as_tensor(values, held)

    def at(self, rows: Tensor) -> Tensor:
        """Return the values of rows (B,), float32 on their device; any values for other rows."""
        places = self._places.index_select(0, rows.to(self._places.device)).clamp(min=0)
        return self._values.index_select(0, places).to(rows.device).float()


def spread_batches(trainer: Any, number: int) -> Iterator[SnippetBatch]:
    """Give about ``number`` snippets of the training episodes, evenly spread, on the device."""
    view = trainer.datamodule.train_view()
    count = min(number, len(view.spans))
    rows = view.spans.at(torch.arange(count) * len(view.spans) // count).to(view.device)
    for index in rows.split(_CHUNK):
        yield _batch(trainer, view, index)


class Tables:
    """Makes the tables of the data that a module is attached to.

    Every method may raise DatasetError, where the data have no sha256 or the disk cannot hold the
    table, and Interrupted, where a signal has arrived; what is computed by then is kept.

    Args:
        module: The module whose Trainer has the data.
        stage: Record of the earlier stage whose networks compute the values.
    """

    def __init__(self, module: OfflineModule, stage: StageRecord) -> None:
        self._trainer, self._device, self._stage = module.trainer, module.device, stage
        self._data: Any = module.datamodule

    def posteriors(
        self, encode: Callable[[SnippetBatch], tuple[Tensor, Tensor]], latent_dim: int
    ) -> RowTable:
        """Return μ and σ (2, z) of each snippet's latent, by the number of its first row."""
        view = self._view()
        values = self._fetch(
            "posteriors",
            self._facts(view),
            view.rows.split(_CHUNK),
            np.empty((0, 2, latent_dim), np.float32),
            lambda index, place: torch.stack(encode(_batch(self._trainer, view, index)), dim=1),
            "encoding snippets",
            "set posteriors to 'online', or cache_dir of the data to a folder with room.",
        )
        return RowTable(view.rows, values, len(self._data.dataset), self._device)

    def features(self, encode: Callable[[Tensor], Tensor], size: int) -> OfflineDataset:
        """Return the data with features (N, size) in place of frames, also of next ones.

        Args:
            encode: Maps raw frames (n, o) to features (n, size).
            size: Size of a frame's features.
        """
        dataset: OfflineDataset = self._data.dataset
        columns = dict(dataset.columns)

        def encoded(frames: np.ndarray, index: Tensor, place: int) -> Tensor:
            part = frames[int(index[0]) : int(index[-1]) + 1]
            return encode(as_tensor(part, self._device))

        for name in ("observations", "next_observations"):
            if name not in columns:
                continue
            columns[name] = self._fetch(
                "features",
                self._facts() | {"column": name},
                torch.arange(len(dataset)).split(_CHUNK),
                np.empty((0, size), np.float32),
                partial(encoded, columns[name]),
                "encoding frames",
                "set cache_dir of the data to a folder with room.",
            )
        spec = replace(dataset.spec, observation_dim=size)
        return OfflineDataset.from_checked(
            columns, spec, dataset.provenance, dataset.episodes, dataset.cut_off
        )

    def candidates(
        self,
        draw: Callable[[Tensor, ShardedGenerator], Tensor],
        number: int,
        latent_dim: int,
        settings: Mapping[str, Any],
    ) -> RowTable:
        """Return n latents (n, z) of the prior for each state that a snippet ends in.

        They are found by the number of the snippet's last row. Snippets that end in a true terminal
        bootstrap nothing and have none.

        Args:
            draw: Maps raw states (S, o) and a generator of the noise to latents (S, n, z).
            number: Number n of latents of a state.
            latent_dim: Size z of a latent.
            settings: How they are drawn; plain types.
        """
        view = self._view()
        ends = view.last_steps(view.rows).unique()
        needed = ends[~view.terminal(ends)]
        ends = needed if len(needed) else ends[:1]  # one that is never used, so there is a table

        def sample(index: Tensor, place: int) -> Tensor:
            noise = ShardedGenerator(_NOISE, place, device=self._device)
            return draw(view.states_after(index).to(self._device), noise)

        values = self._fetch(
            "candidates",
            self._facts(view) | {**settings, "number": number, "sampling": 2},
            ends.split(max(1, CHAINS // number)),
            np.empty((0, number, latent_dim), np.float16),
            sample,
            "sampling latents",
            "take fewer with num_latents, fewer snippets with snippet_every, set latents to "
            "'online', or cache_dir of the data to a folder with room.",
        )
        return RowTable(ends, values, len(self._data.dataset), self._device)

    def _view(self) -> BoundSnippets:
        view = self._data.whole_view()
        assert isinstance(view, BoundSnippets)  # losses refuse the batches of any other
        return view

    def _facts(self, view: BoundSnippets | None = None) -> dict[str, Any]:
        """Return what a table depends on; these keys are part of the files' names."""
        dataset = self._data.dataset
        if dataset.spec.sha256 is None:
            raise DatasetError(
                f"{dataset.spec.origin}: has no sha256, by which stored latents could be found "
                "again: set latents and posteriors to 'online', or write the data to a file."
            )
        facts = {
            "version": 1,
            "dataset": dataset.spec.sha256,
            "rows": len(dataset),
            "handling": list(dataset.spec.handling),
            "stage": self._stage["sha256"],
        }
        own = ("horizon", "partial", "every")
        return facts if view is None else facts | {name: getattr(view.view, name) for name in own}

    def _fetch(
        self,
        name: str,
        facts: dict[str, Any],
        chunks: Sequence[Tensor],
        like: np.ndarray,
        compute: Callable[[Tensor, int], Tensor],
        doing: str,
        advice: str,
    ) -> np.ndarray:
        """Return the values of rows, of the shape and dtype of ``like`` (0, …).

        What is not stored yet is computed a chunk of rows (K,) at a time, of one length but for the
        last, by its rows and its place among the chunks. ``doing`` are words for the progress bar.
        """

        def make(first: int) -> Iterator[np.ndarray]:
            for place in tqdm(
                range(first, len(chunks)),
                doing,
                total=len(chunks),
                initial=first,
                unit="chunk",
                leave=False,
                disable=self._trainer.progress_bar_callback is None,
            ):
                with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                    values = compute(chunks[place], place).float().cpu().numpy()
                yield values.astype(like.dtype)

        module: Any = self._trainer.lightning_module
        stopping = module.stopping
        with signals.held():
            values = fetch_array(
                self._data.cache_dir / "latents",
                name,
                facts,
                (sum(map(len, chunks)), *like.shape[1:]),
                like.dtype,
                len(chunks[0]),
                make,
                advice,
                lambda: stopping is not None and stopping.asked(self._trainer),
            )
            if stopping is not None:
                stopping.stop_if_asked(self._trainer, f"{doing} goes on with the same command")
        assert values is not None  # else the fit was stopped
        return values


def _batch(trainer: Any, view: BoundSnippets, index: Tensor) -> SnippetBatch:
    unused = torch.zeros(len(index), view.num_uniforms, device=view.device)
    device = trainer.strategy.root_device
    return trainer.lightning_module.transfer_batch_to_device(view.batch(index, unused), device, 0)
