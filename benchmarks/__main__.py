"""Run the benchmarks and print what they found; see ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.acd import FitResult, PassResult, run_fit, run_passes
from benchmarks.calls import CallsResult, run_calls
from benchmarks.coverage import HOLDS, SHAPES, CoverageResult, run_coverage
from benchmarks.exported import exported_table, run_exported
from benchmarks.futures import levers_table, run_levers
from benchmarks.gpu import checks_table, fits_table, run_checks, run_contract, run_fits
from benchmarks.kills import KillsResult, run_kills
from benchmarks.latents import (
    latent_table,
    picture_table,
    quality_table,
    run_latents,
    run_pictures,
    run_quality,
)
from benchmarks.loader import LoaderResult, run_loader
from benchmarks.machine import describe
from benchmarks.made_up import Size, settings
from benchmarks.mapped import mapped_table, run_mapped
from benchmarks.maze import MazeScore, MazeSpeed, run_scores, run_speed
from benchmarks.peer import HOW_TO
from benchmarks.peers import Checkouts, missed_table, peers_table, run_peers
from benchmarks.priority import PriorityResult, run_priority
from benchmarks.serving import run_serving, serving_table
from benchmarks.signals import LIMIT_SECONDS, SignalResult, run_signals
from benchmarks.start import ProcessorResult, StartResult, run_processor, run_starts
from benchmarks.step import StepResult, run_step, run_steps
from benchmarks.trace import TraceResult, run_trace
from benchmarks.trackers import LEAST, MOST, TrackerResult, run_trackers
from benchmarks.vae import run_vaes, vae_table
from benchmarks.value import ValueResult, run_values
from lit_offrl.common.errors import ConfigError

NAMES = (
    *("loader", "priority", "calls", "step", "acd", "value", "vae", "latents"),
    *("start", "maze", "coverage", "trackers", "signals", "kills", "trace", "peers", "gpu"),
    *("futures", "serve", "export"),
)


def seconds(value: float) -> str:
    """A time with three digits in the unit that suits it."""
    if value >= 1:
        return f"{value:,.3g} s" if value < 1000 else f"{value:,.0f} s"
    return f"{value * 1e3:.3g} ms"


def loader_table(results: Sequence[LoaderResult]) -> Table:
    """One line a view and batch size."""
    beside = any(r.d3rlpy_ratio is not None for r in results)
    heads = ["data", "view", "batch", "rows/s", "map-style DataLoader", "ratio"]
    heads += ["d3rlpy", "ratio"] * beside
    table = Table(*heads, "memory", title="Loader")
    for r in results:
        peer = ["", ""]
        if r.d3rlpy_rows_per_second is not None:
            peer = [f"{r.d3rlpy_rows_per_second:,.0f}", f"{r.d3rlpy_ratio:.0f} ×"]
        table.add_row(
            r.data,
            r.view,
            f"{r.batch_size}",
            f"{r.rows_per_second:,.0f}",
            f"{r.map_style_rows_per_second:,.0f}",
            f"{r.ratio:.1f} ×",
            *peer * beside,
            f"{r.memory_ratio:.2f} ×",
        )
    table.caption = "both in this process without workers; an epoch's permutation is not timed\n"
    table.caption += "memory: the columns and all that view and order hold beside them, in columns"
    if not beside:
        table.caption += f"\nfor d3rlpy's sampler beside them: {HOW_TO}"
    return table


def priority_table(result: PriorityResult) -> Table:
    """Draw and update of a batch."""
    title = f"Prioritised sampling of {result.items:,} rows, batch {result.batch_size}"
    table = Table("draw", "update", "torch.multinomial", "ratio", title=title)
    table.add_row(
        seconds(result.draw_seconds),
        seconds(result.update_seconds),
        seconds(result.multinomial_seconds),
        f"{result.ratio:.0f} ×",
    )
    table.caption = "a draw with importance weights beside one of multinomial, which has none"
    return table


def calls_table(results: Sequence[CallsResult]) -> Table:
    """One line a method and length of calls."""
    table = Table("method", "steps a call", "plain loop", "fit", "ratio", "added", title="Calls")
    for r in results:
        length = "chosen" if r.steps_per_call is None else f"{r.steps_per_call}"
        times = (seconds(r.plain_seconds), seconds(r.seconds), f"{r.ratio:.2f}")
        table.add_row(r.method, length, *times, f"{r.added * 1e6:.0f} µs")
    table.caption = (
        f"a step's time of the processor, medians of {results[0].turns} turns; added: what "
        "Lightning and\nall callbacks of the command line add, the median of the differences"
    )
    return table


def step_table(result: StepResult) -> Table:
    """One line a part of the step, and their sum."""
    title = f"DVF training step, {result.size} size, batch {result.batch_size}, {result.precision}"
    table = Table("part", "time", "of the step", "GFLOP", "GFLOP/s", "of the peak", title=title)

    def add(name: str, taken: float, flops: float) -> None:
        speed = flops / taken
        table.add_row(
            name,
            seconds(taken),
            f"{taken / result.seconds:.1%}",
            f"{flops / 1e9:,.3g}",
            f"{speed / 1e9:,.3g}",
            f"{speed / result.peak:.1%}",
        )

    notes = [
        f"peak of square matrix products here and now: {result.peak / 1e9:,.0f} GFLOP/s;\n"
        f"of one as narrow as the model's: {result.narrow_peak / 1e9:,.0f} GFLOP/s"
    ]
    for part in result.parts:
        add(part.name, part.seconds, part.flops)
        if part.measured_rows < result.batch_size:
            notes.append(
                f"{part.name} EXTRAPOLATED from {part.measured_rows} of {result.batch_size} rows, "
                "so its time is a lower bound"
            )
    if result.warmup_seconds is not None and result.row_seconds is not None:
        notes.append(
            f"this config samples values once a row, {seconds(result.row_seconds)} each, not in "
            f"each step:\na warm-up step takes {seconds(result.warmup_seconds)}, "
            "one after the sampling less"
        )
    table.add_section()
    add("whole step", result.seconds, result.flops)
    table.caption = "\n".join(notes)
    return table


def consumers_table(result: StepResult) -> Table:
    """What the time of a step goes to."""
    table = Table("operation", "of the time", title=f"Where a {result.size} step's time goes")
    for name, share in result.consumers.items():
        table.add_row(name, f"{share:.1%}")
    table.caption = "PyTorch's profiler; each operation's own time"
    return table


def fit_table(result: FitResult) -> Table:
    """A step of IQL's fit, and of d3rlpy's IQL where it was requested."""
    title = f"A step of IQL's fit, batch {result.batch_size}"
    table = Table("clock", "this", "d3rlpy", "of it sampling", "ratio", title=title)
    beside = result.peer_seconds is not None
    for clock, own, peer, sampling, ratio in (
        ("wall", result.seconds, result.peer_seconds, result.peer_sampling, result.ratio),
        ("processor", result.cpu_seconds, result.peer_cpu_seconds, None, result.cpu_ratio),
    ):
        texts = ["" if number is None else seconds(number) for number in (peer, sampling)]
        table.add_row(clock, seconds(own), *texts, "" if ratio is None else f"{ratio:.2f}")
    table.caption = (
        f"medians of {result.turns} turns of {result.steps} steps; sampling and Lightning's loop\n"
        "are in it, validation, logger and checkpoints are not"
    )
    if not beside:
        table.caption += f"\nfor d3rlpy's IQL in the same turns: {HOW_TO}"
    return table


def pass_table(results: Sequence[PassResult]) -> Table:
    """One line a step or decision."""
    heads = ("", "median", "fastest", "GFLOP", "of the peak", "of medians")
    table = Table(*heads, title="ACD and its relatives, without the loop")
    for r in results:
        table.add_row(
            *(r.name, seconds(r.seconds), seconds(r.fastest), f"{r.flops / 1e9:.3g}"),
            *(f"{r.share:.0%}", f"{r.median_share:.0%}"),
        )
    table.caption = (
        f"time of the processor, {results[0].repeats} turns with matrix products among them\n"
        f"peak: the fastest of these, {results[0].peak / 1e9:,.0f} GFLOP/s; shares: the fastest's\n"
        f"the last column is of medians, {results[0].median_peak / 1e9:,.0f} GFLOP/s"
    )
    return table


def value_table(results: Sequence[ValueResult]) -> Table:
    """One line a horizon, in both ways."""
    title = f"One value estimate, n = {results[0].num_samples} samples, B = {results[0].states}"
    table = Table(
        "size", "Δt up to", "DVF", "calls", "autoregressive", "calls", "ratio", title=title
    )
    extrapolated = False
    for r in results:
        guessed = r.measured_steps < r.horizon
        extrapolated |= guessed
        table.add_row(
            r.size,
            f"{r.horizon}",
            seconds(r.seconds),
            f"{r.calls}",
            seconds(r.autoregressive_seconds) + (" *" if guessed else ""),
            f"{r.autoregressive_calls}" + (" *" if guessed else ""),
            f"{r.ratio:,.0f} ×" + (" *" if guessed else ""),
        )
    table.caption = "calls: forward passes of the denoiser, each for all samples"
    if extrapolated:
        longest = max(r.measured_steps for r in results)
        table.caption += f"\n* EXTRAPOLATED from {longest} steps; --full runs all of them"
    return table


def start_table(results: Sequence[StartResult]) -> Table:
    """One line a dataset's shape."""
    table = Table("shape of", "rows", "first start", "later starts", "imports", title="Start")
    for r in results:
        first, later = seconds(r.first_seconds), seconds(r.later_seconds)
        table.add_row(r.name, f"{r.rows:,}", first, later, seconds(r.import_seconds))
    table.caption = "processes of their own, until the first batch is made; imports apart"
    return table


