"""LDCQ's prior step, Q step and decision, and what few-step sampling does to the best Q.

Of pictures also steps by stored features beside steps by the frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.machine import clock
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.views import SnippetBatch
from lit_offrl.evaluation.envs import make_env
from lit_offrl.modules import (
    ImageVAEModule,
    LDCQStage1Module,
    LDCQStage2Module,
    LDCQStage3Module,
    OfflineModule,
    load_module,
)
from lit_offrl.modules.ldcq.options import Sampling
from lit_offrl.modules.ldcq.tables import RowTable

OBSERVATION, ACTION, LATENT = 4, 2, 16
"""maze2d's numbers and the paper's."""
FRAME = 3 * 48**2
"""Numbers of a frame, CARLA's size."""
_STORED = 1024  # snippets and states whose latents are stored
AUTHORS = {"prior": 12.6e-3, "Q, 500": 1.120, "Q, 100": 0.169, "decision": 2.036}
"""Seconds of the authors' code, one thread of such a machine."""
EXACT = Sampling("ddpm", None, 10)
FEW = Sampling()


@dataclass(frozen=True)
class LatentResult:
    """One row: seconds of ours, of the authors' code, and how many times faster ours is."""

    what: str
    how: str
    seconds: float
    authors_seconds: float | None
    ratio: float | None


@dataclass(frozen=True)
class PictureResult:
    """A step with the making of its batch: seconds by stored features and by the frames."""

    what: str
    batch: int
    seconds: float
    frames_seconds: float
    ratio: float


@dataclass(frozen=True)
class QualityResult:
    """Best Q of n latents in each of some states: mean and deviation over states.

    ``noise`` is the mean absolute difference between two draws of the reference in a state, and
    ``apart`` that between the reference and this sampler: equal where it draws as well.
    """

    how: str
    states: int
    number: int
    mean: float
    deviation: float
    apart: float
    noise: float


def run_latents(
    *,
    device: torch.device,
    seed: int = 0,
    repeats: int = 10,
    batch: int = 32,
    rows: int = 128,
    candidates: Sequence[int] = (500, 100),
    number: int = 500,
    **options: Any,
) -> Iterator[LatentResult]:
    """Time whole steps (losses, gradients, optimiser, averages) and whole decisions.

    Stored latents are random numbers, as are the weights: neither changes what is computed, but for
    how many candidates the second critic has to look at.

    With one thread on a CPU by the thread's own time, which other processes do not lengthen by
    taking turns; the least of the repeats, since their caches do.

    Args:
        device: where to compute.
        seed: of weights, data and noise.
        repeats: of each.
        batch: B of the prior.
        rows: B of Q.
        candidates: n of the Q step.
        number: n of a decision.
        options: of the second stage.
    """
    torch.manual_seed(seed)
    known = device.type == "cpu" and torch.get_num_threads() == 1

    def result(what: str, how: str, run: Callable[[], object]) -> LatentResult:
        seconds = _least(run, device, repeats)
        authors = AUTHORS.get(what) if known else None
        return LatentResult(what, how, seconds, authors, authors and authors / seconds)

    second, third = make_stages(device, **options)
    make = partial(_batch, device=device)
    yield result("prior", f"batch {batch}", _stepper(second, partial(make, rows=batch)))
    for n in candidates:
        third.num_latents = n
        stepper = _stepper(third, partial(make, rows=rows))
        yield result(f"Q, {n}", f"batch {rows}, {n} stored latents", stepper)
    state = torch.randn(1, OBSERVATION, device=device)
    for how in (EXACT, FEW):
        run = partial(third.choose, state, number, how)
        yield result("decision", f"n = {number}, {_name(how)}", run)


