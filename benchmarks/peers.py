"""A step or a decision of ours and of the peers' own code, in turns; ``peers`` on the command line.

Each is a loop in a process of its own (``peer_turns``): ours as ``lit-offrl fit`` runs it, the
peer's as it lies in the user's checkout (``peer_code``) or environment (``peer``).
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.table import Table

from benchmarks import peer_code, peer_ours
from benchmarks.machine import matrix_peak, processor_clock
from benchmarks.made_up import make_dataset
from benchmarks.peer import PeerAlgorithm, d3rlpy_algorithm
from benchmarks.peer_ours import Fit
from benchmarks.peer_turns import Loop, LoopFailure, Pace, ProcessLoop, Work, process_loop
from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.schema import OfflineDataset

Precision = Literal["32-true", "bf16-mixed"]
METHODS = (
    *("IQL", "BC", "TD3+BC", "BCQ", "CQL", "DQL", "IDQL", "Lightning"),
    *("LDCQ VAE", "LDCQ prior", "LDCQ Q", "LDCQ decision"),
)
_SHORT = {"32-true": "fp32", "bf16-mixed": "bf16"}
_LATENT = 16


@dataclass(frozen=True)
class Checkouts:
    """What the user has of the peers; None of what is not there."""

    corl: Path | None = field(
        default=None, metadata={"source": "git clone https://github.com/tinkoff-ai/CORL"}
    )
    bcq: Path | None = field(
        default=None, metadata={"source": "git clone https://github.com/sfujim/BCQ"}
    )
    d3rlpy: Path | None = None
    """The Python of an environment that has it."""
    cleandiffuser: Path | None = field(
        default=None,
        metadata={"source": "git clone https://github.com/CleanDiffuserTeam/CleanDiffuser"},
    )
    ldcq: Path | None = field(
        default=None, metadata={"source": "git clone https://github.com/ldcq/ldcq"}
    )

    def source(self, option: str) -> str:
        """How one was given, for messages."""
        return f"--{option} {getattr(self, option)}"

    def loop(
        self, option: str, start: Callable[..., None], **options: Any
    ) -> Callable[[], AbstractContextManager[Loop]] | None:
        """What makes a loop of a checkout; None where it is not given."""
        checkout: Path | None = getattr(self, option)
        if checkout is None:
            return None
        return partial(process_loop, partial(start, checkout=checkout.absolute(), **options))

    @classmethod
    def help(cls, option: str) -> str:
        """Where one comes from."""
        found = next(one.metadata.get("source") for one in fields(cls) if one.name == option)
        return f"a checkout: {found}" if found else "the Python of an environment with d3rlpy"


class Sizes(NamedTuple):
    """Sizes that both have; the peers' files fix the widths, and ldcq's the shape of its rows."""

    rows: int = 100_000
    observation_dim: int = 29
    action_dim: int = 8
    batch: int = 256
    width: int = 256
    maze_rows: int = 20_000
    snippets: int = 1_000
    horizon: int = 30
    candidates: int = 500
    diffusion_steps: int = 200


SIZES = Sizes()


class Aim(NamedTuple):
    """At most so much of the peer's time, or so many seconds more than it."""

    ratio: float | None = None
    more: float | None = None

    def met(self, seconds: float, peer_seconds: float) -> bool:
        """Whether a step is as fast as this."""
        most = peer_seconds + self.more if self.more else (self.ratio or 0.0) * peer_seconds
        return seconds <= most

    def __str__(self) -> str:
        """As the table has it."""
        return f"≤ {self.ratio:g}" if self.more is None else f"≤ +{self.more * 1e6:g} µs"


@dataclass(frozen=True)
class PeerRow:
    """A step or decision of ours in one precision, and of the peer's as its files have it.

    Seconds are medians by the processor's clock. What belongs to the peer is None where it was not
    given or cannot run; ``failure`` says why. ``limit`` is what the matrix products alone would
    take at the peak; it and ``shares`` are there where the aim is missed.
    """

    method: str
    precision: str
    peer: str
    seconds: float
    flops: float
    parameters: int
    peak: float
    share: float
    turns: int
    aim: str
    peer_seconds: float | None = None
    peer_flops: float | None = None
    peer_parameters: int | None = None
    ratio: float | None = None
    met: bool | None = None
    failure: str | None = None
    limit: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    note: str = ""


class _Plan(NamedTuple):
    """One method: our loops by precision, and the peer's."""

    method: str
    ours: Mapping[Precision, Callable[[Pace], None]]
    peer: str
    theirs: Callable[[], AbstractContextManager[Loop]] | None
    """None where no checkout is given."""
    aims: dict[Precision, Aim]
    source: str
    """Option and path of the peer, for messages."""
    note: str = ""
    shares: Literal["shares", "calls"] = "shares"