def processor_table(results: Sequence[ProcessorResult]) -> Table:
    """One line a process."""
    table = Table("process", "processor", title="Processor time of a start")
    for r in results:
        table.add_row(r.name, seconds(r.seconds))
    table.caption = "user and system together, one thread, the fewest of two runs\n"
    table.caption += "fit: DVF's quick config on the bundled data; it cannot beat the bare imports"
    return table


def maze_tables(speed: MazeSpeed, scores: Sequence[MazeScore]) -> tuple[Table, Table]:
    """The speed of collecting, and one line a maze and policy."""
    table = Table("maze", "collecting", "through gymnasium", "ratio", title="Collecting maze2d")
    table.add_row(
        speed.maze,
        f"{speed.steps_per_second:,.0f} steps/s",
        f"{speed.gymnasium_steps_per_second:,.0f} steps/s",
        f"{speed.ratio:.1f} ×",
    )
    title = f"maze2d, {scores[0].episodes} episodes each"
    returns = Table("maze", "policy", "return", "D4RL's reference", "score", title=title)
    for r in scores:
        returns.add_row(
            *(r.maze, r.policy, f"{r.mean_return:.1f}", f"{r.reference:.1f}"),
            f"{r.score:.1f} ± {r.error:.1f}",
        )
    returns.caption = (
        "±: standard error. The script behind D4RL's maxima\n"
        "plans once and later drives straight at the goal;\n"
        "a true planner scores far above 100."
    )
    return table, returns