def run_pictures(
    *,
    device: torch.device,
    seed: int = 0,
    repeats: int = 5,
    batch: int = 32,
    rows: int = 128,
    number: int = 100,
    **options: Any,
) -> Iterator[PictureResult]:
    """Time steps on snippets of made-up frames, and of their features in the frames' place.

    Args:
        device: where to compute.
        seed: of weights, data and noise.
        repeats: of each; as in ``run_latents`` the least counts.
        batch: B of the prior.
        rows: B of Q.
        number: n of the Q step.
        options: of the second stage.
    """
    torch.manual_seed(seed)
    encoder = _record(ImageVAEModule, {"observation_dim": FRAME})
    second, third = make_stages(device, FRAME, encoder, **options)
    third.num_latents = number
    frames = torch.rand(_STORED, FRAME)
    features = torch.cat([second.stage1.normalize(x.to(device)) for x in frames.split(128)])

    def step(module: LDCQStage2Module | LDCQStage3Module, observations: Tensor, b: int) -> float:
        columns = {
            "observations": observations.cpu().numpy(),
            "actions": np.zeros((_STORED, ACTION), np.float32),
            "rewards": np.zeros(_STORED, np.float32),
            "timeouts": np.arange(_STORED) == _STORED - 1,
        }
        view = module.view().bind(OfflineDataset.from_columns(columns), device)

        def make(number: int) -> SnippetBatch:
            drawn = torch.randint(len(view.spans), (b,), generator=_generator(number))
            return view.batch(view.spans.at(drawn).to(device))

        return _least(_stepper(module, make), device, repeats)

    for what, module, b in (("prior", second, batch), (f"Q, {number}", third, rows)):
        stored, encoded = step(module, features, b), step(module, frames, b)
        yield PictureResult(what, b, stored, encoded, encoded / stored)


