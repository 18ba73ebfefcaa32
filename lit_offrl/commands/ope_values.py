"""What ``lit-offrl ope`` computes, once its options are read."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lit_offrl.cli.layer import data_part
from lit_offrl.commands.ope import OPEOptions
from lit_offrl.common.errors import ConfigError, LitOffRLError, reason
from lit_offrl.common.files import (
    begins,
    file_sha256,
    is_json_with,
    make_folder,
    require_replaceable,
)
from lit_offrl.common.named_classes import class_named
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.figures import estimates_against_truth, save_figure
from lit_offrl.modules import DVFModule, OfflineModule, load_module
from lit_offrl.modules.checkpoints import (
    checkpoint_rule,
    config_of,
    mlflow_origin,
    read_checkpoint,
)
from lit_offrl.studies import ope
from lit_offrl.studies.candidates import acting, make_candidates, parse_policies
from lit_offrl.studies.fqe_settings import FQESettings
from lit_offrl.studies.ope_record import CandidateValue, OPERecord, number, summarise
from lit_offrl.studies.ope_truth import discounted_returns, true_returns
from lit_offrl.studies.policy_values import (
    PolicyValue,
    PolicyValuesRecord,
    Value,
    first_states,
    fitted_values,
)
from lit_offrl.tracking.references import label
from lit_offrl.tracking.results import log_to_origin

_GAMMA = 0.99
_RECORD, _FIGURE = "ope.json", "ope.png"
_OF_DVF = {"policies": None, "baseline": "fqe", "truth": "data"}


def value(options: OPEOptions, command: str) -> int:
    """Value the candidates, print a table, write record and figure; return 0."""
    checkpoint = read_checkpoint(options.ckpt_path)
    module = load_module(options.ckpt_path, options.device)
    data = _data(checkpoint, options.ckpt_path, options.data)
    named: list[tuple[float, Path | None]] = [(value, None) for value in data.hold_out_policies]
    if options.policies is not None:
        named = parse_policies(options.policies)
    path = options.ckpt_path.resolve()
    name = f"{label(path)}-{path.stem}-seed{options.seed}"
    folder = options.output or Path("ope") / name
    record: OPERecord | PolicyValuesRecord
    if isinstance(module, DVFModule) and named and not options.against:
        record = _value_candidates(options, module, data, named, folder, command)
        metrics = {options.ckpt_path: record.metrics()}
    else:
        record = _value_checkpoints(options, module, data, folder, command)
        metrics = {Path(one.checkpoint): record.metrics(one) for one in record.policies}
    console = Console()
    console.print(record.table())
    files = {"record": record.save(folder / _RECORD)}
    if isinstance(record, OPERecord):
        for line in record.lines():
            console.print(line, highlight=False, soft_wrap=True)
        files["figure"] = _draw(record, folder / _FIGURE)
    for kind, path in files.items():
        print(f"{kind}: {path}")
    for source, values in metrics.items() if options.mlflow else ():
        found = {f"ope/{name}": value for name, value in values.items()}
        origin, uri = mlflow_origin(source), options.tracking_uri
        log_to_origin(origin, "ope", found, [*files.values()], tracking_uri=uri)
    return 0


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


def _read(
    data: OfflineDataModule, folder: Path, *columns: str
) -> tuple[OfflineDataset, OfflineDataset]:
    """Make the folder of the results; return the training data and all data."""
    make_folder(folder)
    is_record = partial(is_json_with, names=("dataset", "initial_states", "fqe", "gamma"))
    require_replaceable(folder / _RECORD, "record of ope", is_record)
    is_picture = partial(begins, start=b"\x89PNG")
    require_replaceable(folder / _FIGURE, "figure of ope", is_picture)
    data.setup("fit")
    train_set, whole = data.train_set, data.dataset
    assert train_set is not None and whole is not None  # setup has read them
    for column in (*columns, "actions", "rewards"):
        whole.column(column)
    return train_set, whole


# ---- DVF's values of policies --------------------------------------------------------------------


def _value_candidates(
    options: OPEOptions,
    module: DVFModule,
    data: OfflineDataModule,
    named: Sequence[tuple[float, Path | None]],
    folder: Path,
    command: str,
) -> OPERecord:
    settings = FQESettings(steps=options.fqe_steps) if options.baseline == "fqe" else None
    rewards, seed = getattr(data, "rewards", "as_recorded"), options.seed
    if options.truth == "rollouts" and rewards != "as_recorded":
        raise ConfigError(
            f"--truth rollouts earn the environment's rewards, but DVF was trained with rewards "
            f"'{rewards}': leave it at data."
        )
    train_set, dataset = _read(data, folder, "policy")
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
        command=command,
    )


def _draw(record: OPERecord, path: Path) -> Path:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(one, name) for one in record.candidates], np.float64)

    figure = estimates_against_truth(
        [one.label for one in record.candidates],
        column("truth"),
        column("truth_error"),
        {name.upper(): column(name) for name in record.estimators()},
        record.gamma,
    )
    save_figure(figure, path)
    return path


# ---- FQE's values of checkpoints -----------------------------------------------------------------


def _value_checkpoints(
    options: OPEOptions, first: OfflineModule, data: OfflineDataModule, folder: Path, command: str
) -> PolicyValuesRecord:
    for name, usual in _OF_DVF.items():
        if getattr(options, name) != usual:
            raise ConfigError(
                f"--{name} goes with DVF's values of other policies: give a DVFModule's checkpoint"
                " alone, with --policies or with policies that its run held out; or leave it out."
            )
    settings = FQESettings(steps=options.fqe_steps)
    paths = [options.ckpt_path, *options.against]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("--against: a checkpoint is named twice: name each once.")
    modules = [first, *(load_module(path, options.device) for path in options.against)]
    made = [
        acting(module, data.spec, str(path)) for module, path in zip(modules, paths, strict=True)
    ]
    train_set, whole = _read(data, folder)
    held_out = data.held_out
    valued = whole if held_out is None else held_out
    gamma = options.gamma
    if gamma is None:
        own = (module.hparams.get("gamma") for module in modules)
        gamma = float(next(filter(None, own), _GAMMA))
    chosen = first_states(valued, most=options.starts, seed=options.seed)
    values, traces = fitted_values(
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
    labels = [f"{path.resolve().parent.name}/{path.name}" for path in paths]
    policies = []
    for row, (path, module, (_, remark)) in enumerate(zip(paths, modules, made, strict=True)):
        saved = read_checkpoint(path)
        policies.append(
            PolicyValue(
                label=labels[row] if len(set(labels)) == len(labels) else str(path),
                method=type(module).__name__,
                checkpoint=str(path),
                checkpoint_sha256=file_sha256(path),
                checkpoint_rule=checkpoint_rule(path, saved),
                training_seed=module.seed,
                training_steps=saved.get("global_step"),
                trained_on_sha256=None if module.spec is None else module.spec.sha256,
                fqe=Value.of(values[row]),
                trace=tuple(traces[row].tolist()),
                remark=remark,
            )
        )
    return PolicyValuesRecord(
        policies=tuple(policies),
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
        command=command,
    )
