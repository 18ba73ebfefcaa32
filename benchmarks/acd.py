"""ACD and its relatives: what a step and a decision cost, and IQL's fit beside d3rlpy's IQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.machine import clock, measure, processor_clock
from benchmarks.peer import PeerAlgorithm, PeerSteps, d3rlpy_algorithm
from benchmarks.step import count_flops
from lit_offrl import modules
from lit_offrl.callbacks import Curves, FiniteGuard, GracefulStop
from lit_offrl.cli.main import TRAINER_DEFAULTS
from lit_offrl.common.configs import find_configs, merge_configs
from lit_offrl.common.quiet import quiet
from lit_offrl.datamodules import PyBulletDataModule
from lit_offrl.datasets.views import AdvantageBatch, TransitionBatch, Transitions
from lit_offrl.modules import OfflineModule

_BATCH_SIZE = 256
_WARM_UP = 20  # steps of each that are not timed


class Plan(NamedTuple):
    """What a method's config says."""

    kind: type[OfflineModule]
    options: dict[str, Any]
    batch_size: int
    dataset: str

    def data(self) -> PyBulletDataModule:
        """The config's data, nothing held out."""
        return PyBulletDataModule(self.dataset, batch_size=self.batch_size, validation_fraction=0.0)

    def make(self, data: PyBulletDataModule, seed: int, **changes: Any) -> OfflineModule:
        """A module with random weights for these data."""
        torch.manual_seed(seed)
        spec = data.spec
        bounds: tuple[Any, ...] = (spec.action_low, spec.action_high)
        options: Any = self.options | changes
        return self.kind(spec.observation_dim, spec.action_dim, *bounds, **options)


def plan(method: str, **changes: Any) -> Plan:
    """Read ``configs/METHOD.yaml`` with PyBullet's data; ``changes`` win over its options."""
    files = [path for name in (method, "data/pybullet") for path in find_configs(name)]
    config = merge_configs(files, {})
    model, data = config["model"], config["data"]["init_args"]
    kind = getattr(modules, model["class_path"])
    return Plan(kind, model.get("init_args", {}) | changes, _BATCH_SIZE, data["dataset"])


# ---- steps and decisions -----------------------------------------------------------------------


@dataclass(frozen=True)
class PassResult:
    """One step (forward, backward, optimiser, averages) or one decision, without the loop.

    Attributes:
        name: of what.
        seconds: median by the processor's clock.
        fastest: the least such time.
        flops: of its matrix products.
        share: FLOP/s of the fastest over ``peak``.
        peak: FLOP/s of the fastest square matrix product among the same turns.
        median_share: FLOP/s of the median over ``median_peak``.
        median_peak: FLOP/s of those products' median time: what a busy machine leaves of the peak.
        repeats: turns.
    """

    name: str
    seconds: float
    fastest: float
    flops: float
    share: float
    peak: float
    median_share: float
    median_peak: float
    repeats: int


def run_passes(
    *,
    device: torch.device,
    seed: int = 0,
    plans: Callable[..., Plan] = plan,
    size: int = 1024,
    budget: float = 3.0,
) -> list[PassResult]:
    """Time them and a square matrix product in turns.

    Args:
        device: where to compute.
        seed: of weights, batch and noise.
        plans: what makes a method's plan.
        size: of the matrices whose product is the peak.
        budget: seconds of each measurement.
    """
    runs = _passes(device, seed, plans)
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    out = left @ right
    flops = [count_flops(run) for run in runs.values()]  # warms up, too
    timings = measure(
        [*runs.values(), partial(torch.mm, left, right, out=out)],
        device,
        budget=budget,
        most=100,
        now=processor_clock,
    )
    product = timings.pop()
    peak, median_peak = 2 * size**3 / product.fastest, 2 * size**3 / product.seconds
    return [
        PassResult(
            name=name,
            seconds=t.seconds,
            fastest=t.fastest,
            flops=count,
            share=count / t.fastest / peak,
            peak=peak,
            median_share=count / t.seconds / median_peak,
            median_peak=median_peak,
            repeats=t.repeats,
        )
        for name, t, count in zip(runs, timings, flops, strict=True)
    ]


def _passes(
    device: torch.device, seed: int, plans: Callable[..., Plan]
) -> dict[str, Callable[[], object]]:
    iql, acd, idql, dql = (plans(method) for method in ("iql", "acd", "idql", "dql"))
    data = iql.data()
    data.setup("fit")
    assert data.dataset is not None
    bound = Transitions().bind(data.dataset, device)
    generator = torch.Generator().manual_seed(seed)
    at = bound.spans.at(torch.randint(len(bound.spans), (iql.batch_size,), generator=generator))
    batch = bound.batch(at.to(device))
    state = batch.observations[:1].cpu().numpy()

    runs: dict[str, Callable[[], object]] = {}
    labelled = AdvantageBatch(*batch[:5], torch.zeros(iql.batch_size, device=device), at)
    alone = acd.make(data, seed, labels="precomputed", critic="none").to(device)
    runs["IQL step"] = _step(iql.make(data, seed).to(device), batch)
    runs["ACD actor's step"] = _step(alone, labelled)
    runs["ACD step"] = _step(acd.make(data, seed).to(device), batch)
    runs["IDQL step"] = _step(idql.make(data, seed).to(device), batch)
    runs["DQL step"] = _step(dql.make(data, seed).to(device), batch)
    for name, each, options in (
        ("ACD decision", acd, {"act_mode": "acd"}),
        ("ACD-F decision, N = {num_samples}", acd, {"act_mode": "acd_f"}),
        ("IDQL decision, N = {num_samples}", idql, {}),
        ("DQL decision, N = {num_samples}", dql, {}),
    ):
        acting: Any = each.make(data, seed).to(device).eval()
        runs[name.format(**acting.hparams)] = partial(acting.policy(**options).act, state)
    return runs


