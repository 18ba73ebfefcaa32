"""What the frozen stages say of every window of the data: computed once, kept beside them.

Posteriors are μ and σ of each window's latent, float32; candidates n latents of the prior for each
distinct state that a window ends in, float16; features what an image encoder makes of each frame,
float32, in whose place they stand. They are files in the folder ``latents`` of the data's cache,
keyed by the earlier stage's checkpoint, the data's file and what else they depend on, so that all
processes, seeds and resumed runs share them. They are computed in the precision of the weights,
whatever that of the step that first asks for them. A fit that is stopped or killed on the way goes
on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from lit_offrl.modules.ldcq.prior import CHAINS
from lit_offrl.modules.ldcq.stages import StageRecord

Posterior = Callable[[SnippetBatch], tuple[Tensor, Tensor]]
Draw = Callable[[Tensor, ShardedGenerator], Tensor]
"""Raw states (S, o) and where noise comes from to latents (S, n, z)."""

_WINDOWS = 1024  # encoded at once
_ROOM = 0.5  # of a GPU's free memory that a table may take
_NOISE = 0x1DC0  # names the stream of the candidates' noise: it is no run's own


class RowTable:
    """Values of some of a dataset's rows.

    Args:
        rows: numbers of those rows (K,), int64.
        values: theirs (K, …), in that order, in memory or memory-mapped.
        total: N, rows of the dataset.
        device: where they are wanted; a GPU holds them where it has room.
    """

    def __init__(self, rows: Tensor, values: np.ndarray, total: int, device: torch.device) -> None:
        slots = torch.full((total,), -1, dtype=torch.int32)
        slots[rows.cpu()] = torch.arange(len(rows), dtype=torch.int32)
        held = torch.device("cpu")
        if device.type == "cuda" and values.nbytes <= _ROOM * torch.cuda.mem_get_info(device)[0]:
            held = device
        self._slots, self._values = slots.to(held), as_tensor(values, held)

    def at(self, rows: Tensor) -> Tensor:
        """Return the values of rows (B,), float32 on the rows' device; any values for others."""
        slots = self._slots.index_select(0, rows.to(self._slots.device)).clamp(min=0)
        return self._values.index_select(0, slots).to(rows.device).float()


