"""What Lightning and the callbacks add to a step of a small network, by the steps of a call."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from benchmarks.machine import processor_clock
from benchmarks.made_up import ACTION_DIM, OBSERVATION_DIM, make_dataset
from lit_offrl.callbacks import Checkpoints, EvaluationDuringFit
from lit_offrl.callbacks.every import EveryNSteps
from lit_offrl.callbacks.progress import StepProgress
from lit_offrl.cli.main import TRAINER_DEFAULTS
from lit_offrl.cli.trainer import ALWAYS_THERE
from lit_offrl.common.quiet import quiet
from lit_offrl.datasets.sampler import RowOrder, TrainLoader
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import BoundView, Transitions
from lit_offrl.modules import BCModule, IQLModule, OfflineModule


@dataclass(frozen=True)
class CallsResult:
    """A step of a fit beside one of a plain loop, medians of turns.

    Attributes:
        method: What is trained, with how wide networks.
        steps_per_call: As the module's option; None leaves it to the module.
        seconds: Of the processor, a step of the fit takes.
        plain_seconds: The same losses, backward and optimiser in a loop take.
        added: What Lightning and the callbacks add, the median of the turns' differences.
        ratio: Of the fit's step to the loop's, the median of the turns' ratios.
        turns: Their number.
    """

    method: str
    steps_per_call: int | None
    seconds: float
    plain_seconds: float
    added: float
    ratio: float
    turns: int


class _Rows(LightningDataModule):
    """The training rows of a made-up dataset, in one epoch that does not end."""

    def __init__(self, dataset: OfflineDataset, view: BoundView, batch_size: int) -> None:
        super().__init__()
        self.spec, self.dataset, self.view = dataset.spec, dataset, view
        self.batch_size = batch_size

    def loader(self, calls: Any = None) -> TrainLoader:
        """Batches from the first on."""
        order = RowOrder(self.view.spans, self.batch_size, seed=0)
        return TrainLoader(self.view, order, 1 << 40, lambda: 0, calls=calls)

    def train_dataloader(self) -> TrainLoader:
        """What Lightning trains on."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        return self.loader(module.begin_calls())

    def train_column(self, name: str) -> Any:
        """For the normaliser."""
        return self.dataset.columns[name]


class _Turns(EveryNSteps):
    """Takes as many steps of the loop after so many of the fit, and times both."""

    waits_for_validation = False

    def __init__(self, plain: Iterator[None], steps: int, device: torch.device) -> None:
        self.interval = steps
        self._plain = plain
        self._device = device
        self._begun: float | None = None
        self.pairs: list[tuple[float, float]] = []

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        between = processor_clock(self._device)
        assert self.interval is not None
        for _ in range(self.interval):
            next(self._plain)
        end = processor_clock(self._device)
        if self._begun is not None and trainer.global_step > 3 * self.interval:  # warmed up
            fit, loop = between - self._begun, end - between
            self.pairs.append((fit / self.interval, loop / self.interval))
        self._begun = processor_clock(self._device)


def run_calls(
    *,
    device: torch.device,
    seed: int = 0,
    rows: int = 20_000,
    batch_size: int = 256,
    width: int = 16,
    lengths: Sequence[int | None] = (1, 10, 100, None),
    steps: int = 100,
    turns: int = 40,
) -> Iterator[CallsResult]:
    """Fit small networks with all callbacks of the command line, a plain loop in between.

    Args:
        device: where to train.
        seed: of weights, order and noise.
        rows: rows of the made-up data.
        batch_size: rows of a batch.
        width: of the networks' one hidden layer, so small that what is added shows.
        lengths: steps of a call.
        steps: of a turn; that is also how often curves are written.
        turns: measured for each.
    """
    quiet()
    dataset = make_dataset(rows, seed)
    for method in (BCModule, IQLModule):
        for length in lengths:
            modules = []
            for _ in range(2):
                torch.manual_seed(seed)
                sizes: dict[str, Any] = {"hidden": [width], "steps_per_call": length}
                modules.append(method(OBSERVATION_DIM, ACTION_DIM, seed=seed, **sizes))
            module, twin = modules
            twin.normalizer.fit(dataset.columns["observations"])
            data = _Rows(dataset, Transitions().bind(dataset, device), batch_size)
            clocked = _Turns(_plain(twin.to(device), data.loader()), steps, device)
            _fit(module, data, clocked, steps * (turns + 4), device)
            fits, loops = zip(*clocked.pairs, strict=True)
            yield CallsResult(
                f"{method.__name__}, width {width}",
                length,
                median(fits),
                median(loops),
                median(fit - loop for fit, loop in clocked.pairs),
                median(fit / loop for fit, loop in clocked.pairs),
                len(clocked.pairs),
            )


def _plain(module: OfflineModule, batches: TrainLoader) -> Iterator[None]:
    optimizer = module.configure_optimizers()
    for step, batch in enumerate(batches):
        module.seed_noise(step)
        total = torch.stack(list(module.losses(batch).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        module.after_step()
        yield


def _fit(
    module: OfflineModule, data: _Rows, clocked: _Turns, steps: int, device: torch.device
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            **TRAINER_DEFAULTS | {"max_steps": steps, "log_every_n_steps": clocked.interval},
            callbacks=[
                *(make() for make in ALWAYS_THERE),
                *(StepProgress(), Checkpoints(str(Path(folder))), EvaluationDuringFit(episodes=0)),
                clocked,
            ],
            logger=False,
            enable_model_summary=False,
            accelerator=device.type,
            devices=1,
        )
        trainer.fit(module, datamodule=data)
