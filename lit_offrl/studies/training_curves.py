"""The curves of the run that a checkpoint is of, up to its step."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_offrl.errors import ConfigError
from lit_offrl.modules.base import read_checkpoint
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
    saved = read_checkpoint(options.ckpt_path).get("callbacks", {})
    kept = [state["history"] for state in saved.values() if "history" in state]
    history = kept[0] if kept else None
    if not history:
        raise ConfigError(
            f"{options.ckpt_path}: keeps no curves: give one of 'lit-offrl fit' that was written "
            "after its first trainer.log_every_n_steps steps."
        )
    facts = protocol_of(options.ckpt_path, None)
    return Study({"history": history}, {}, facts, options.ckpt_path)  # MLflow has the metrics
