"""What ``lit-offrl sweep`` and ``lit-offrl pipeline`` have in common: checks, the plan, the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from rich.console import Console

from lit_offrl.commands.parsing import positive
from lit_offrl.common.configs import from_yaml
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.files import make_folder
from lit_offrl.common.user_code import command_line
from lit_offrl.experiments.board import Board, times_table
from lit_offrl.experiments.config import FileReader
from lit_offrl.experiments.executors.local import LocalExecutor
from lit_offrl.experiments.executors.ray import RayExecutor, RayOptions
from lit_offrl.experiments.executors.slurm import SlurmExecutor
from lit_offrl.experiments.executors.transfer import open_transfer
from lit_offrl.experiments.inputs import data_spec
from lit_offrl.experiments.job import Cell, Job, State, lineage, needed
from lit_offrl.experiments.parent import begin_parent, end_parent
from lit_offrl.experiments.pipeline import DATASET
from lit_offrl.experiments.run import Choices, Executor, Listener, Schedule, follow
from lit_offrl.experiments.sweep import Experiment
from lit_offrl.experiments.trials import Searches
from lit_offrl.tracking.store import SQLITE, require_store


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError
    return names


_names.__name__ = "list such as 0,1"  # argparse names the type in its message


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of both verbs.

    Args:
        executor: Where jobs run.
        workers: Number of jobs at a time, at least 1. (default: 1; one a GPU; of Ray, all)
        gpus: GPUs of the workers of this machine, in turn, such as 0,1.
        ray_address: HOST:PORT of a Ray cluster's head, or 'auto' on one of its nodes. (default:
            $RAY_ADDRESS, else Ray begins on this machine)
        ray: Resources of a job and retries, such as '{num_cpus: 2, num_gpus: 0.5, memory_gb: 8,
            retries: 3}'.
        output: Folder of the results. (default: sweeps/NAME or pipelines/NAME)
        tracking_uri: Address of the MLflow store; without it, that of $MLFLOW_TRACKING_URI, else
            sqlite:///mlflow.db.
        dry_run: Whether to print states, reasons and commands alone, and run nothing.

    Attributes:
        command: Begins messages.
        hint: Ends messages about evaluations that cannot be.
        way_out: Ends messages about a store that cannot be used.
    """

    command: ClassVar[str]
    hint: ClassVar[str]
    way_out: ClassVar[str]
    executor: Literal["local", "slurm", "ray"] = "local"
    workers: Annotated[int, positive] | None = None
    gpus: Annotated[list[str], _names] = field(default_factory=list)
    ray_address: str | None = None
    ray: str = ""
    output: Path | None = None
    tracking_uri: str | None = None
    dry_run: bool = False


def run_experiment(
    experiment: Experiment, choices: Choices, options: RunOptions, argv: Sequence[str] = ()
) -> int:
    """Check, then run, what is to be done; return 0, 1 or 128 + a signal's number.

    Args:
        experiment: Its cells, or its searches with cells in which each end of their axes occurs.
        choices: What to do with failed and changed cells.
        options: Where and how it runs.
        argv: The command's arguments, which MLflow's parent run names.

    Raises:
        LitOffRLError: An option, the data, the store or the ledger cannot be used; nothing was
            begun.
    """
    command, on_slurm = options.command, options.executor == "slurm"
    if options.gpus and options.executor != "local":
        instead = "slurm: {gpus_per_node: 1}" if on_slurm else "ray: {num_gpus: 1}"
        raise ConfigError(f"--gpus is for --executor local: give {instead} instead.")
    cells, studies, output = experiment.cells, experiment.searches, experiment.output
    waiting = [cell for cell in cells if studies or not choices.leave(cell.state())]
    if options.dry_run:
        check_jobs(waiting, options.hint, make=False)
        for study in studies:
            print(f"# {study.describe()}")
        print_plan(cells, choices)
        return 0
    make = options.executor == "local" or (not on_slurm and not studies)
    check_jobs(waiting, options.hint, make=make)
    # Where stdout is no terminal a table cannot move, whatever FORCE_COLOR says in notebooks.
    console = Console() if sys.stdout.isatty() else Console(width=160, force_terminal=False)
    schedule = Schedule(whole=on_slurm)
    board = Board([] if studies else cells, console)
    if waiting:
        if not on_slurm:  # a cluster's nodes may reach what its front cannot
            if experiment.uri is not None:
                require_store(experiment.uri, options.way_out)
        elif str(experiment.uri).startswith(SQLITE):
            why = "many nodes cannot well share a SQLite file: give a server with --tracking_uri."
            print(f"{command}: {why}", file=sys.stderr)
        make_folder(output)
    searches = None
    if studies:
        jobs = options.workers or max(1, len(options.gpus))
        searches = Searches(studies, choices, schedule, board, jobs)
        searches.begin()
    else:
        schedule.add(waiting)
    kind = command.removeprefix("lit-offrl ")
    if waiting and searches is None and experiment.uri is not None:
        begin_parent(experiment, kind, command_line([kind, *argv]))
    listener, code = searches or board, 0
    if schedule.jobs:
        begin = partial(_executor, experiment, choices, listener, options)
        code = follow(schedule, begin, listener, console, command)
    elif searches is None:
        console.print(board.table())
    if searches is None:
        done = _report(experiment, choices, board, console, command)
        end_parent(experiment, [cell.state() for cell in cells], stopped=code > 0)
    else:
        done = searches.finish(console, command)
    return code or int(not done)