def run_peers(
    given: Checkouts,
    *,
    sizes: Sizes = SIZES,
    methods: Sequence[str] = (),
    budget: float = 6.0,
    seed: int = 0,
) -> Iterator[PeerRow]:
    """Time ours and theirs in turns, one thread each.

    Args:
        given: what there is of the peers.
        sizes: of rows, batches and networks.
        methods: which, by name; all by default.
        budget: seconds for each loop.
        seed: of the rows.

    Raises:
        ConfigError: there is no method of a name.
        RuntimeError: a loop of ours does not run.
    """
    chosen = [name.lower() for name in methods or METHODS]
    if unknown := [name for name in chosen if name not in map(str.lower, METHODS)]:
        raise ConfigError(f"--rows {unknown[0]}: choose from {', '.join(METHODS)}.")
    dtypes: dict[Precision, torch.dtype] = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
    peaks = {
        name: matrix_peak(torch.device("cpu"), dtype, budget=min(1.5, budget), now=processor_clock)
        for name, dtype in dtypes.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        plans = [_plans(given, sizes, Path(folder), seed)]
        if any(name.startswith("ldcq") for name in chosen):
            plans.append(_ldcq_plans(given, sizes, Path(folder), seed))
        for plan in itertools.chain(*plans):
            if plan.method.lower() in chosen:
                yield from _measure(plan, peaks, budget)


# ---- what is timed -----------------------------------------------------------------------------


def _plans(given: Checkouts, sizes: Sizes, folder: Path, seed: int) -> Iterator[_Plan]:
    """The methods on one-step transitions, in the table's order."""
    rows, dataset = _write(folder, "rows", _make_rows(sizes, seed))
    fit = partial(Fit, rows=rows.with_suffix(".hdf5"), batch_size=sizes.batch)
    shared: dict[str, Any] = {"rows": rows, "batch_size": sizes.batch}
    width = sizes.width
    hidden: dict[str, Any] = {"hidden": [sizes.width, sizes.width]}

    for method, kind, options, file in (
        ("IQL", "IQLModule", {}, "iql"),
        ("BC", "BCModule", {"head": "deterministic"}, "any_percent_bc"),
        ("TD3+BC", "TD3BCModule", {}, "td3_bc"),
    ):
        path = f"algorithms/offline/{file}.py"
        theirs = given.loop("corl", peer_code.corl, file=path, **shared)
        made = _fits(fit(kind, hidden | options))
        yield _Plan(method, made, "CORL", theirs, _aims(0.75, 0.5), given.source("corl"))

    yield _Plan(
        "BCQ",
        _fits(fit("BCQModule", {}, batch_size=100)),
        "BCQ",
        given.loop("bcq", peer_code.bcq, file="continuous_BCQ/BCQ.py", rows=rows, batch_size=100),
        _aims(0.8, 0.65),
        given.source("bcq"),
    )

    cql = fit("CQLModule", hidden | {"num_actions": 10, "lagrange": 10.0})
    yield _Plan(
        "CQL",
        _fits(cql),
        "d3rlpy",
        None if given.d3rlpy is None else partial(_d3rlpy_loop, given.d3rlpy, dataset, sizes),
        _aims(0.5, 0.5),
        given.source("d3rlpy"),
        "our critics are DenseNets with LayerNorm, d3rlpy's plain",
    )

    plain = {"hidden": [width] * 3, "width": width}
    residual: dict[str, Any] = {**hidden, "width": width, "blocks": 3}
    for method, kind, net, note in (
        (
            *("DQL", "DQLModule", plain),
            "T = 5; critics with LayerNorm here, too, as CleanDiffuser's",
        ),
        (
            *("IDQL", "IDQLModule", residual),
            "CleanDiffuser trains the critics in every second step alone, ours in each",
        ),
    ):
        name = method.lower()
        theirs = given.loop(
            "cleandiffuser",
            peer_code.clean_diffuser,
            file=f"pipelines/{name}_d4rl_mujoco.py",
            config=f"configs/{name}/mujoco/mujoco.yaml",
            **shared,
        )
        made = _fits(fit(kind, {"layer_norm": True} | net))
        source, aims = given.source("cleandiffuser"), _aims(0.8, 0.5)
        yield _Plan(method, made, "CleanDiffuser", theirs, aims, source, note)

    tiny = Fit("BCModule", {"hidden": [8]}, rows.with_suffix(".hdf5"), 32)
    yield _Plan(
        "Lightning",
        {"32-true": partial(peer_ours.run_fit, fit=tiny, precision="32-true")},
        "a plain loop",
        partial(process_loop, partial(peer_ours.run_plain, fit=tiny)),
        {"32-true": Aim(more=20e-6)},
        "",
        "BC with 8 units, batch 32: what Lightning and the callbacks cost is the difference",
        shares="calls",
    )


class StageFits(NamedTuple):
    """LDCQ's stages on rows of maze2d's shape."""

    vae: Fit
    prior: Fit
    q: Fit
    acting: Fit
    """As ``q``, whose candidates would be drawn as the defaults say."""


def stage_fits(sizes: Sizes, folder: Path, seed: int) -> StageFits:
    """Write the rows, and the stages that later ones are built on, which are hardly trained.

    Those are small: snippets are encoded and candidates drawn once, before the steps, which are the
    same for all.
    """
    shape, few = {"observation_dim": 4, "action_dim": 2}, sizes.snippets
    maze, _ = _write(folder, "maze", make_dataset(sizes.maze_rows, seed, 400, **shape))
    rows, _ = _write(folder, "stages", make_dataset(few, seed, few // 4, **shape))
    options: dict[str, Any] = {"horizon": sizes.horizon, "latent_dim": _LATENT}
    full = options | {"width": sizes.width, "gru_layers": 4}
    vae = Fit("LDCQStage1Module", full, maze.with_suffix(".hdf5"), 128)
    small = options | {"width": 16, "gru_layers": 1}
    first = Fit("LDCQStage1Module", small, rows.with_suffix(".hdf5"), 8)
    stage1, stage2 = folder / "stage1.ckpt", folder / "stage2.ckpt"
    options = {"stage1": str(stage1), "diffusion_steps": sizes.diffusion_steps}
    prior = first._replace(kind="LDCQStage2Module", options=options, batch_size=32)
    options = {"stage2": str(stage2), "num_latents": sizes.candidates}
    acting = first._replace(kind="LDCQStage3Module", options=options)
    drawn = options | {"sampling_steps": 1}
    q = acting._replace(options=drawn, batch_size=128, gradient_clip=1.0)
    peer_ours.save_stage(first, stage1)
    peer_ours.save_stage(prior, stage2)
    return StageFits(vae, prior, q, acting)


def _ldcq_plans(given: Checkouts, sizes: Sizes, folder: Path, seed: int) -> Iterator[_Plan]:
    """LDCQ's stages, and its decision."""
    fits, n = stage_fits(sizes, folder, seed), sizes.candidates
    peer_code.write_latents(folder, sizes.snippets, 4, _LATENT, n)

    def plan(
        what: str,
        ours: Mapping[Precision, Callable[[Pace], None]],
        theirs: Callable[[], AbstractContextManager[Loop]] | None,
        aims: dict[Precision, Aim],
        note: str,
    ) -> _Plan:
        return _Plan(f"LDCQ {what}", ours, "ldcq", theirs, aims, given.source("ldcq"), note)

    yield plan(
        "VAE",
        _fits(fits.vae),
        given.loop(
            "ldcq",
            peer_code.ldcq_vae,
            file="training/train_skills.py",
            rows=folder / "maze.npz",
            horizon=sizes.horizon,
        ),
        _aims(1.0, 0.6),
        f"maze2d's sizes, H = {sizes.horizon}, 4 layers of GRU, batch 128",
    )
    yield plan(
        "prior",
        _fits(fits.prior),
        given.loop(
            "ldcq",
            peer_code.ldcq_prior,
            file="training/train_diffusion.py",
            latents=folder,
            steps=sizes.diffusion_steps,
            batch_size=32,
        ),
        _aims(0.5, 0.5),
        "batch 32, stored posteriors",
    )
    q_net: dict[str, Any] = {"file": "training/train_q_net.py", "number": n}
    yield plan(
        "Q",
        _fits(fits.q),
        given.loop("ldcq", peer_code.ldcq_q, latents=folder, batch_size=128, **q_net),
        _aims(0.1, 0.1),
        f"batch 128, {n} stored candidates each, drawn by priority",
    )
    yield plan(
        "decision",
        {"32-true": partial(peer_ours.run_decision, fit=fits.acting, number=n)},
        given.loop(
            "ldcq",
            peer_code.ldcq_decision,
            sizes=(4, _LATENT),
            steps=sizes.diffusion_steps,
            **q_net,
        ),
        _aims(0.01, 0.01),
        f"the best of {n} latents: 10 steps of DPM-Solver++ here, {sizes.diffusion_steps} + 10 of "
        "DDPM there",
    )


def _fits(fit: Fit) -> dict[Precision, Callable[[Pace], None]]:
    precisions: tuple[Precision, ...] = ("32-true", "bf16-mixed")
    return {each: partial(peer_ours.run_fit, fit=fit, precision=each) for each in precisions}


def _aims(without: float, with_units: float) -> dict[Precision, Aim]:
    """Shares of the peer's time on a processor without bf16 units, and with them."""
    return {"32-true": Aim(without), "bf16-mixed": Aim(with_units)}


def write_rows(sizes: Sizes, folder: Path, seed: int) -> Path:
    """Store rows of one-step methods, and return the path of the peers' file; ours is ``.hdf5``."""
    return _write(folder, "rows", _make_rows(sizes, seed))[0]


def _make_rows(sizes: Sizes, seed: int) -> OfflineDataset:
    shape = {"observation_dim": sizes.observation_dim, "action_dim": sizes.action_dim}
    return make_dataset(sizes.rows, seed, **shape)


def _write(folder: Path, name: str, dataset: OfflineDataset) -> tuple[Path, OfflineDataset]:
    """Store rows for us (.hdf5) and for the peers (.npz), whose path is returned."""
    high = np.ones(dataset.columns["actions"].shape[1])
    bounds = {"action_low": -high, "action_high": high}
    write_hdf5(folder / f"{name}.hdf5", dataset.columns, bounds)
    path = folder / f"{name}.npz"
    np.savez(path, **_as_d4rl(dataset))  # type: ignore[arg-type]
    return path, dataset


def _as_d4rl(dataset: OfflineDataset) -> dict[str, np.ndarray]:
    columns = {
        name: dataset.columns[name]
        for name in ("observations", "actions", "rewards", "terminals", "timeouts")
    }
    return columns | {"next_observations": np.roll(columns["observations"], -1, axis=0)}


# ---- the peers' loops --------------------------------------------------------------------------


class _D3rlpyLoop:
    def __init__(self, algorithm: PeerAlgorithm) -> None:
        self._algorithm = algorithm

    def time(self, steps: int) -> float:
        taken = self._algorithm.step(steps)
        return (taken.sampling_cpu + taken.updates_cpu) / steps

    def work(self, steps: int) -> Work:
        return Work(*self._algorithm.work())


@contextmanager
def _d3rlpy_loop(python: Path, rows: OfflineDataset, sizes: Sizes) -> Iterator[Loop]:
    with d3rlpy_algorithm(
        python,
        rows,
        batch_size=sizes.batch,
        hidden=[sizes.width, sizes.width],
        learning_rate=3e-4,
        threads=1,
        algorithm="CQL",
        option="--d3rlpy",
    ) as algorithm:
        yield _D3rlpyLoop(algorithm)


# ---- turns -------------------------------------------------------------------------------------


def _measure(plan: _Plan, peaks: dict[Precision, float], budget: float) -> Iterator[PeerRow]:
    """Time a method's loops in turns, and yield a row for each precision of ours.

    bf16 is left out where its products are slower than float32's.
    """
    precisions = [each for each in plan.ours if each == "32-true" or peaks[each] > peaks["32-true"]]
    failure = None
    with ExitStack() as stack:
        loops: dict[str, Loop] = {}
        for each in precisions:
            loops[each] = stack.enter_context(process_loop(plan.ours[each]))
        if plan.theirs is not None:
            try:
                loops["peer"] = stack.enter_context(plan.theirs())
                loops["peer"].time(1)  # it is there
            except (LoopFailure, ConfigError) as error:
                failure = _one_line(plan.source, error)
                loops.pop("peer", None)
        try:
            works, times, turns = _in_turns(loops, budget)
        except LoopFailure as error:
            raise RuntimeError(f"{plan.method}: {error}") from error
        for each in precisions:
            yield _row(plan, each, loops, works, times, turns, peaks[each], failure)


def _in_turns(
    loops: dict[str, Loop], budget: float, turn: float = 0.3, most: int = 40
) -> tuple[dict[str, Work], dict[str, float], int]:
    """Work and median seconds of each loop's step, and the number of turns."""
    steps = {}
    for name, loop in loops.items():
        loop.time(2 if loop.time(1) < turn else 1)  # warms up
        # an even number, where critics or actor learn in every second step
        steps[name] = max(1, 2 * min(500, round(turn / 2 / loop.time(1))))
    works = {name: loop.work(min(10, steps[name])) for name, loop in loops.items()}
    taken: dict[str, list[float]] = {name: [] for name in loops}
    end = time.perf_counter() + budget * len(loops)
    turns = 0
    while turns < 3 or (turns < most and time.perf_counter() < end):
        for name, loop in loops.items():
            taken[name].append(loop.time(steps[name]))
        turns += 1
    return works, {name: median(times) for name, times in taken.items()}, turns


def _row(
    plan: _Plan,
    precision: Precision,
    loops: dict[str, Loop],
    works: dict[str, Work],
    times: dict[str, float],
    turns: int,
    peak: float,
    failure: str | None,
) -> PeerRow:
    seconds, work, aim = times[precision], works[precision], plan.aims[precision]
    theirs, peer_work = times.get("peer"), works.get("peer")
    met = None if theirs is None else aim.met(seconds, theirs)
    shares: dict[str, float] = {}
    if met is False:
        loop = loops[precision]
        assert isinstance(loop, ProcessLoop)
        shares = loop.shares(max(2, min(20, round(1.0 / seconds))), plan.shares)
    return PeerRow(
        method=plan.method,
        precision=precision,
        peer=plan.peer,
        seconds=seconds,
        flops=work.flops,
        parameters=work.parameters,
        peak=peak,
        share=work.flops / seconds / peak,
        turns=turns,
        aim=str(aim),
        peer_seconds=theirs,
        peer_flops=None if peer_work is None else peer_work.flops,
        peer_parameters=None if peer_work is None else peer_work.parameters,
        ratio=None if theirs is None else seconds / theirs,
        met=met,
        failure=failure,
        limit=work.flops / peak if met is False and plan.shares == "shares" else None,
        shares=shares,
        note=plan.note,
    )


def _one_line(source: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.startswith("--") else f"{source}: {text}"


# ---- tables ------------------------------------------------------------------------------------


def peers_table(rows: Sequence[PeerRow]) -> Table:
    """One line a method and precision, and below it what differs."""
    heads = ("step or decision", "peer", "in", "ours", "peer's", "ratio", "aim", "GFLOP", "peak")
    table = Table(*heads, title="Ours and the peers' own code")
    for r in rows:
        theirs = "cannot run" if r.failure else ""
        if r.peer_seconds is not None:
            theirs = _time(r.peer_seconds)
        table.add_row(
            *(r.method, r.peer, _SHORT[r.precision], _time(r.seconds), theirs),
            "" if r.ratio is None else f"{r.ratio:.3g}",
            r.aim + (" *" if r.met is False else ""),
            *(f"{r.flops / 1e9:.3g}", f"{r.share:.0%}"),
        )
    lines = ["processor time, medians of turns, one thread; the peers' precision is float32"]
    peaks = {r.precision: r.peak / 1e9 for r in rows}
    measured = [f"{_SHORT[name]} {peak:,.0f} GFLOP/s" for name, peak in peaks.items()]
    lines.append(f"peak: the share of what products reach here and now, {', '.join(measured)}")
    if any(r.met is False for r in rows):
        lines.append("*: missed; the next table says where the time goes")
    if "bf16-mixed" not in peaks:
        lines.append("bf16 is left out, where this processor multiplies float32 faster")
    lines += [line for r in {r.method: r for r in reversed(rows)}.values() for line in _notes(r)][
        ::-1
    ]
    table.caption, table.caption_justify = "\n".join(lines), "left"
    return table


def missed_table(rows: Sequence[PeerRow]) -> Table:
    """Where the time goes of what misses its aim, and what products alone would take."""
    table = Table("missed", "in", "products alone", "where the time goes")
    for r in rows:
        if r.met is False:
            limit = ""
            if r.limit is not None and r.peer_seconds is not None:
                limit = f"{_time(r.limit)}, {r.limit / r.peer_seconds:.2g}"
            shares = ", ".join(f"{name} {share:.0%}" for name, share in r.shares.items())
            table.add_row(r.method, _SHORT[r.precision], limit, shares)
    table.caption = "products alone: at the measured peak, and as a share of the peer's time"
    return table


def _notes(row: PeerRow) -> Iterator[str]:
    parts = [row.note] if row.note else []
    if row.parameters and row.peer_parameters not in (None, row.parameters):  # 0: nothing is moved
        parts.append(f"parameters {row.parameters:,} here, {row.peer_parameters:,} there")
    if row.peer_flops is not None and abs(row.peer_flops - row.flops) > 0.02 * row.flops:
        parts.append(f"GFLOP {row.flops / 1e9:.3g} here, {row.peer_flops / 1e9:.3g} there")
    if parts:
        yield f"{row.method}: {'; '.join(parts)}"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
