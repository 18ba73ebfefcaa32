"""``lit-offrl ope``: value candidate policies from logged data, and say which is the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lit_offrl.commands.options import parse
from lit_offrl.commands.parsing import discount, seed_number
from lit_offrl.common.device import CPU, device
from lit_offrl.common.ranges import require_fields
from lit_offrl.common.user_code import command_line
from lit_offrl.studies.fqe_settings import FQESettings
from lit_offrl.tracking.references import Checkpoint
from lit_offrl.tracking.store import redacted


@dataclass(frozen=True, kw_only=True)
class OPEOptions:
    """Off-policy evaluation from logged data alone; no simulator is needed.

    Of any checkpoint: fitted Q evaluation (FQE) of its policy, in the first states of held-out
    episodes, beside what the data's own policy earned. Of a DVFModule that held policies out, or
    with --policies: DVF's values of those policies are compared with FQE on the same data.

    Args:
        ckpt_path: Checkpoint of any method: a path, runs:/ID, models:/NAME@ALIAS or hub:ORG/NAME.
        against: Further checkpoints, which FQE values on the same data.
        gamma: Discount in [0, 1] of FQE's values. (default: the first checkpoint's, or 0.99)
        data: Logged data. (default: those of its training)
        policies: Candidates of a DVFModule: values of φ, that is of the column 'policy' (2,5,8),
            whose logged actions are cloned, or checkpoints that act there (2=walker.ckpt,5).
            (default: the policies that it held out)
        baseline: Baseline to compare DVF with.
        fqe_steps: Number of FQE's optimiser steps, at least 1.
        starts: Number of initial states, at least 1.
        samples: Number of samples of ρ for each initial state, at least 1.
        truth: Source of the true returns of checkpoints: none (data), or roll-outs. The true
            returns of logged policies are those of their episodes.
        episodes: Number of episodes of each roll-out, at least 1.
        seed: Seed of clones, networks and noise.
        device: Device, such as cpu, cuda or cuda:1.
        output: Folder of the results. (default: ope/RUN-CHECKPOINT-seedSEED)
        tracking_uri: Address of the MLflow store; without it, that of $MLFLOW_TRACKING_URI, else
            sqlite:///mlflow.db.
        mlflow: Whether to log to the MLflow run that the checkpoint came from.
    """

    ckpt_path: Checkpoint
    against: list[Checkpoint] = field(default_factory=list)
    gamma: Annotated[float | None, discount] = None
    data: str | None = None
    policies: str | None = None
    baseline: Literal["fqe", "none"] = "fqe"
    fqe_steps: int = FQESettings.steps
    starts: Annotated[int, "[1, inf)"] = 100
    samples: Annotated[int, "[1, inf)"] = 128
    truth: Literal["data", "rollouts"] = "data"
    episodes: Annotated[int, "[1, inf)"] = 100
    seed: Annotated[int, seed_number] = 0
    device: Annotated[str, device] = CPU
    output: Path | None = None
    tracking_uri: str | None = None
    mlflow: bool = True

    def __post_init__(self) -> None:
        require_fields(self)


def main(argv: Sequence[str]) -> int:
    """Value the candidates, print a table, write record and figure; return 0."""
    options = parse(OPEOptions, argv, "ope")
    from lit_offrl.commands.ope_values import value  # torch and Lightning: seconds

    return value(options, redacted(command_line(["ope", *argv])))
