"""``lit-offrl sweep``: train and evaluate a grid of methods, datasets and seeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lit_offrl.commands.parsing import OneLineParser, positive
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.files import make_folder
from lit_offrl.common.user_code import command_line
from lit_offrl.jobs.follow import Executor, console_of_stdout, follow
from lit_offrl.pipelines.inputs import data_spec
from lit_offrl.sweeps.cell import CellFolder, State
from lit_offrl.sweeps.grid import Sweep, read_sweep
from lit_offrl.sweeps.local import LocalExecutor
from lit_offrl.sweeps.reading import DATASET
from lit_offrl.sweeps.slurm import SlurmExecutor
from lit_offrl.sweeps.staged import cell_folder
from lit_offrl.sweeps.table import Board, times_table
from lit_offrl.sweeps.work import Choices
from lit_offrl.tracking.store import SQLITE, STORE_HELP, require_store, store_uri


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lit-offrl sweep",
        description="Train and evaluate a grid of methods × datasets × seeds, each cell in"
        " processes of its own. Finished cells are skipped, interrupted ones go on.",
        epilog="The file and SLURM: docs/sweeps.md.",
    )
    add = parser.add_argument
    add("--config", required=True, type=Path, metavar="FILE", help="the sweep's file")
    add(
        "--only",
        action="append",
        default=[],
        metavar="KEY=PATTERN",
        help="a part of the grid: method=dvf, dataset='hopper*', gamma=0.9; may be repeated",
    )
    add("--workers", type=positive, metavar="N", help="cells at a time [1, or one a GPU]")
    add("--gpus", type=_words, default=[], metavar="0,1,…", help="GPUs of the workers, in turn")
    add("--executor", choices=("local", "slurm"), default="local", help="[local]")
    add("--output", type=Path, metavar="DIR", help="[sweeps/NAME]")
    add("--tracking_uri", metavar="URI", help=STORE_HELP)
    add("--dry_run", action="store_true", help="print the cells and their commands")
    add("--retry_failed", action="store_true", help="try failed cells again")
    add(
        "--rerun_changed",
        action="store_true",
        help="begin anew the cells that the file defines otherwise now; what they were is kept"
        " aside",
    )
    return parser  # fmt: skip


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ValueError
    return words


_words.__name__ = "list such as 0,1"  # argparse names the type in its message


def main(argv: Sequence[str]) -> int:
    """Run a sweep; return 0 if all cells are done, 1 if not, or 128 + a signal's number.

    Raises:
        LitOffRLError: the file or an option cannot be used; nothing was begun.
    """
    options = _parser().parse_args(argv)
    sweep = read_sweep(options.config, options.only)
    output = (options.output or Path("sweeps") / sweep.name).resolve()
    uri = store_uri(options.tracking_uri)
    folders = [cell_folder(cell, sweep, output, uri) for cell in sweep.cells]
    choices = Choices(options.retry_failed, options.rerun_changed)
    waiting = [folder for folder in folders if not choices.leaves_alone(folder.state())]
    if options.dry_run:
        check_options(waiting)
        check_environments(waiting, local=False)
        _print_commands(folders)
        return 0
    if options.gpus and options.executor == "slurm":
        raise ConfigError("--gpus is for --executor local: give slurm: {gpus_per_node: 1} instead.")
    if options.executor == "slurm" and uri.startswith(SQLITE):
        print(
            "lit-offrl sweep: many nodes cannot well share a SQLite file: give a server with"
            " --tracking_uri.",
            file=sys.stderr,
        )
    console = console_of_stdout()
    board = Board(folders, console)
    code = 0
    if waiting:
        check_options(waiting)
        check_environments(waiting, local=options.executor == "local")
        if options.executor == "local":  # a cluster's nodes may reach what its front cannot
            require_store(uri, "give another --tracking_uri.")
        make_folder(output)
        begin = partial(_executor, options, sweep, waiting, choices, board, output)
        code = follow(begin, board, console, "lit-offrl sweep")
    else:
        console.print(board.table())
    if (times := times_table(folders)) is not None:
        console.print(times)
    states = [folder.state() for folder in folders]
    for folder, state in zip(folders, states, strict=True):
        why = board.reasons.get(folder.cell.name)
        if why is not None and state != State.DONE:  # as it may be by another process, since
            print(f"lit-offrl sweep: {folder.cell.name}: {why}", file=sys.stderr)
    for state, option in ((State.FAILED, "--retry_failed"), (State.CHANGED, "--rerun_changed")):
        if state in states:
            line = f"{states.count(state)} {state}: {option} runs them again"
            print(f"lit-offrl sweep: {line}; logs are in {output}.", file=sys.stderr)
    return code or int(any(state != State.DONE for state in states))


def check_options(folders: Sequence[CellFolder]) -> None:
    """Parse every method's options as fit will, so that a mistake in the last one costs no hours.

    Raises:
        ConfigError: of the first cell that fit would refuse.
    """
    checked: set[str] = set()
    for folder in folders:
        cell = folder.cell
        own = {name: value for name, value in cell.options.items() if name != DATASET}
        key = repr((cell.labels["method"], cell.configs, own))  # seeds and datasets share it
        if key in checked or folder.state() == State.TRAINED:
            continue
        checked.add(key)
        from lit_offrl.cli.layer import require_classes
        from lit_offrl.cli.main import require_options  # brings torch and Lightning: seconds
        from lit_offrl.commands.evaluate import require_arguments
        from lit_offrl.evaluation.evaluate import require_policy_options

        try:
            for config in folder.configs():
                require_classes(config, "")
            kinds = [require_options(words) for words in folder.trainings()]
            is_evaluated = folder.evaluate is not None
            if is_evaluated and kinds and not folder.checkpoint.is_file():  # the last one's
                given = require_arguments(folder.evaluation("checked")[1:])
                require_policy_options(kinds[-1], given)
        except (ConfigError, EvaluationError) as error:
            raise ConfigError(f"{cell.name}: {error}") from error


def check_environments(folders: Sequence[CellFolder], *, local: bool) -> None:
    """See that every dataset's policies can be rolled out, before the first one is trained.

    Args:
        folders: of cells that are to be worked on.
        local: whether the environments are to be found on this machine.

    Raises:
        ConfigError: of the first cell whose evaluation would be refused.
    """
    from lit_offrl.evaluation.evaluate import environment_of  # brings torch

    checked: set[str] = set()
    for folder in folders:
        if folder.evaluate is None or folder.state() == State.TRAINED:
            continue
        config, options = folder.config(), folder.evaluate_options()
        key = repr((config.get("data"), options))
        if key in checked:
            continue
        checked.add(key)
        spec, env_id = data_spec(config), options.get("env")
        if spec is None:
            continue
        try:
            environment_of(spec, env_id, options.get("max_episode_steps"), make=local)
        except (ConfigError, EvaluationError) as error:
            raise ConfigError(
                f"{folder.cell.name}: {error} Options of evaluate stand under 'evaluate:' of the"
                " sweep's file, such as {env: ID}; 'evaluate: false' trains alone, for runs that"
                " are compared by offline metrics (compare --metric, ope)."
            ) from error


def _executor(
    options: argparse.Namespace,
    sweep: Sweep,
    folders: Sequence[CellFolder],
    choices: Choices,
    board: Board,
    output: Path,
) -> Executor:
    if options.executor == "slurm":
        return SlurmExecutor(
            folders,
            choices,
            board,
            output=output,
            name=sweep.name,
            parameters=sweep.slurm,
            workers=options.workers,
        )
    workers = options.workers or max(1, len(options.gpus))
    return LocalExecutor(folders, choices, board, workers=workers, gpus=options.gpus)


def _print_commands(folders: Sequence[CellFolder]) -> None:
    printed: set[str] = set()
    for folder in folders:
        stored = folder.stored()
        print(f"# {folder.cell.name}: {folder.state()}")
        for words in folder.commands(stored["id"] if stored else "ID"):
            line = command_line(words)
            if line not in printed:  # stages that several methods share
                print(line)
            printed.add(line)
