"""The curves of the run that a checkpoint is of, up to its step."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.evaluation.record import CURVES, EvaluationRecord, present_names
from lit_offrl.modules.checkpoints import history_of, read_checkpoint
from lit_offrl.studies.inputs import Study, protocol_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument(
        "--ckpt_path", required=True, type=Path, metavar="FILE", help="any checkpoint of 'fit'"
    )


def run(options: argparse.Namespace) -> Study:
    """Take the metrics that the checkpoint keeps.

    Raises:
        ConfigError: it keeps none.
    """
    history = present_names(history_of(read_checkpoint(options.ckpt_path)))
    if not history:
        raise ConfigError(
            f"{options.ckpt_path}: keeps no curves: give one of 'lit-offrl fit' that was written "
            "after its first trainer.log_every_n_steps steps."
        )
    facts = protocol_of(options.ckpt_path, None)
    for name, point in _last_evaluation(options.ckpt_path, facts["checkpoint_sha256"]).items():
        history[name] = [*history.get(name, []), point]
    return Study({"history": history}, {}, facts, options.ckpt_path)  # MLflow has the metrics


def _last_evaluation(checkpoint: Path, sha256: str) -> dict[str, list[float]]:
    """Return [step, value] by metric of the evaluation that ended the fit, where it is kept.

    It is of the last checkpoint, which therefore does not have it among its own metrics.
    """
    try:
        record = EvaluationRecord.load(checkpoint.with_name("evaluation.json"))
    except EvaluationError:
        return {}
    if record.checkpoint_sha256 != sha256 or record.training_steps is None:
        return {}
    metrics = record.metrics()
    return {name: [record.training_steps, metrics[name]] for name in CURVES if name in metrics}
