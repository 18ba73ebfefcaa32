"""Decisions of exported policies by onnxruntime, beside this library's own: time, and actions."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.made_up import ACTION_DIM, OBSERVATION_DIM, settings
from benchmarks.serving import _save
from lit_offrl.common.randomness import GivenNoise
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.export import export_policy, load_onnx
from lit_offrl.export.running import OnnxPolicy
from lit_offrl.modules import (
    ACDModule,
    BCModule,
    DQLModule,
    DVFModule,
    IQLModule,
    LDCQStage1Module,
    LDCQStage2Module,
    LDCQStage3Module,
)
from lit_offrl.modules.base import OfflineModule

_SIZES = (OBSERVATION_DIM, ACTION_DIM, [-1.0] * ACTION_DIM, [1.0] * ACTION_DIM)


def _skills(folder: Path) -> OfflineModule:
    """LDCQ's third stage on the first two, all untrained."""
    first = _save(LDCQStage1Module(*_SIZES), folder / "1.ckpt")
    second = _save(LDCQStage2Module(*_SIZES, stage1=str(first)), folder / "2.ckpt")
    return LDCQStage3Module(*_SIZES, stage2=str(second))


POLICIES: Mapping[str, tuple[Callable[[Path], OfflineModule], dict[str, Any]]] = {
    "BC": (lambda _: BCModule(*_SIZES), {}),
    "IQL": (lambda _: IQLModule(*_SIZES), {}),
    "DVF": (lambda _: DVFModule(*_SIZES, **settings("paper").module), {}),
    "ACD, few steps": (lambda _: ACDModule(*_SIZES), {"sampler": "dpm++", "sampling_steps": 5}),
    "DQL": (lambda _: DQLModule(*_SIZES), {}),
    "LDCQ, few steps": (_skills, {"sampler": "dpm++", "sampling_steps": 5}),
}
"""Untrained, of the sizes of their configs, and the options of their policies."""


@dataclass(frozen=True)
class ExportResult:
    """One policy, for one environment.

    Attributes:
        policy: What acts.
        seconds: Processor time of this library's decision, the mean over an episode's steps.
        exported_seconds: The same by onnxruntime.
        ratio: Of the former to the latter, the median of the turns' ratios.
        turns: Their number.
        steps: Number of decisions of a turn.
        apart: The greatest difference of actions on the same noise.
    """

    policy: str
    seconds: float
    exported_seconds: float
    ratio: float
    turns: int
    steps: int
    apart: float


def run_exported(
    *,
    policies: Sequence[str] = tuple(POLICIES),
    steps: int = 30,
    budget: float = 8.0,
    seed: int = 0,
    keep: Path | None = None,
) -> Iterator[ExportResult]:
    """Export policies, and let both decide in turns, a few steps each, drawing their own noise.

    Args:
        policies: Names of those of ``POLICIES`` that are timed.
        steps: Decisions of a turn, at least 1; of LDCQ some begin a skill.
        budget: Seconds of the processor for a policy's turns, of which there are at least 3.
        seed: Of weights, observations and noise.
        keep: A folder for the exported policies, ``METHOD.onnx``, each with some observations, the
            noise and the actions of this library in ``METHOD.npz``, see ``check_exported``.
    """
    for name in policies:
        make, options = POLICIES[name]
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(seed)
            module = make(Path(folder)).eval()
            module.spec = DatasetSpec("made up", OBSERVATION_DIM, ACTION_DIM)
            module.normalizer.fit(torch.randn(100, OBSERVATION_DIM))
            path = export_policy(module.policy(**options), Path(folder) / "policy")
            exported = load_onnx(path, seed)
            shown = _decisions(module.policy(**options), exported, steps, seed)
            if keep is not None:
                kept = keep / f"{name.partition(',')[0]}.onnx"
                kept.write_bytes(path.read_bytes())
                np.savez(kept.with_suffix(".npz"), **shown)  # type: ignore[arg-type]
            apart = np.abs(_acted(exported, shown) - shown["actions"]).max()
            own, rows = module.policy(**options), shown["observations"][:, :1]
            turns: list[tuple[float, float]] = []
            begun = time.process_time()
            while len(turns) < 4 or time.process_time() - begun < budget:
                turns.append((_seconds(own, rows), _seconds(exported, rows)))
        pairs = turns[1:]  # the first warms up
        yield ExportResult(
            policy=name,
            seconds=median(one for one, _ in pairs),
            exported_seconds=median(other for _, other in pairs),
            ratio=median(one / other for one, other in pairs),
            turns=len(pairs),
            steps=steps,
            apart=float(apart),
        )


def _seconds(policy: Any, rows: np.ndarray) -> float:
    """Return the processor time of a decision, the mean of an episode's."""
    policy.reset()
    begun = time.process_time()
    for row in rows:
        policy.act(row)
    return (time.process_time() - begun) / len(rows)


def _decisions(
    policy: Any, exported: OnnxPolicy, steps: int, seed: int, environments: int = 33
) -> dict[str, np.ndarray]:
    """Return observations (T, E, o), noise (T, E, n) and actions (T, E, a) of a policy."""
    random, width = np.random.default_rng(seed), exported.facts.inputs.get("noise", 0)
    observations = random.normal(size=(steps, environments, OBSERVATION_DIM)).astype(np.float32)
    noise = random.standard_normal((steps, environments, width), np.float32)
    actions = []
    for rows, numbers in zip(observations, noise, strict=True):
        with GivenNoise(torch.from_numpy(numbers)).used():
            actions.append(policy.act(rows))
    return {"observations": observations, "noise": noise, "actions": np.stack(actions)}


def _given(numbers: np.ndarray, number: int) -> np.ndarray:
    return numbers


def _acted(exported: OnnxPolicy, shown: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return actions (T, E, a) of an exported policy for the same observations and noise."""
    exported.reset()
    actions = []
    for rows, numbers in zip(shown["observations"], shown["noise"], strict=True):
        exported.draw = partial(_given, numbers)  # type: ignore[method-assign]
        actions.append(exported.act(rows))
    del exported.draw
    exported.reset()
    return np.stack(actions)


def exported_table(results: Sequence[ExportResult]) -> Table:
    """One line a policy."""
    heads = ("policy", "own ms", "onnxruntime ms", "ratio", "turns", "actions apart")
    table = Table(*heads, title="A decision for one environment, one thread")
    for r in results:
        table.add_row(
            r.policy,
            *(f"{1e3 * each:.3g}" for each in (r.seconds, r.exported_seconds)),
            f"{r.ratio:.1f} ×",
            str(r.turns),
            f"{r.apart:.1e}",
        )
    table.caption = f"processor time, means over turns of {results[0].steps} steps, medians of\n"
    table.caption += "these; untrained nets of the configs' sizes; the drawing of noise is in both"
    return table