def coverage_table(results: Sequence[CoverageResult]) -> Table:
    """One line a setting: how often the 95 % intervals of `lit-offrl compare` covered the truth."""
    title = f"Coverage of 95 % intervals in {results[0].repeats:,} simulated tables"
    table = Table("statistic", "seeds", "datasets", *SHAPES, title=title)
    settings = dict.fromkeys((r.statistic, r.seeds, r.datasets) for r in results)
    shares = {(r.statistic, r.seeds, r.datasets, r.scores): r.coverage for r in results}
    low, high = HOLDS
    for setting in settings:
        found = [shares[(*setting, shape)] for shape in SHAPES]
        texts = [f"{share:.1%}{'' if low <= share <= high else ' *'}" for share in found]
        table.add_row(*map(str, setting), *texts)
    table.caption = (
        f"by the distribution of a dataset's scores; *: not {low:.0%} to {high:.0%}\n"
        "with two datasets the IQM's cut falls between them, where it is biased and not smooth"
    )
    return table


def tracker_table(results: Sequence[TrackerResult]) -> Table:
    """One line a store: the fit's speed beside that without a logger."""
    speeds = ("steps/s", "no logger", "ratio", "of CPU")
    heads = ("MLflow store", "cost", "logging", "threads", *speeds, "end", "to sync")
    table = Table(*heads, title="A fit while its MLflow store is far away or fails")
    for r in results:
        table.add_row(
            r.store,
            f"{r.share:.2%}{'' if r.share <= MOST else ' *'}",
            f"{r.logging_share:.2%}",
            f"{r.threads_share:.2%}",
            f"{r.steps_per_second:.1f}",
            f"{r.without:.1f}",
            f"{r.ratio:.1%}{'' if r.ratio >= LEAST else ' *'}",
            f"{r.cpu_ratio:.1%}",
            seconds(r.end_seconds),
            "yes" if r.unsent else "",
        )
    table.caption = "\n".join(
        [
            f"cost, to be at most {MOST:.0%} (* if not): logging, its share of the training",
            "thread's processor time, and that of the logger's threads in a second of the fit;",
            "what else runs moves ratio, by the clock, and of CPU, by the training thread's",
            f"processor time; *: below {LEAST:.0%} by the clock",
            "end: from the last step until the run is closed; to sync: something is left",
        ]
    )
    return table