def _executor(
    experiment: Experiment, choices: Choices, listener: Listener, options: RunOptions
) -> Executor:
    """Return the executor that the options name.

    Raises:
        LitOffRLError: SLURM, Ray or MLflow cannot be used.
    """
    name, output = experiment.name, experiment.output
    if options.executor == "local":
        workers = options.workers or max(1, len(options.gpus))
        return LocalExecutor(choices, listener, workers=workers, gpus=options.gpus)
    if options.executor == "slurm":
        parameters = {"name": name, **experiment.slurm}
        folder = output / "slurm"
        return SlurmExecutor(
            choices, listener, folder=folder, parameters=parameters, workers=options.workers
        )
    try:
        own = from_yaml(options.ray)
    except ValueError as error:
        raise ConfigError(f"--ray: is no YAML: {error}") from error
    own = FileReader(Path("--ray")).read("ray", RayOptions, own).model_dump(exclude_unset=True)
    ray, transfer = experiment.ray.model_copy(update=own), None
    address = options.ray_address or os.environ.get("RAY_ADDRESS") or None
    if ray.worker_root is not None:
        if experiment.uri is None:
            raise ConfigError("ray.worker_root: files pass through MLflow: leave out --no-mlflow.")
        transfer = open_transfer(experiment.uri, name, output, Path(ray.worker_root))
    return RayExecutor(choices, listener, ray, address, options.workers, transfer)


def _report(
    experiment: Experiment, choices: Choices, board: Board, console: Console, command: str
) -> bool:
    """Print wall times, and what is not done for which reason; return whether all is done."""
    if (times := times_table(experiment.cells)) is not None:
        console.print(times)
    states = [cell.state() for cell in experiment.cells]
    for cell, state in zip(experiment.cells, states, strict=True):
        if state != State.DONE and (why := board.reason(cell)):
            print(f"{command}: {cell.name}: {why}", file=sys.stderr)
    for state, option in ((State.FAILED, "--retry_failed"), (State.CHANGED, "--rerun_changed")):
        if state in states and choices.leave(state):
            line = f"{states.count(state)} {state}: {option} runs them again"
            print(f"{command}: {line}; logs are in {experiment.output}.", file=sys.stderr)
    return all(state == State.DONE for state in states)


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
    from lit_offrl.cli.main import parse_options
    from lit_offrl.commands.evaluate import read_arguments
    from lit_offrl.evaluation.evaluate import environment_of, require_policy_options
    from lit_offrl.modules.checkpoints import module_class

    training = job.training
    own = {name: value for name, value in training.options.items() if name != DATASET}
    key = repr((training.configs, own, [*training.takes]))  # seeds and datasets share it
    if job.is_fit:
        if key not in kinds:
            require_classes(job.config(), "")
            model = parse_options(job.argv("checked", anew=True)).model
            kinds[key] = module_class(model.class_path)
        return
    options, config = job.evaluate_options(), job.config()
    if key in kinds and (once := f"{key} {options}") not in kinds:
        _, kinds[once] = read_arguments(job.argv("checked")[1:])
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
