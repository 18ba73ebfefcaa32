"""What ``lit-offrl sweep`` and ``lit-offrl pipeline`` have in common: checks, the plan, the run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_offrl.commands.parsing import OneLineParser, positive
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.files import make_folder
from lit_offrl.common.user_code import command_line
from lit_offrl.experiments.board import Board, times_table
from lit_offrl.experiments.config import FileReader, from_yaml
from lit_offrl.experiments.executors.ray import RayExecutor, RayOptions, read_ray
from lit_offrl.experiments.executors.transfer import open_transfer
from lit_offrl.experiments.inputs import data_spec
from lit_offrl.experiments.job import Cell, Job, State, lineage, needed
from lit_offrl.experiments.pipeline import DATASET
from lit_offrl.experiments.run import (
    Choices,
    Executor,
    Listener,
    Schedule,
    console_of_stdout,
    follow,
)
from lit_offrl.experiments.trials import Row, Searches
from lit_offrl.tracking.store import STORE_HELP


def add_options(parser: OneLineParser, folder: str, executors: Sequence[str]) -> None:
    """Add the options of both verbs."""
    add = parser.add_argument
    add("--executor", choices=executors, default="local", help="Where jobs run [local].")
    add("--workers", type=positive, metavar="N", help="Jobs at a time [1; one a GPU; of Ray, all].")
    add(
        "--ray_address",
        metavar="HOST:PORT",
        help="A Ray cluster's head, or 'auto' on one of its nodes [$RAY_ADDRESS, else Ray begins on"
        " this machine].",
    )
    add(
        "--ray",
        default="{}",
        metavar="YAML",
        help="Resources of a job and retries, such as '{num_cpus: 2, num_gpus: 0.5, memory_gb: 8,"
        " retries: 3}'.",
    )
    add("--output", type=Path, metavar="DIR", help=f"The folder of the results [{folder}].")
    add("--tracking_uri", metavar="URI", help=STORE_HELP)
    add("--dry_run", action="store_true", help="Print states, reasons and commands; run nothing.")


def ray_executor(
    options: argparse.Namespace,
    given: Mapping[str, Any],
    choices: Choices,
    listener: Listener,
    *,
    name: str,
    output: Path,
    uri: str | None,
) -> RayExecutor:
    """Return the executor of ``--executor ray``.

    Args:
        options: Those of ``add_options``.
        given: The key ``ray`` of the experiment's file; the options win.
        choices: What to do with failed and changed jobs.
        listener: Hears when jobs begin.
        name: The experiment's name.
        output: Its folder.
        uri: MLflow's store; None for none.

    Raises:
        LitOffRLError: Ray or MLflow cannot be used.
    """
    address = options.ray_address or os.environ.get("RAY_ADDRESS") or None
    try:
        own = from_yaml(options.ray)
    except ValueError as error:
        raise ConfigError(f"--ray: is no YAML: {error}") from error
    own = read_ray(FileReader(Path("--ray")), own)
    ray, transfer = RayOptions(**{**given, **own}, address=address), None
    if ray.worker_root is not None:
        if uri is None:
            raise ConfigError("ray.worker_root: files pass through MLflow: leave out --no-mlflow.")
        transfer = open_transfer(uri, name, output, Path(ray.worker_root))
    return RayExecutor(choices, listener, options=ray, workers=options.workers, transfer=transfer)


def run_cells(
    command: str,
    cells: Sequence[Cell],
    choices: Choices,
    options: argparse.Namespace,
    output: Path,
    *,
    begin: Callable[[Board], Executor],
    prepare: Callable[[], None],
    hint: str,
    whole: bool = False,
) -> int:
    """Check, then run, what is to be done for cells; return 0, 1 or 128 + a signal's number.

    Args:
        command: The verb, which begins messages.
        cells: The lines of the experiment.
        choices: What to do with failed and changed ones.
        options: Those of ``add_options``.
        output: The experiment's folder.
        begin: Makes the executor.
        prepare: Checks what is needed to begin; it is called before anything is written.
        hint: Ends messages about evaluations that cannot be.
        whole: Whether the executor takes targets with all that these need, on other machines.

    Raises:
        LitOffRLError: An option, the data or the store cannot be used; nothing was begun.
    """
    waiting = [cell for cell in cells if not choices.leave(cell.state())]
    if options.dry_run:
        check_jobs(waiting, hint, make=False)
        print_plan(cells, choices)
        return 0
    console = console_of_stdout()
    board, code = Board(cells, console), 0
    if waiting:
        check_jobs(waiting, hint, make=not whole)
        prepare()
        make_folder(output)
        schedule = Schedule(choices, whole)
        schedule.add(waiting)
        code = follow(schedule, lambda: begin(board), board, console, f"lit-offrl {command}")
    else:
        console.print(board.table())
    if (times := times_table(cells)) is not None:
        console.print(times)
    states = [cell.state() for cell in cells]
    for cell, state in zip(cells, states, strict=True):
        if state != State.DONE and (why := board.reason(cell)):
            print(f"lit-offrl {command}: {cell.name}: {why}", file=sys.stderr)
    for state, option in ((State.FAILED, "--retry_failed"), (State.CHANGED, "--rerun_changed")):
        if state in states and choices.leave(state):
            line = f"{states.count(state)} {state}: {option} runs them again"
            print(f"lit-offrl {command}: {line}; logs are in {output}.", file=sys.stderr)
    return code or int(any(state != State.DONE for state in states))


def run_search(
    rows: Sequence[Row],
    examples: Sequence[Cell],
    choices: Choices,
    options: argparse.Namespace,
    output: Path,
    *,
    begin: Callable[[Listener], Executor],
    prepare: Callable[[], None],
    hint: str,
    whole: bool,
    uri: str,
    experiment: str,
) -> int:
    """Check, then run, searches; return 0, 1 or 128 + a signal's number. See ``run_cells``.

    Args:
        rows: The searches.
        examples: Cells in which each end of their axes occurs, to be checked.
        uri: MLflow's store.
        experiment: MLflow's experiment.

    Raises:
        LitOffRLError: An option, the data, the store or the ledger cannot be used.
    """
    check_jobs(examples, hint, make=not options.dry_run and options.executor == "local")
    if options.dry_run:
        for row in rows:
            print(f"# {row.describe()}")
        print_plan(examples, choices)
        return 0
    prepare()
    make_folder(output)
    console = console_of_stdout()
    schedule = Schedule(choices, whole)
    searches = Searches(
        rows,
        choices,
        schedule,
        Board([], console),
        jobs=options.workers or max(1, len(options.gpus)),
        tracking_uri=uri,
        experiment=experiment,
    )
    searches.begin()
    code = 0
    if schedule.jobs:
        code = follow(schedule, lambda: begin(searches), searches, console, "lit-offrl sweep")
    tables, lines, done = searches.finish()
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    for why in searches.reasons():
        print(f"lit-offrl sweep: {why}", file=sys.stderr)
    return code or int(not done)


def check_jobs(cells: Sequence[Cell], hint: str, *, make: bool) -> None:
    """Parse every job's options as it will, so that a mistake in the last one costs no hours.

    Args:
        cells: Those that are to be worked on.
        hint: Ends messages about evaluations that cannot be.
        make: Whether environments must be on this machine.

    Raises:
        ConfigError: The first cell's whose options or checkpoints would be refused.
    """
    if not cells:
        return
    from lit_offrl.modules.checkpoints import read_checkpoint  # brings torch and Lightning: seconds

    kinds: dict[str, Any] = {}
    for cell in cells:
        for job in needed(cell.target):
            for source in job.depends_on:
                if source.state() == State.DONE and not source.is_as_it_ended():
                    try:
                        read_checkpoint(source.checkpoint)
                    except ConfigError as error:
                        raise ConfigError(
                            f"{source.name}: {error} Delete it to train the stage again."
                        ) from error
            try:
                _check(job, kinds, hint, make)
            except (ConfigError, EvaluationError) as error:
                raise ConfigError(f"{cell.name}: {error}") from error


def _check(job: Job, kinds: dict[str, Any], hint: str, make: bool) -> None:
    """Check a job's options, but those that it has in common with one in ``kinds``."""
    from lit_offrl.cli.layer import require_classes
    from lit_offrl.cli.main import require_options
    from lit_offrl.commands.evaluate import require_arguments
    from lit_offrl.evaluation.evaluate import environment_of, require_policy_options

    training = job.training
    own = {name: value for name, value in training.options.items() if name != DATASET}
    key = repr((training.configs, own, [*training.takes]))  # seeds and datasets share it
    if job.is_fit:
        if key not in kinds:
            require_classes(job.config(), "")
            kinds[key] = require_options(job.argv("checked", anew=True))
        return
    options, config = job.evaluate_options(), job.config()
    if key in kinds and (once := f"{key} {options}") not in kinds:
        kinds[once] = require_arguments(job.argv("checked")[1:])
        require_policy_options(kinds[key], kinds[once])
    if training.state() == State.DONE:
        return  # the evaluation begins at once, and says so itself
    once = repr((config.get("data"), options))
    if once in kinds or (spec := data_spec(config)) is None:
        return
    kinds[once] = None
    try:
        environment_of(spec, options.get("env"), options.get("max_episode_steps"), make=make)
    except (ConfigError, EvaluationError) as error:
        raise ConfigError(f"{error} {hint}") from error


def print_plan(cells: Sequence[Cell], choices: Choices) -> None:
    """Print each cell's state, what would be done and why, and the commands."""
    anew: set[str] = set()
    printed: set[str] = set()
    for cell in cells:
        state, target = cell.state(), cell.target
        said = str(state)
        if state == State.CHANGED:
            source = next((job.name for job in target.depends_on if job.key in anew), None)
            said = cell.reason()
            if choices.rerun_changed:
                since = f", since {said.removeprefix(f'{state}: ')}"
                said = "runs again" + (since if source is None else f" after {source}")
        elif state == State.CUT and len(cell.jobs) == 1:
            said = f"interrupted at {target.progress() or 'its beginning'}, goes on"
        if state != State.DONE:
            anew.add(target.key)
        print(f"# {cell.name}: {said}")
        for job in lineage(target):
            stored = job.stored()
            argv = job.argv(stored["id"] if stored else "ID", anew=job.state() == State.CHANGED)
            line = command_line(argv)
            if line not in printed:  # stages that several methods share
                print(line)
            printed.add(line)
