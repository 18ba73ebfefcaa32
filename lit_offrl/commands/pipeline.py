"""``lit-offrl pipeline``: train stages that build on each other's checkpoints, and evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from lit_offrl.commands.experiments import RunOptions, run_experiment
from lit_offrl.commands.options import parse
from lit_offrl.commands.parsing import seed_number
from lit_offrl.common.configs import find_configs, from_yaml
from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.config import FileReader
from lit_offrl.experiments.inputs import require_data
from lit_offrl.experiments.job import Cell, Parent, State, Tracking
from lit_offrl.experiments.pipeline import DATASET, Pipeline, read_pipeline
from lit_offrl.experiments.run import Choices
from lit_offrl.experiments.sweep import Experiment
from lit_offrl.tracking.store import store_uri


@dataclass(frozen=True, kw_only=True)
class PipelineOptions(RunOptions):
    """Train stages one after the other, each a fit in a process of its own, and evaluate.

    Stages that are finished for the same inputs are skipped, interrupted ones are resumed, and
    changed ones are run again.

    Args:
        config: The pipeline's file; further ones are laid over it.
        dataset: A dataset's name or path, instead of the file's.
        seed: Seed of all trainings, instead of the file's.
        set: An option that wins over the file, KEY=VALUE: STAGE.OPTION of fit, OPTION for all
            stages, EVALUATION.OPTION or evaluate.OPTION of evaluate; may be repeated.
        only: A stage or an evaluation, with the stages that it needs; may be repeated.
        mlflow: Whether to log every fit and evaluation to MLflow.
    """

    command = "lit-offrl pipeline"
    hint = (
        "Options of evaluate stand under 'evaluate:' of the pipeline's file, such as {env: ID};"
        " 'evaluations: {}' trains alone."
    )
    way_out = "give another --tracking_uri, or --no-mlflow."
    executor: Literal["local", "ray"] = "local"
    config: Annotated[list[str], "append"]
    dataset: str | None = None
    seed: Annotated[int, seed_number] | None = None
    set: Annotated[list[str], "append"] = field(default_factory=list)
    only: Annotated[list[str], "append"] = field(default_factory=list)
    mlflow: bool = True


def main(argv: Sequence[str]) -> int:
    """Run a pipeline; return 0 if all is done, 1 if not, or 128 + a signal's number.

    Raises:
        LitOffRLError: The file, an option or the data cannot be used; nothing was begun.
    """
    options = parse(PipelineOptions, argv, "pipeline", "The file: `lit-offrl docs pipelines`.")
    pipeline = _read(options)
    seed = pipeline.seed if options.seed is None else options.seed
    output = (options.output or Path("pipelines") / pipeline.name).resolve()
    uri = store_uri(options.tracking_uri) if options.mlflow else None
    parent, tags = Parent(), {"lit_offrl.pipeline": pipeline.name}
    tracking = Tracking(uri, pipeline.name, tags=tags, parent=parent)
    jobs = pipeline.jobs(output / f"seed{seed}", tracking, seed)
    cells = [Cell(job.name, {"step": job.name, "seed": str(seed)}, (job,)) for job in jobs]
    for job in jobs:
        if job.is_fit and not options.dry_run and job.state() != State.DONE:
            require_data(job.config())
    experiment = Experiment(pipeline.name, output, uri, tuple(cells), parent=parent)
    choices = Choices(retry_failed=True, rerun_changed=True)
    code = run_experiment(experiment, choices, options, argv)
    if not options.dry_run:
        print(f"pipeline: {output / f'seed{seed}'}")
    return code


def _read(options: PipelineOptions) -> Pipeline:
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
