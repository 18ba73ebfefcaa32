"""``lit-offrl ope``: value candidate policies from logged data, and say which is the best."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from rich.console import Console

from lit_offrl.cli.layer import data_part
from lit_offrl.commands.ope_checkpoints import value_checkpoints
from lit_offrl.commands.options import add_options, make
from lit_offrl.commands.parsing import OneLineParser, discount, seed_number
from lit_offrl.common.device import CPU, device
from lit_offrl.common.errors import ConfigError, LitOffRLError, reason
from lit_offrl.common.files import file_sha256, make_folder
from lit_offrl.common.named_classes import class_named
from lit_offrl.common.user_code import command_line
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.figures import estimates_against_truth, save_figure
from lit_offrl.modules import DVFModule, load_module
from lit_offrl.modules.checkpoints import config_of, mlflow_origin, read_checkpoint
from lit_offrl.studies import ope
from lit_offrl.studies.candidates import make_candidates, parse_policies
from lit_offrl.studies.fqe import FQESettings
from lit_offrl.studies.ope_record import CandidateValue, OPERecord, number, summarise
from lit_offrl.studies.ope_truth import true_returns
from lit_offrl.tracking.results import log_to_origin
from lit_offrl.tracking.store import redacted


def main(argv: Sequence[str]) -> int:
    """Value the candidates, print a table, write record and figure; return 0.

    Raises:
        LitOffRLError: an option, the checkpoint or the data cannot be used.
    """
    options = make(OPEOptions, _parser().parse_args(argv))
    checkpoint = read_checkpoint(options.ckpt_path)
    module = load_module(options.ckpt_path, options.device)
    data = _data(checkpoint, options.ckpt_path, options.data)
    named: list[tuple[float, Path | None]] = [(value, None) for value in data.hold_out_policies]
    if options.policies is not None:
        named = parse_policies(options.policies)
    folder = options.output or Path("ope") / _name(options)
    if not isinstance(module, DVFModule) or not named or options.against:
        return value_checkpoints(options, module, data, folder, argv)
    make_folder(folder)
    data.setup("fit")
    record = _evaluate(options, module, data, named, argv)
    console = Console()
    console.print(record.table())
    for line in record.lines():
        console.print(line, highlight=False, soft_wrap=True)
    files = _write(record, folder)
    for kind, path in files.items():
        print(f"{kind}: {path}")
    if options.mlflow:
        metrics = {f"ope/{name}": value for name, value in record.metrics().items()}
        origin, uri = mlflow_origin(options.ckpt_path), options.tracking_uri
        log_to_origin(origin, "ope", metrics, [*files.values()], tracking_uri=uri)
    return 0


@dataclass(frozen=True, kw_only=True)
class OPEOptions:
    """Options of the command.

    Args:
        ckpt_path: Checkpoint of any method.
        against: Further checkpoints, which FQE values on the same data.
        gamma: Discount in [0, 1] of FQE's values. (default: the first checkpoint's, or 0.99)
        data: Logged data. (default: those of its training)
        policies: Candidates of a DVFModule: values of φ, that is of the column 'policy' (2,5,8),
            whose logged actions are cloned, or checkpoints that act there (2=walker.ckpt,5).
            (default: the policies that it held out)
        baseline: Baseline beside DVF.
        fqe_steps: Number of FQE's optimiser steps, at least 1.
        starts: Number of initial states, at least 1.
        samples: Number of samples of ρ for each initial state, at least 1.
        truth: Where the true returns of checkpoints come from: nowhere (data), or roll-outs. Logged
            policies have those of their episodes.
        episodes: Number of episodes of each roll-out, at least 1.
        seed: Seed of clones, networks and noise.
        device: Device, such as cpu, cuda or cuda:1.
        output: Folder of the results. (default: ope/RUN-CHECKPOINT-seedSEED)
        tracking_uri: Address of the MLflow store; without it, that of $MLFLOW_TRACKING_URI, else
            sqlite:///mlflow.db.
        mlflow: Whether to log to the MLflow run that the checkpoint came from.
    """

    ckpt_path: Path
    against: list[Path] = field(default_factory=list)
    gamma: Annotated[float | None, discount] = None
    data: str | None = None
    policies: str | None = None
    baseline: Literal["fqe", "none"] = "fqe"
    fqe_steps: int = FQESettings.steps
    starts: int = 100
    samples: int = 128
    truth: Literal["data", "rollouts"] = "data"
    episodes: int = 100
    seed: Annotated[int, seed_number] = 0
    device: Annotated[torch.device, device] = CPU
    output: Path | None = None
    tracking_uri: str | None = None
    mlflow: bool = True


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="lit-offrl ope",
        description="Off-policy evaluation from logged data alone; no simulator is needed. Of any"
        " checkpoint: fitted Q evaluation (FQE) of its policy, in the first states of held-out"
        " episodes, beside what the data's own policy earned. Of a DVFModule that held policies"
        " out, or with --policies: DVF's values of those, beside FQE on the same data.",
    )
    add_options(parser, OPEOptions)
    return parser


def _data(checkpoint: Mapping[str, Any], path: Path, dataset: str | None) -> OfflineDataModule:
    """Return the data as the run saw them: same reward handling, split and policies held out."""
    kind: type[OfflineDataModule] = OfflineDataModule
    options: dict[str, Any] = {}
    config = config_of(checkpoint, path)
    if "data" in config:
        part, _ = data_part(config, path)
        kind = class_named(part["class_path"], OfflineDataModule, f"{path}: data")
        options = {k: v for k, v in part["init_args"].items() if k != "view"}
        options["seed"] = config.get("seed_everything") or 0
    if dataset is not None:
        options["dataset"] = dataset
    if "dataset" not in options:
        raise ConfigError("The checkpoint does not say which data it is of: name them with --data.")
    try:
        return kind(**options)
    except LitOffRLError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path}: its data's options do not fit {kind.__name__} of this version: "
            f"{reason(error)}"
        ) from error


def _evaluate(
    options: OPEOptions,
    module: DVFModule,
    data: OfflineDataModule,
    named: Sequence[tuple[float, Path | None]],
    argv: Sequence[str],
) -> OPERecord:
    for name in ("starts", "samples", "episodes"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}: give at least 1.")
    settings = FQESettings(steps=options.fqe_steps) if options.baseline == "fqe" else None
    dataset, train_set, seed = data.dataset, data.train_set, options.seed
    assert dataset is not None and train_set is not None  # setup has read them
    rewards = getattr(data, "rewards", "as_recorded")
    if options.truth == "rollouts" and rewards != "as_recorded":
        raise ConfigError(
            f"--truth rollouts earn the environment's rewards, but DVF was trained with rewards "
            f"'{rewards}': leave it at data."
        )
    for column in ("policy", "actions", "rewards"):
        dataset.column(column)
    ope.require_evaluable(module, named)
    candidates = make_candidates(named, dataset, module, seed=seed)
    starts = ope.initial_states(module, dataset, candidates, most=options.starts, seed=seed)
    truth = true_returns(
        module, dataset, candidates, truth=options.truth, episodes=options.episodes, seed=seed
    )
    shown = sys.stderr.isatty()
    found = {"dvf": ope.dvf_values(module, candidates, starts, samples=options.samples, seed=seed)}
    trace = None
    if settings is not None:
        found["fqe"], trace = ope.fqe_values(
            module, train_set, candidates, starts, settings=settings, seed=seed, progress=shown
        )
    seen = np.isin(
        np.array([one.policy for one in candidates], np.float32), train_set.columns["policy"]
    )
    values = []
    for row, one in enumerate(candidates):
        estimates: dict[str, Any] = {name: number(each.values[row]) for name, each in found.items()}
        estimates |= {f"{name}_error": number(each.errors[row]) for name, each in found.items()}
        values.append(
            CandidateValue(
                label=one.label,
                policy=one.policy,
                checkpoint=None if one.checkpoint is None else str(one.checkpoint),
                checkpoint_sha256=None if one.checkpoint is None else file_sha256(one.checkpoint),
                seen_in_training=bool(seen[row]),
                truth=number(truth.values[row]),
                truth_error=number(truth.errors[row]),
                truth_episodes=int(truth.episodes[row]),
                **estimates,
            )
        )
    return OPERecord(
        candidates=tuple(values),
        summary=summarise(
            truth.values,
            {name: each.values for name, each in found.items()},
            {name: each.seconds for name, each in found.items()},
        ),
        gamma=module.gamma,
        dataset=dataset.spec.name,
        dataset_sha256=dataset.spec.sha256,
        dataset_handling=dataset.spec.handling,
        trained_on_sha256=module.spec.sha256 if module.spec is not None else None,
        checkpoint=str(options.ckpt_path),
        checkpoint_sha256=file_sha256(options.ckpt_path),
        policy_representation=module.policy_representation,
        initial_states=starts.observations.shape[1],
        num_samples=options.samples,
        sampler=f"{module.hparams['sampler']}, {module.hparams['sampling_steps']} steps",
        truth_source=options.truth,
        truth_cut_weight=truth.unseen,
        fqe=None if settings is None else vars(settings),
        fqe_trace=None if trace is None else trace.tolist(),
        seed=seed,
        command=redacted(command_line(["ope", *argv])),
    )


def _name(options: OPEOptions) -> str:
    path = options.ckpt_path.resolve()
    return f"{path.parent.name}-{path.stem}-seed{options.seed}"


def _write(record: OPERecord, folder: Path) -> dict[str, Path]:
    """Write record and figure into a folder."""
    files = {"record": record.save(folder / "ope.json"), "figure": folder / "ope.png"}

    def column(name: str) -> np.ndarray:
        return np.array([getattr(one, name) for one in record.candidates], np.float64)

    figure = estimates_against_truth(
        [one.label for one in record.candidates],
        column("truth"),
        column("truth_error"),
        {name.upper(): column(name) for name in record.estimators()},
        record.gamma,
    )
    save_figure(figure, files["figure"])
    return files