def signals_table(results: Sequence[SignalResult]) -> Table:
    """One line a signal, and below the table what did not hold."""
    heads = ("signal", "fits", "before Python", "finished", "with a checkpoint", "slowest", "wrong")
    table = Table(*heads, title="Signals at random moments of a fit")
    for r in results:
        counts = (r.times, r.early, r.finished, r.saved)
        table.add_row(r.name, *map(str, counts), seconds(r.slowest), str(len(r.violations)))
    lines = [line for r in results for line in r.violations]
    table.caption = "\n".join(
        [
            "exit code 128 + N, or 0 where the fit had finished; a checkpoint if a step was done;",
            f"no MLflow run left RUNNING; gone within {LIMIT_SECONDS:.0f} s",
            *lines,
        ]
    )
    return table


def kills_table(results: Sequence[KillsResult]) -> Table:
    """One line a fit that was killed, and below the table what did not hold."""
    heads = ("method", "steps a call", "killed in step", "gone on with from", "wrong")
    table = Table(*heads, title=f"Fits of {results[0].steps} steps, killed by SIGKILL")
    for r in results:
        steps = (" ".join(map(str, each)) for each in (r.kills, r.resumed))
        table.add_row(r.method, str(r.steps_per_call), *steps, str(len(r.violations)))
    table.caption = "\n".join(
        [
            "wrong: what differs from an unbroken fit with a step a call, bit for bit:",
            "weights, optimiser, curves, counters",
            *(line for r in results for line in r.violations),
        ]
    )
    return table


