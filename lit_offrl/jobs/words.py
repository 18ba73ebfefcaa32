"""The words of the commands that jobs run, after the program's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_offrl.jobs.plain import yaml_text


def fit_words(
    configs: Sequence[Path],
    options: Mapping[str, Any],
    *,
    seed: int,
    run: Path,
    resume: Path | None,
    logger: Mapping[str, str] | None,
) -> list[str]:
    """Return the words of a training.

    Args:
        configs: files, later ones win.
        options: win over files.
        seed: of everything.
        run: the run's folder.
        resume: a checkpoint to go on from, if any.
        logger: arguments of ``MLflowRun``; None to log nothing.
    """
    words = ["fit"]
    if resume is not None:
        words += ["--ckpt_path", str(resume)]
    for path in configs:
        words += ["--config", str(path)]
    for name, value in options.items():
        words += [f"--{name}", yaml_text(value)]
    words += ["--seed_everything", str(seed)]
    if logger is None:
        words += ["--trainer.logger", "false"]
    else:
        words += ["--trainer.logger", "lit_offrl.callbacks.MLflowRun"]
        for name, text in logger.items():
            words += [f"--trainer.logger.init_args.{name}", text]
    return [*words, "--checkpoint.dirpath", str(run)]


def evaluate_words(
    checkpoint: Path,
    output: Path,
    options: Mapping[str, Any],
    *,
    tracking_uri: str | None,
    run_name: str | None = None,
    run_tags: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the words of an evaluation.

    Args:
        checkpoint: what is evaluated.
        output: of the record.
        options: of evaluate.
        tracking_uri: MLflow's store, that it has to be logged to; None logs nothing.
        run_name: of an MLflow run of its own; None logs to the checkpoint's run.
        run_tags: of that run.
    """
    words = ["evaluate", "--ckpt_path", str(checkpoint), "--output", str(output)]
    for name, value in options.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    if tracking_uri is None:
        return [*words, "--no-mlflow"]
    if run_name is not None:
        words += ["--run_name", run_name, "--run_tags", json.dumps(run_tags or {})]
    return [*words, "--tracking_uri", tracking_uri, "--mlflow"]