def _step(module: OfflineModule, batch: TransitionBatch | AdvantageBatch) -> Callable[[], None]:
    optimizer, number = module.configure_optimizers(), iter(range(1 << 62))
    module.train()

    def run() -> None:
        module.seed_noise(next(number))
        optimizer.zero_grad()
        torch.stack(list(module.losses(batch).values())).sum().backward()
        optimizer.step()
        module.after_step()

    return run


# ---- IQL's fit beside d3rlpy's -----------------------------------------------------------------


@dataclass(frozen=True)
class FitResult:
    """A step of IQL's fit, sampling and Lightning's loop included, and of d3rlpy's IQL.

    Medians of turns in which either takes as many steps as the other one; d3rlpy's numbers are None
    where it was not asked for. ``ratio`` is of the wall's clock, ``cpu_ratio`` of the processor's:
    both say how many times as long a step takes here.
    """

    batch_size: int
    steps: int
    turns: int
    seconds: float
    cpu_seconds: float
    peer_seconds: float | None = None
    peer_sampling: float | None = None
    """Of ``peer_seconds``: what sampling takes."""
    peer_cpu_seconds: float | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None


class Turns(Callback):
    """Times a fit in turns of some steps, between which the clocks stand still for the peer's.

    Args:
        steps: of a turn.
        peer: takes as many steps after each turn.
    """

    sees_calls = True

    def __init__(self, steps: int, peer: PeerAlgorithm | None = None) -> None:
        self.steps, self.peer = steps, peer
        self.interval = steps
        self.own: list[tuple[float, float]] = []
        self.peers: list[PeerSteps] = []
        self._begin: tuple[float, float] | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """End a turn and begin the next one."""
        done = trainer.global_step - _WARM_UP
        if done < 0 or done % self.steps:
            return
        now = _clocks(pl_module.device)
        if self._begin is not None:
            self.own.append((now[0] - self._begin[0], now[1] - self._begin[1]))
            if self.peer is not None:
                self.peers.append(self.peer.step(self.steps))
        elif self.peer is not None:
            self.peer.step(_WARM_UP)
        self._begin = _clocks(pl_module.device)


def _clocks(device: torch.device) -> tuple[float, float]:
    return clock(device), processor_clock(device)


def run_fit(
    *,
    device: torch.device,
    seed: int = 0,
    plans: Callable[..., Plan] = plan,
    steps: int = 10,
    turns: int = 40,
    peer_python: Path | None = None,
) -> FitResult:
    """Fit IQL by its config and, turn by turn, d3rlpy's IQL of the same sizes on the same rows.

    What ``lit-offrl fit`` has around training is there, without validation, logger, checkpoints,
    progress bar; d3rlpy has nothing around its samples and updates.

    Args:
        device: where this library trains; d3rlpy trains on the CPU.
        seed: of weights and order.
        plans: what makes a method's plan.
        steps: of a turn.
        turns: of each.
        peer_python: the Python of an environment with d3rlpy.

    Raises:
        ConfigError: d3rlpy does not run there.
    """
    iql = plans("iql")
    data = iql.data()
    module = iql.make(data, seed)
    if peer_python is None:
        return _fit(module, data, device, Turns(steps), turns)
    rows = iql.data()
    rows.setup("fit")
    assert rows.dataset is not None
    with d3rlpy_algorithm(
        peer_python,
        rows.dataset,
        batch_size=iql.batch_size,
        hidden=module.hparams["hidden"],
        learning_rate=module.learning_rate,
        threads=torch.get_num_threads(),
    ) as peer:
        return _fit(module, data, device, Turns(steps, peer), turns)


def _fit(
    module: OfflineModule,
    data: PyBulletDataModule,
    device: torch.device,
    timed: Turns,
    turns: int,
) -> FitResult:
    quiet()
    options = TRAINER_DEFAULTS | {"max_steps": _WARM_UP + turns * timed.steps}
    trainer = Trainer(
        **options,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        callbacks=[FiniteGuard(), Curves(), GracefulStop(), timed],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    wall, cpu = np.median(timed.own, axis=0) / timed.steps
    result = FitResult(data.batch_size, timed.steps, len(timed.own), float(wall), float(cpu))
    if not timed.peers:
        return result
    peer = median(p.sampling + p.updates for p in timed.peers) / timed.steps
    peer_cpu = median(p.sampling_cpu + p.updates_cpu for p in timed.peers) / timed.steps
    return FitResult(
        *(result.batch_size, result.steps, result.turns, result.seconds, result.cpu_seconds),
        peer_seconds=peer,
        peer_sampling=median(p.sampling for p in timed.peers) / timed.steps,
        peer_cpu_seconds=peer_cpu,
        ratio=result.seconds / peer,
        cpu_ratio=result.cpu_seconds / peer_cpu,
    )