def spread_batches(trainer: Any, number: int) -> Iterator[SnippetBatch]:
    """Give about ``number`` windows of the training episodes, evenly spread, on the device."""
    view = trainer.datamodule.train_view()
    count = min(number, len(view.spans))
    rows = view.spans.at(torch.arange(count) * len(view.spans) // count).to(view.device)
    for index in rows.split(_WINDOWS):
        yield _batch(trainer, view, index)


def posteriors(
    trainer: Any, device: torch.device, posterior: Posterior, stage: StageRecord
) -> RowTable:
    """Return μ and σ (2, z) of each window of the data, by its first row.

    Raises:
        DatasetError: the data have no sha256, or the file cannot be written.
        Interrupted: a signal has come; what is computed is kept.
    """
    view = _view(trainer)
    rows = view.rows

    @torch.no_grad()
    def encode(index: Tensor) -> np.ndarray:
        with torch.autocast(device.type, enabled=False):
            found = torch.stack(posterior(_batch(trainer, view, index)), dim=1)
            return found.float().cpu().numpy()

    values = _fetch(
        trainer,
        "posteriors",
        _facts(trainer, view, stage),
        encode(rows[:1]),
        rows.split(_WINDOWS),
        lambda index, place: encode(index),
        "encoding windows",
        "set posteriors to 'online', or cache_dir of the data to a folder with room.",
    )
    return RowTable(rows, values, len(trainer.datamodule.dataset), device)


def with_features(
    trainer: Any,
    device: torch.device,
    encode: Callable[[Tensor], Tensor],
    size: int,
    stage: StageRecord,
) -> OfflineDataset:
    """Return the data with features (N, size) where they have frames, also next ones.

    Args:
        trainer: with the datamodule.
        device: where to encode.
        encode: the image encoder: raw frames (n, o) to features (n, size).
        size: of a frame's features.
        stage: record of the image encoder.

    Raises:
        DatasetError: the data have no sha256, or the file cannot be written.
        Interrupted: a signal has come; what is computed is kept.
    """
    dataset: OfflineDataset = trainer.datamodule.dataset
    columns = dict(dataset.columns)

    @torch.no_grad()
    def encoded(frames: np.ndarray, index: Tensor, place: int) -> np.ndarray:
        part = frames[int(index[0]) : int(index[-1]) + 1]
        with torch.autocast(device.type, enabled=False):
            return encode(as_tensor(part, device)).float().cpu().numpy()

    rows = torch.arange(len(dataset)).split(_WINDOWS)
    for name in ("observations", "next_observations"):
        if name not in columns:
            continue
        columns[name] = _fetch(
            trainer,
            "features",
            _facts_of_data(trainer, stage) | {"column": name},
            np.empty((1, size), np.float32),
            rows,
            partial(encoded, columns[name]),
            "encoding frames",
            "set cache_dir of the data to a folder with room.",
        )
    spec = replace(dataset.spec, observation_dim=size)
    return OfflineDataset.from_checked(
        columns, spec, dataset.provenance, dataset.episodes, dataset.cut_off
    )


def candidates(
    trainer: Any,
    device: torch.device,
    draw: Draw,
    number: int,
    latent_dim: int,
    stage: StageRecord,
    settings: dict[str, Any],
) -> RowTable:
    """Return n latents (n, z) of the prior for each state that a window ends in, by its last row.

    Windows that end in a true terminal bootstrap nothing and get none.

    Args:
        trainer: with the datamodule.
        device: where to sample.
        draw: samples ``number`` latents for each of some raw states.
        number: n.
        latent_dim: z.
        stage: record of the stage whose prior it is.
        settings: of the sampling, on which the latents depend; plain types.

    Raises:
        DatasetError: the data have no sha256, or the disk cannot hold the latents.
        Interrupted: a signal has come; what is computed is kept.
    """
    view = _view(trainer)
    final = view.last_steps(view.rows).unique()
    asked = final[~view.terminal(final)]
    final = asked if len(asked) else final[:1]  # one that is never used, so that there is a table

    @torch.no_grad()
    def sample(index: Tensor, place: int) -> np.ndarray:
        states = view.states_after(index).to(device)
        noise = ShardedGenerator(_NOISE, place, device=device)
        with torch.autocast(device.type, enabled=False):
            return draw(states, noise).half().cpu().numpy()

    values = _fetch(
        trainer,
        "candidates",
        _facts(trainer, view, stage) | settings | {"number": number, "sampling": 2},
        np.empty((1, number, latent_dim), np.float16),
        final.split(max(1, CHAINS // number)),
        sample,
        "sampling latents",
        "take fewer with num_latents, fewer windows with window_every, set latents to 'online', or "
        "cache_dir of the data to a folder with room.",
    )
    return RowTable(final, values, len(trainer.datamodule.dataset), device)


def _view(trainer: Any) -> BoundSnippets:
    view = trainer.datamodule.whole_view()
    assert isinstance(view, BoundSnippets)  # losses refuse the batches of any other
    return view


def _batch(trainer: Any, view: BoundSnippets, index: Tensor) -> SnippetBatch:
    unused = torch.zeros(len(index), view.num_uniforms, device=view.device)
    device = trainer.strategy.root_device
    return trainer.datamodule.transfer_batch_to_device(view.batch(index, unused), device, 0)


def _facts(trainer: Any, view: BoundSnippets, stage: StageRecord) -> dict[str, Any]:
    return _facts_of_data(trainer, stage) | {
        "horizon": view.view.horizon,
        "partial": view.view.partial,
        "every": view.view.every,
    }


def _facts_of_data(trainer: Any, stage: StageRecord) -> dict[str, Any]:
    dataset = trainer.datamodule.dataset
    if dataset.spec.sha256 is None:
        raise DatasetError(
            f"{dataset.spec.origin}: has no sha256, by which latents of its windows could be found "
            "again: set latents and posteriors to 'online', or write the data to a file."
        )
    return {
        "version": 1,
        "dataset": dataset.spec.sha256,
        "rows": len(dataset),
        "handling": list(dataset.spec.handling),
        "stage": stage["sha256"],
    }


def _fetch(
    trainer: Any,
    name: str,
    facts: dict[str, Any],
    like: np.ndarray,
    parts: Sequence[Tensor],
    compute: Callable[[Tensor, int], np.ndarray],
    what: str,
    advice: str,
) -> np.ndarray:
    """Fetch values of rows, computed a part at a time; between two of them a signal may stop it.

    Args:
        trainer: with the datamodule.
        name: of the file.
        facts: all that they depend on.
        like: values (1, …) of any row.
        parts: the rows' numbers, all but the last of one length.
        compute: values of a part (K, …), which depend on its rows and its place.
        what: is done meanwhile.
        advice: what to do where the disk cannot hold them.

    Raises:
        DatasetError: the file cannot be written.
        Interrupted: a signal has come; what is computed is kept.
    """

    def make(first: int) -> Iterator[np.ndarray]:
        places = tqdm(
            range(first, len(parts)),
            what,
            total=len(parts),
            initial=first,
            unit="chunk",
            leave=False,
            disable=trainer.progress_bar_callback is None,
        )
        for place in places:
            yield compute(parts[place], place)

    stopping = trainer.lightning_module.stopping
    with signals.held():
        values = fetch_array(
            trainer.datamodule.cache_dir / "latents",
            name,
            facts,
            (sum(map(len, parts)), *like.shape[1:]),
            like.dtype,
            len(parts[0]),
            make,
            advice,
            lambda: stopping is not None and stopping.asked(trainer),
        )
        if stopping is not None:
            stopping.stop_if_asked(trainer, f"{what} goes on with the same command")
    assert values is not None  # else it was asked to stop
    return values