def make_stages(
    device: torch.device,
    observation_dim: int = OBSERVATION,
    image_encoder: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[LDCQStage2Module, LDCQStage3Module]:
    """Build both stages around an untrained first one, with random latents stored for snippets."""
    sizes = (observation_dim, ACTION)
    first = {"observation_dim": observation_dim, "action_dim": ACTION, "latent_dim": LATENT}
    # what is stored is not encoded
    small = {"horizon": 30, "width": 32, "gru_layers": 1, "image_encoder": image_encoder}
    second = LDCQStage2Module(*sizes, stage1=_record(LDCQStage1Module, first | small), **options)
    record = _record(LDCQStage2Module, dict(second.hparams))
    third = LDCQStage3Module(*sizes, stage2=record, prioritized=False)
    stored = np.random.default_rng(0).normal(size=(_STORED, 2, LATENT)).astype(np.float32)
    moments = RowTable(torch.arange(_STORED), np.abs(stored), _STORED, device)

    def stored_moments(batch: SnippetBatch) -> tuple[Tensor, Tensor]:
        mean, std = moments.at(batch.rows).unbind(1)
        return mean, std

    for module in (second, third):
        # the modules' own way to them leads through a Trainer and a file
        module.moments = stored_moments  # type: ignore[method-assign]
    return second.to(device), third.to(device)


def run_quality(
    path: str | Path,
    *,
    states: int = 32,
    number: int = 500,
    samplers: Sequence[Sampling] = (FEW, Sampling("dpm++", 20), Sampling("ddim", 10)),
    seed: int = 0,
) -> Iterator[QualityResult]:
    """Compare the best Q of few-step candidates with DDPM's, under the critics of a checkpoint.

    Args:
        path: of an LDCQStage3Module.
        states: S, beginnings of episodes in the environment of its data.
        number: n.
        samplers: to compare with DDPM's T steps and 10 extra ones.
        seed: of the noise.
    """
    module = load_module(path)
    if not isinstance(module, LDCQStage3Module):
        raise ConfigError(f"{path}: is a {type(module).__name__}; give an LDCQStage3Module's.")
    if module.spec is None or module.spec.env_id is None:
        raise ConfigError(f"{path}: its data name no environment to take states from.")
    env = make_env(module.spec.env_id)
    starts = np.stack([env.reset(seed=seed + i)[0] for i in range(states)])
    env.close()
    observations = torch.as_tensor(starts, dtype=torch.float32)
    normalized = module.first.normalize(observations)

    @torch.no_grad()
    def best(how: Sampling, stream: int) -> Tensor:
        noise = ShardedGenerator(seed, stream)
        return module.q.best(normalized, module.propose(observations, number, how, noise))[0]

    exact, again = best(EXACT, 0), best(EXACT, 1)
    noise = float((exact - again).abs().mean())
    for how in (EXACT, *samplers):
        found = again if how == EXACT else best(how, 1)
        yield QualityResult(
            how=_name(how),
            states=states,
            number=number,
            mean=float(found.mean()),
            deviation=float(found.std()),
            apart=float((found - exact).abs().mean()),
            noise=noise,
        )


def latent_table(results: Sequence[LatentResult]) -> Table:
    """One line a measurement."""
    table = Table("LDCQ", "", "time", "authors' code", "ratio", title="Latents")
    for r in results:
        theirs, ratio = "", ""
        if r.authors_seconds is not None and r.ratio is not None:
            theirs, ratio = f"{r.authors_seconds * 1e3:,.4g} ms", f"{r.ratio:.1f} ×"
        name = r.what.partition(",")[0]
        table.add_row(name, r.how, f"{r.seconds * 1e3:,.4g} ms", theirs, ratio)
    table.caption = "authors' code: one thread of a machine like that of the README's numbers"
    return table


def picture_table(results: Sequence[PictureResult]) -> Table:
    """One line a step."""
    table = Table("LDCQ", "batch", "stored features", "frames", "ratio", title="Pictures")
    for r in results:
        ours, theirs = f"{r.seconds * 1e3:,.4g} ms", f"{r.frames_seconds * 1e3:,.4g} ms"
        table.add_row(r.what, f"{r.batch}", ours, theirs, f"{r.ratio:.1f} ×")
    table.caption = "48 × 48 pixels, H = 30; steps with the making of their batches"
    return table


def quality_table(results: Sequence[QualityResult]) -> Table:
    """One line a sampler."""
    title = f"Best Q of {results[0].number} latents in {results[0].states} states"
    table = Table("sampler", "mean ± deviation over states", "apart from DDPM's", title=title)
    for r in results:
        table.add_row(r.how, f"{r.mean:.4g} ± {r.deviation:.4g}", f"{r.apart:.3g}")
    table.caption = f"two draws of DDPM are {results[0].noise:.3g} apart in a state"
    return table


def _stepper(
    module: LDCQStage2Module | LDCQStage3Module, make: Callable[[int], SnippetBatch]
) -> Callable[[], None]:
    """A whole training step, on a batch of its own each time, made from the step's number."""
    device = module.device
    optimizer = module.configure_optimizers()
    if isinstance(module, LDCQStage3Module):
        shape = (_STORED, module.num_latents, LATENT)
        proposed = np.random.default_rng(1).standard_normal(shape, np.float32).astype(np.float16)
        table = RowTable(torch.arange(_STORED), proposed, _STORED, device)
        module.proposed = lambda batch: table.at(batch.rows)  # type: ignore[method-assign]
    step = iter(range(10**9))

    def run() -> None:
        number = next(step)
        module.seed_noise(number)
        loss = torch.stack(list(module.losses(make(number)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameter_groups().popitem()[1], 1.0)
        optimizer.step()
        module.after_step()

    return run


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(seed: int, rows: int, device: torch.device) -> SnippetBatch:
    random = _generator(seed)
    columns = {
        "observations": torch.randn(rows, 30, OBSERVATION, generator=random),
        "actions": torch.zeros(rows, 30, ACTION),
        "returns": torch.randn(rows, generator=random),
        "next_observations": torch.randn(rows, OBSERVATION, generator=random),
        "terminals": torch.zeros(rows, dtype=torch.bool),
        "discounts": torch.full((rows,), 0.86),
        "mask": torch.ones(rows, 30, dtype=torch.bool),
        "rows": torch.randint(_STORED, (rows,), generator=random),
    }
    on_device = {name: column.to(device) for name, column in columns.items()}
    return SnippetBatch(**on_device, goals=None, weights=None)


def _record(kind: type[OfflineModule], options: dict[str, Any]) -> dict[str, Any]:
    path = f"{kind.__module__}.{kind.__qualname__}"
    return {"path": "made up", "class_path": path, "hyper_parameters": options, "spec": None}


def _name(how: Sampling) -> str:
    extra = f" + {how.extra_steps}" if how.extra_steps else ""
    return f"{how.sampler}, {how.sampling_steps or 'all'}{extra} steps"


def _least(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    own = device.type == "cpu" and torch.get_num_threads() == 1
    now = time.thread_time if own else lambda: clock(device)
    taken = []
    for _ in range(repeats + 1):  # the first warms up
        before = now()
        run()
        taken.append(now() - before)
    return min(taken[1:])
