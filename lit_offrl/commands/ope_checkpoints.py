"""The part of ``lit-offrl ope`` that values checkpoints of any method by fitted Q evaluation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from lit_offrl.callbacks.best import checkpoint_rule
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256, make_folder
from lit_offrl.common.user_code import command_line
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.checkpoints import load_module, mlflow_origin, read_checkpoint
from lit_offrl.studies.fqe import FQESettings
from lit_offrl.studies.ope_truth import discounted_returns
from lit_offrl.studies.policy_values import (
    PolicyValue,
    PolicyValuesRecord,
    Value,
    acting,
    first_states,
    fitted_values,
)
from lit_offrl.tracking.results import log_to_origin
from lit_offrl.tracking.store import redacted

if TYPE_CHECKING:
    from lit_offrl.commands.ope import OPEOptions

_GAMMA = 0.99
_OF_DVF = {"policies": None, "baseline": "fqe", "truth": "data"}


def value_checkpoints(
    options: OPEOptions,
    first: OfflineModule,
    data: OfflineDataModule,
    folder: Path,
    argv: Sequence[str],
) -> int:
    """Value checkpoints, print a table, write the record, and return 0.

    Args:
        options: of the command.
        first: the module of ``options.ckpt_path``.
        data: those that it was trained on, or that were named; not read yet.
        folder: for the record.
        argv: the command's words.

    Raises:
        LitOffRLError: an option, a checkpoint or the data cannot be used.
    """
    for name, usual in _OF_DVF.items():
        if getattr(options, name) != usual:
            raise ConfigError(
                f"--{name} goes with DVF's values of other policies: give a DVFModule's checkpoint"
                " alone, with --policies or with policies that its run held out; or leave it out."
            )
    if options.starts < 1:
        raise ConfigError(f"--starts is {options.starts}: give at least 1.")
    settings = FQESettings(steps=options.fqe_steps)
    paths = [options.ckpt_path, *options.against]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("--against: a checkpoint is named twice: name each once.")
    modules = [first, *(load_module(path, options.device) for path in options.against)]
    made = [
        acting(module, data.spec, str(path)) for module, path in zip(modules, paths, strict=True)
    ]
    make_folder(folder)
    data.setup("fit")
    train_set, whole = data.train_set, data.dataset
    assert train_set is not None and whole is not None  # setup has read them
    held_out = data.held_out
    valued = whole if held_out is None else held_out
    for column in ("actions", "rewards"):
        whole.column(column)
    gamma = _discount(options, modules)
    chosen = first_states(valued, most=options.starts, seed=options.seed)
    values, trace = fitted_values(
        train_set,
        [act for act, _ in made],
        valued.columns["observations"][valued.episodes[chosen, 0]],
        gamma=gamma,
        settings=settings,
        seed=options.seed,
        device=options.device,
        progress=sys.stderr.isatty(),
    )
    cut = np.where(valued.episode_terminated, 0.0, gamma**valued.episode_lengths)[chosen]
    record = PolicyValuesRecord(
        policies=tuple(
            _entry(path, label, module, own, line, remark)
            for path, label, module, own, line, (_, remark) in zip(
                paths, _labels(paths), modules, values, trace, made, strict=True
            )
        ),
        behaviour=Value.of(discounted_returns(valued, gamma)[chosen]),
        behaviour_cut_weight=float(cut.max()),
        held_out=held_out is not None,
        gamma=gamma,
        dataset=whole.spec.name,
        dataset_sha256=whole.spec.sha256,
        dataset_handling=whole.spec.handling,
        initial_states=len(chosen),
        fqe=vars(settings),
        seed=options.seed,
        command=redacted(command_line(["ope", *argv])),
    )
    Console().print(record.table())
    path = record.save(folder / "ope.json")
    print(f"record: {path}")
    if options.mlflow:
        for one, checkpoint in zip(record.policies, paths, strict=True):
            metrics = {f"ope/{name}": value for name, value in record.metrics(one).items()}
            origin, uri = mlflow_origin(checkpoint), options.tracking_uri
            log_to_origin(origin, "ope", metrics, [path], tracking_uri=uri)
    return 0


def _discount(options: OPEOptions, modules: Sequence[OfflineModule]) -> float:
    if options.gamma is not None:
        return float(options.gamma)
    return float(next((m.hparams["gamma"] for m in modules if m.hparams.get("gamma")), _GAMMA))


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return ``RUN/last.ckpt`` of each path, or the whole path where two would be the same."""
    short = [f"{path.resolve().parent.name}/{path.name}" for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _entry(
    path: Path,
    label: str,
    module: OfflineModule,
    values: np.ndarray,
    trace: np.ndarray,
    remark: str | None,
) -> PolicyValue:
    saved: dict[str, Any] = read_checkpoint(path)
    return PolicyValue(
        label=label,
        method=type(module).__name__,
        checkpoint=str(path),
        checkpoint_sha256=file_sha256(path),
        checkpoint_rule=checkpoint_rule(path, saved),
        training_seed=module.seed,
        training_steps=saved.get("global_step"),
        trained_on_sha256=None if module.spec is None else module.spec.sha256,
        fqe=Value.of(values),
        trace=tuple(trace.tolist()),
        remark=remark,
    )
