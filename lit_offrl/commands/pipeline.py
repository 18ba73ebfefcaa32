"""``lit-offrl pipeline``: train stages that build on each other's checkpoints, and evaluate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_offrl.commands.experiments import add_options, run_experiment
from lit_offrl.commands.parsing import OneLineParser, seed_number
from lit_offrl.common.configs import find_configs, from_yaml
from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.config import FileReader
from lit_offrl.experiments.inputs import require_data
from lit_offrl.experiments.job import Cell, State, Tracking
from lit_offrl.experiments.pipeline import DATASET, Pipeline, read_pipeline
from lit_offrl.experiments.run import Choices
from lit_offrl.experiments.sweep import Experiment
from lit_offrl.tracking.store import store_uri

_HINT = (
    "Options of evaluate stand under 'evaluate:' of the pipeline's file, such as {env: ID};"
    " 'evaluations: {}' trains alone."
)


def _parser() -> OneLineParser:
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
        help="The pipeline's file; further ones are laid over it.",
    )
    add("--dataset", metavar="NAME", help="A dataset's name or path, instead of the file's.")
    add("--seed", type=seed_number, metavar="S", help="All trainings' seed, instead of the file's.")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="An option that wins over the file: STAGE.OPTION of fit, OPTION for all stages,"
        " EVALUATION.OPTION or evaluate.OPTION of evaluate; may be repeated.",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="A stage or an evaluation, with the stages that it needs; may be repeated.",
    )
    add(
        "--mlflow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Log every fit and evaluation to MLflow [yes].",
    )
    add_options(parser, "pipelines/NAME", ("local", "ray"))
    return parser


def main(argv: Sequence[str]) -> int:
    """Run a pipeline; return 0 if all is done, 1 if not, or 128 + a signal's number.

    Raises:
        LitOffRLError: The file, an option or the data cannot be used; nothing was begun.
    """
    options = _parser().parse_args(list(argv))
    pipeline = _read(options)
    seed = pipeline.seed if options.seed is None else options.seed
    output = (options.output or Path("pipelines") / pipeline.name).resolve()
    uri = store_uri(options.tracking_uri) if options.mlflow else None
    tracking = Tracking(uri, pipeline.name, tags={"lit_offrl.pipeline": pipeline.name})
    jobs = pipeline.jobs(output / f"seed{seed}", tracking, seed)
    cells = [Cell(job.name, {"step": job.name, "seed": str(seed)}, (job,)) for job in jobs]
    for job in jobs:
        if job.is_fit and not options.dry_run and job.state() != State.DONE:
            require_data(job.config())
    experiment = Experiment(pipeline.name, output, uri, tuple(cells))
    choices = Choices(retry_failed=True, rerun_changed=True)
    way_out = "give another --tracking_uri, or --no-mlflow."
    code = run_experiment(experiment, choices, options, _HINT, way_out)
    if not options.dry_run:
        print(f"pipeline: {output / f'seed{seed}'}")
    return code


def _read(options: argparse.Namespace) -> Pipeline:
    given: dict[str, Any] = {}
    if options.dataset is not None:
        given[DATASET] = options.dataset
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: give KEY=VALUE, such as stage1.trainer.max_steps=10.")
        try:
            given[key] = from_yaml(value)
        except ValueError as error:
            raise ConfigError(f"--set {text}: '{value}' is no YAML.") from error
    reader = FileReader(Path("--set"), "the pipeline")
    files = [path for each in options.config for path in find_configs(each)]
    return read_pipeline(files).override(given, reader).only(options.only)
