"""``lit-offrl pipeline``: train stages that build on each other's checkpoints, and evaluate."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lit_offrl.commands.parsing import OneLineParser, seed_number
from lit_offrl.common.configs import find_configs, from_yaml
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.files import make_folder
from lit_offrl.common.user_code import command_line
from lit_offrl.jobs.follow import console_of_stdout, follow
from lit_offrl.pipelines.folders import EvaluationFolder, StageFolder, step_folders
from lit_offrl.pipelines.inputs import data_spec
from lit_offrl.pipelines.plan import Pipeline
from lit_offrl.pipelines.reading import PipelineReader, read_pipeline
from lit_offrl.pipelines.steps import State, StepFolder, Where
from lit_offrl.pipelines.table import Board, Runner
from lit_offrl.tracking.store import STORE_HELP, require_store, store_uri


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lit-offrl pipeline",
        description="Train stages one after the other, each an ordinary fit in a process of its"
        " own, and evaluate. What is done for the same inputs is skipped, what was interrupted"
        " goes on, what has changed is run again.",
        epilog="The file: docs/pipelines.md.",
    )
    add = parser.add_argument
    add(
        "--config",
        required=True,
        action="append",
        type=Path,
        metavar="FILE",
        help="the pipeline's file; further ones are laid over it",
    )
    add("--dataset", metavar="NAME", help="instead of the file's: a name or a path")
    add("--seed", type=seed_number, metavar="S", help="of all trainings, instead of the file's")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="wins over the file: STAGE.OPTION of fit, OPTION for all stages, EVALUATION.OPTION or"
        " evaluate.OPTION of evaluate; may be repeated",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a stage or an evaluation, with the stages that it needs; may be repeated",
    )
    add("--output", type=Path, metavar="DIR", help="[pipelines/NAME]")
    add("--tracking_uri", metavar="URI", help=STORE_HELP)
    add(
        "--mlflow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="log every fit and evaluation to MLflow [yes]",
    )
    add("--dry_run", action="store_true", help="print the plan: states, reasons and commands")
    return parser  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run a pipeline; return 0 if all is done, 1 if not, or 128 + a signal's number.

    Raises:
        LitOffRLError: the file, an option or the data cannot be used; nothing was begun.
    """
    options = _parser().parse_args(list(argv))
    pipeline, seed = _read(options), options.seed
    seed = pipeline.seed if seed is None else seed
    output = (options.output or Path("pipelines") / pipeline.name).resolve()
    uri = store_uri(options.tracking_uri) if options.mlflow else None
    where = Where(pipeline.name, uri, {"lit_offrl.pipeline": pipeline.name}, seed)
    steps = step_folders(pipeline, output / f"seed{seed}", where)
    waiting = [step for step in steps if step.state() != State.DONE]
    if options.dry_run:
        check_options(waiting)
        _print_plan(steps)
        return 0
    stages = [step for step in waiting if isinstance(step, StageFolder)]
    for stage in stages:
        stage.require_data()
    check_options(waiting)
    check_environments(waiting)
    if waiting and uri is not None:
        require_store(uri, "give another --tracking_uri, or --no-mlflow.")
    make_folder(output)
    console = console_of_stdout()
    board = Board(steps, console)
    code = 0
    if waiting:
        code = follow(partial(Runner, steps, board), board, console, "lit-offrl pipeline")
    else:
        console.print(board.table())
    for name, why in board.reasons.items():
        print(f"lit-offrl pipeline: {name}: {why}", file=sys.stderr)
    print(f"pipeline: {output / f'seed{seed}'}")
    return code or int(any(step.state() != State.DONE for step in steps))


def _read(options: argparse.Namespace) -> Pipeline:
    given: dict[str, Any] = {}
    if options.dataset is not None:
        given["data.init_args.dataset"] = options.dataset
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: give KEY=VALUE, such as stage1.trainer.max_steps=10.")
        try:
            given[key] = from_yaml(value)
        except ValueError as error:
            raise ConfigError(f"--set {text}: '{value}' is no YAML.") from error
    files = [path for each in options.config for path in find_configs(each)]
    pipeline = read_pipeline(files)
    return pipeline.override(given, PipelineReader(Path("--set")), "").only(options.only)


def check_options(steps: Sequence[StepFolder]) -> None:
    """Parse every step's options as it will, so that a mistake in the last one costs no hours.

    Raises:
        ConfigError: of the first step whose options or checkpoints would be refused.
    """
    if not steps:
        return
    from lit_offrl.cli.layer import require_classes
    from lit_offrl.cli.main import require_options  # brings torch and Lightning: seconds
    from lit_offrl.commands.evaluate import require_arguments
    from lit_offrl.evaluation.evaluate import require_policy_options
    from lit_offrl.modules.base import OfflineModule
    from lit_offrl.modules.checkpoints import read_checkpoint

    kinds: dict[str, type[OfflineModule]] = {}
    for step in steps:
        for source in step.sources:
            assert isinstance(source, StageFolder)
            if source.state() == State.DONE and not source.is_as_it_ended():
                try:
                    read_checkpoint(source.checkpoint)
                except ConfigError as error:
                    raise ConfigError(
                        f"{source.name}: {error} Delete it to train the stage again."
                    ) from error
        words = step.words("checked", anew=step.state() == State.CHANGED)
        try:
            if isinstance(step, StageFolder):
                require_classes(step.config(), "")
                kinds[step.name] = require_options(words)
            elif kind := kinds.get(step.sources[0].name):  # else it begins at once
                require_policy_options(kind, require_arguments(words[1:]))
        except (ConfigError, EvaluationError) as error:
            raise ConfigError(f"{step.name}: {error}") from error


def check_environments(steps: Sequence[StepFolder]) -> None:
    """See that what is trained can be rolled out, before the first stage begins.

    Raises:
        ConfigError: of the first evaluation that would be refused.
    """
    for step in steps:
        if not isinstance(step, EvaluationFolder) or step.source.state() == State.DONE:
            continue  # of what is trained the evaluation begins at once, and says so itself
        from lit_offrl.evaluation.evaluate import environment_of  # brings torch

        spec, options = data_spec(step.source.config()), step.evaluate_options()
        if spec is None:
            continue
        try:
            environment_of(spec, options.get("env"), options.get("max_episode_steps"))
        except (ConfigError, EvaluationError) as error:
            raise ConfigError(
                f"{step.name}: {error} Options of evaluate stand under 'evaluate:' of the"
                " pipeline's file, such as {env: ID}; 'evaluations: {}' trains alone."
            ) from error


def _print_plan(steps: Sequence[StepFolder]) -> None:
    anew: set[str] = set()
    for step in steps:
        state, stored = step.state(), step.stored()
        source = next((each.name for each in step.sources if each.name in anew), None)
        if state == State.DONE:
            words = "done"
        elif state == State.CHANGED and source is None:
            words = f"runs again, since {step.change()}"
        elif state == State.CHANGED:
            words = f"runs again after {source}"
        elif state == State.CUT:
            words = f"interrupted at {step.steps() or 'its beginning'}, goes on"
        else:
            words = str(state)
        if state != State.DONE:
            anew.add(step.name)
        print(f"# {step.name}: {words}")
        command = step.words(stored["id"] if stored else "ID", anew=state == State.CHANGED)
        print(command_line(command))