def trace_table(result: TraceResult) -> Table:
    """Files of the library that a training step goes through, and the calls of each."""
    table = Table("file", "calls", title="One training step of DVF")
    for name, calls in result.by_file.items():
        table.add_row(name, f"{calls:,}")
    table.caption = f"{result.files} files, {result.switches:,} calls from one into another"
    return table


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument(
        "which",
        nargs="?",
        choices=NAMES,
        help="one; all but the last ten by default",
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--threads", type=int, default=1, help="of PyTorch on the CPU (1)")
    made.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick-only", action="store_true", help="leave out the paper's size")
    made.add_argument("--full", action="store_true", help="extrapolate nothing: takes an hour")
    made.add_argument(
        "--peer-python", type=Path, metavar="PATH", help=f"times d3rlpy, too; make it by: {HOW_TO}"
    )
    made.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="of LDCQStage3Module: compares its best Q by few-step samplers with DDPM's",
    )
    made.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="of export: keeps the files there, for benchmarks/check_exported.py elsewhere",
    )
    made.add_argument("--times", type=int, default=30, metavar="N", help="of signals: each (30)")
    peers = made.add_argument_group("peers", "what is not given is left out")
    for one in fields(Checkouts):
        peers.add_argument(
            f"--{one.name}", type=Path, metavar="PATH", help=Checkouts.help(one.name)
        )
    peers.add_argument(
        "--rows", type=lambda text: text.split(","), default=(), help="methods, by commas (all)"
    )
    peers.add_argument("--budget", type=float, default=6.0, help="seconds a loop and method (6)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is requested, print tables and return the numbers."""
    line = parser()
    options = line.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        line.error("--device cuda: PyTorch sees no GPU here; leave --device out")
    if options.which == "gpu" and not torch.cuda.is_available():
        line.error("gpu: PyTorch sees no GPU here; the other benchmarks run on the CPU")
    if options.times < 1:
        line.error("--times: give at least 1")
    if options.threads < 1:
        line.error("--threads: give at least 1")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        line.error(f"--json: there is no folder {options.json.parent}")
    if options.peer_python is not None and not options.peer_python.is_file():
        line.error(f"--peer-python: there is no {options.peer_python}; make it by: {HOW_TO}")
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.which == "gpu" else options.device)
    console = Console()
    numbers: dict[str, Any] = {"machine": describe(device)}
    console.print(", ".join(f"{key} {value}" for key, value in numbers["machine"].items()))

    if options.which in (None, "loader"):
        try:
            loaders = run_loader(device=device, seed=options.seed, peer_python=options.peer_python)
        except ConfigError as error:  # the peer's environment
            line.error(str(error))
        numbers["loader"] = [asdict(r) for r in loaders]
        console.print(loader_table(loaders))
        mapped = list(run_mapped(seed=options.seed))
        numbers["mapped rows"] = [asdict(r) for r in mapped]
        console.print(mapped_table(mapped))
    if options.which in (None, "priority"):
        priority = run_priority(device=device, seed=options.seed)
        numbers["priority"] = asdict(priority)
        console.print(priority_table(priority))
    if options.which in (None, "calls"):
        calls = list(run_calls(device=device, seed=options.seed))
        numbers["calls"] = [asdict(r) for r in calls]
        console.print(calls_table(calls))
    if options.which in (None, "step"):
        numbers["step"] = []
        for step in run_steps(
            device=device,
            precision=options.precision,
            seed=options.seed,
            quick_only=options.quick_only,
            full=options.full,
        ):
            numbers["step"].append(asdict(step))
            console.print(step_table(step))
            if step.consumers:
                console.print(consumers_table(step))
    if options.which in (None, "acd"):
        try:
            fit = run_fit(device=device, seed=options.seed, peer_python=options.peer_python)
        except ConfigError as error:  # the peer's environment
            line.error(str(error))
        passes = run_passes(device=device, seed=options.seed)
        numbers["acd"] = {"fit": asdict(fit), "passes": [asdict(r) for r in passes]}
        for table in (fit_table(fit), pass_table(passes)):
            console.print(table)
    if options.which in (None, "value"):
        values = run_values(
            device=device, seed=options.seed, quick_only=options.quick_only, full=options.full
        )
        numbers["value"] = [asdict(r) for r in values]
        console.print(value_table(values))
    if options.which in (None, "vae"):
        vaes = list(run_vaes(device=device, seed=options.seed, quick_only=options.quick_only))
        numbers["vae"] = [asdict(r) for r in vaes]
        console.print(vae_table(vaes))
    if options.which in (None, "latents"):
        latents = list(run_latents(device=device, seed=options.seed))
        numbers["latents"] = [asdict(r) for r in latents]
        console.print(latent_table(latents))
        pictures = list(run_pictures(device=device, seed=options.seed))
        numbers["latents of pictures"] = [asdict(r) for r in pictures]
        console.print(picture_table(pictures))
        if options.checkpoint is not None:
            qualities = list(run_quality(options.checkpoint, seed=options.seed))
            numbers["latents' quality"] = [asdict(r) for r in qualities]
            console.print(quality_table(qualities))
    if options.which in (None, "start"):
        starts = list(run_starts(threads=options.threads, seed=options.seed))
        numbers["start"] = [asdict(r) for r in starts]
        console.print(start_table(starts))
        processor = list(run_processor())
        numbers["processor of a start"] = [asdict(r) for r in processor]
        console.print(processor_table(processor))
    if options.which in (None, "maze"):
        speed, scores = run_speed(seed=options.seed), run_scores(seed=options.seed)
        numbers["maze"] = {"speed": asdict(speed), "scores": [asdict(r) for r in scores]}
        for table in maze_tables(speed, scores):
            console.print(table)
    if options.which == "futures":  # minutes, as it trains: only by name
        levers = list(run_levers(device=device, seed=options.seed))
        numbers["futures"] = [asdict(r) for r in levers]
        console.print(levers_table(levers))
    if options.which == "serve":  # only by name
        served = list(run_serving(seed=options.seed))
        numbers["serve"] = [asdict(r) for r in served]
        console.print(serving_table(served))
    if options.which == "export":  # minutes: only by name
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
        exported = list(run_exported(seed=options.seed, keep=options.keep))
        numbers["export"] = [asdict(r) for r in exported]
        console.print(exported_table(exported))
    if options.which == "coverage":  # minutes, and no speed: only by name
        shares = list(run_coverage(seed=options.seed))
        numbers["coverage"] = [asdict(r) for r in shares]
        console.print(coverage_table(shares))
    if options.which == "trackers":  # only by name
        trackers = list(run_trackers(seed=options.seed))
        numbers["trackers"] = [asdict(r) for r in trackers]
        console.print(tracker_table(trackers))
    if options.which == "signals":  # only by name
        signals = list(run_signals(times=options.times, seed=options.seed))
        numbers["signals"] = [asdict(r) for r in signals]
        console.print(signals_table(signals))
    if options.which == "kills":  # only by name
        kills = list(run_kills(seed=options.seed))
        numbers["kills"] = [asdict(r) for r in kills]
        console.print(kills_table(kills))
    if options.which == "trace":  # only by name, as it counts and times nothing
        trace = run_trace()
        numbers["trace"] = asdict(trace)
        console.print(trace_table(trace))
    if options.which == "peers":  # only by name
        checkouts = Checkouts(**{one.name: getattr(options, one.name) for one in fields(Checkouts)})
        rows = []
        given = {"methods": options.rows, "budget": options.budget, "seed": options.seed}
        try:
            with console.status("the first row takes a minute") as shown:  # on a terminal
                for row in run_peers(checkouts, **given):
                    rows.append(row)
                    shown.update(f"{len(rows)} rows, the last {row.method}")
        except ConfigError as error:  # a method's name
            line.error(str(error))
        numbers["peers"] = [asdict(r) for r in rows]
        console.print(peers_table(rows))
        for failure in dict.fromkeys(r.failure for r in rows if r.failure):
            console.print(failure, soft_wrap=True, markup=False, highlight=False)
        if any(r.met is False for r in rows):
            console.print(missed_table(rows))
    if options.which == "gpu":  # only by name
        contract = run_contract()
        numbers["gpu"] = {"contract": asdict(contract)}
        console.print(f"contract tests on the GPU, {contract.seconds:.0f} s: {contract.summary}")
        sizes: tuple[Size, ...] = ("quick",) if options.quick_only else ("quick", "paper")
        steps = [
            run_step(size, settings(size), device=device, precision="bf16-mixed", budget=1.0)
            for size in sizes
        ]
        numbers["gpu"]["dvf"] = [asdict(each) for each in steps]
        for each in steps:
            console.print(step_table(each))
        checks = list(run_checks(device, seed=options.seed))
        numbers["gpu"]["graphs"] = [asdict(each) for each in checks]
        console.print(checks_table(checks))
        fits = list(run_fits(device, seed=options.seed))
        numbers["gpu"]["fits"] = [asdict(each) for each in fits]
        console.print(fits_table(fits))
    if options.json is not None:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


if __name__ == "__main__":
    found = main()
    sys.exit(any(r["violations"] for which in ("signals", "kills") for r in found.get(which, [])))
