"""Evaluated training runs, and those of MLflow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from lit_offrl.common.errors import EvaluationError, first_line
from lit_offrl.common.renames import translated
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.tracking.references import is_reference
from lit_offrl.tracking.runs import (
    CHILDREN_TAG,
    FIGURES_TAG,
    FILES_TAG,
    TAG,
    artifact_repository,
    artifact_texts,
    json_paths,
    search_runs,
)

_OPTION = f"{TAG}option."
_SEED_IN_NAME = re.compile(r"-seed(\d+)(?:-\d+)?$")
_PER_RUN = ("seed", "dataset", "data_dir", "cache_dir", "pretrained")  # parameters that may differ
_IN_RECORD = ("method", "dataset_sha256", "max_steps", "precision")  # parameters that tables have
_OF_DATA = ("episodes", "return_mean", "score_mean")
_READERS = 8  # requests to a server at a time


@dataclass(frozen=True, kw_only=True)
class SeededRun:
    """A training run that tables have under a method and a dataset.

    Attributes:
        method: Name of the method in tables.
        dataset: Name of the dataset in tables.
        options: Further axes of a sweep and options of the policy, (name, value), sorted.
        seed: Seed of the training.
        source: Where it was read, for messages.
    """

    method: str
    dataset: str
    options: tuple[tuple[str, str], ...]
    seed: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Run(SeededRun):
    """One trained policy with one evaluation of it.

    Attributes:
        record: The evaluation.
        params: Hyperparameters as MLflow has them, without those that may differ between seeds.
        data: ``score_mean``, ``return_mean`` and ``episodes`` of the training data.
    """

    record: EvaluationRecord
    params: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, float] = field(default_factory=dict)


R = TypeVar("R", bound=SeededRun)


@dataclass(frozen=True)
class Found(Generic[R]):
    """Runs that can be compared, and a line on each that cannot.

    Attributes:
        runs: Runs that can be compared.
        left_out: Lines on the runs that cannot.
        experiment: MLflow's store and the id of the experiment of the first run, if there is one.
    """

    runs: tuple[R, ...]
    left_out: tuple[str, ...] = ()
    experiment: tuple[str, str] | None = None


def joined(parts: Iterable[Found[R]]) -> Found[R]:
    """Put several findings together."""
    parts = list(parts)
    return Found(
        tuple(run for part in parts for run in part.runs),
        tuple(line for part in parts for line in part.left_out),
        next((part.experiment for part in parts if part.runs and part.experiment), None),
    )


def one_a_seed(runs: Iterable[R], date: Callable[[R], str], latest: bool) -> list[R]:
    """Refuse a seed that a method has twice on a dataset, or take the one of the latest date.

    Raises:
        EvaluationError: A seed is there twice.
    """
    kept: dict[tuple[object, ...], R] = {}
    for run in sorted(runs, key=date):
        key = (run.dataset, run.method, run.options, run.seed)
        if key in kept and not latest:
            raise EvaluationError(
                f"{run.method} on {run.dataset} has seed {run.seed} twice: {kept[key].source}; "
                f"and {run.source}. Leave one out with --filter or --records, or have `lit-offrl "
                "compare --latest` take the newest."
            )
        kept[key] = run
    return list(kept.values())


def without_steps(names: Iterable[str]) -> list[str]:
    """Of a fit's evaluations keep the last: ``evaluation.json``, else that of the latest step."""
    names = list(names)
    steps = [name for name in names if name.startswith("evaluation-step-")]
    others = [name for name in names if name not in steps]
    if steps and "evaluation.json" not in names:
        others.append(max(steps, key=lambda name: int(re.sub(r"\D", "", name) or 0)))
    return others


def read_runs(
    tracking_uri: str,
    experiments: Sequence[str],
    filter_string: str,
    read: Callable[[Any, str], Iterable[R]],
) -> Found[R]:
    """Read finished runs of experiments that pass a filter, but for runs of figures and parents.

    Args:
        tracking_uri: The store, which must exist.
        experiments: Names; all active ones where none is given.
        filter_string: Such as ``tags."lit_offrl.sweep" = 'pybullet'``.
        read: Returns what there is to compare in a run of the given name, or says by its error why
            the run is left out.

    Raises:
        ConfigError: There is no such experiment, or MLflow refuses; the line says why.
    """

    def found(run: Any) -> Found[R]:
        name = f"MLflow run {run.info.run_id} ({run.info.run_name})"
        if FIGURES_TAG in run.data.tags or CHILDREN_TAG in run.data.tags:
            return Found(())
        if run.info.status != "FINISHED":
            return Found((), (f"{name}: {run.info.status.lower()}, not finished",))
        try:
            return Found(tuple(read(run, name)), (), (tracking_uri, run.info.experiment_id))
        except Exception as error:  # one run's files that are gone must not cost the others
            return Found((), (f"{name}: {first_line(error)}",))

    with ThreadPoolExecutor(_READERS) as pool:
        return joined(pool.map(found, search_runs(tracking_uri, experiments, filter_string)))


def runs_from_mlflow(
    tracking_uri: str, experiments: Sequence[str] = (), filter_string: str = ""
) -> Found[Run]:
    """Read evaluated runs; see :func:`read_runs`.

    A run's evaluations are the records under ``evaluate/`` if there are any, else the one that its
    fit ended with. Runs without a record are left out; a pipeline's stages are so without a line.
    """

    def read(run: Any, name: str) -> list[Run]:
        tags, repository = run.data.tags, artifact_repository(tracking_uri, run.info.artifact_uri)
        fits = [name for name in json_paths(repository) if name.startswith("evaluation")]
        names = json_paths(repository, "evaluate") or without_steps(fits)
        texts = artifact_texts(repository, names)
        if FILES_TAG in tags:
            raise EvaluationError("keeps the files of a sweep's machines, and has trained nothing")
        if not texts and f"{TAG}stage" not in tags:  # a stage's evaluations have runs of their own
            raise EvaluationError(
                "no evaluation record: run `lit-offrl evaluate --ckpt_path …` on its checkpoint"
            )
        params = {k: v for k, v in run.data.params.items() if _same_in_a_cell(k, v)}
        known = {**run.data.metrics, **run.data.params}  # earlier versions had them as metrics
        data = {key: float(known[f"data/{key}"]) for key in _OF_DATA if f"data/{key}" in known}
        runs = []
        for path, text in texts.items():
            record = EvaluationRecord.from_json(text)
            seed, named = run.data.params.get("seed"), translated(params, record.method)
            runs.append(make_run(record, f"{name}, {path}", tags, seed, named, data))
        return runs

    return read_runs(tracking_uri, experiments, filter_string, read)


def _same_in_a_cell(name: str, value: str) -> bool:
    last = PurePosixPath(name).name
    return last not in (*_PER_RUN, *_IN_RECORD, *_OF_DATA) and not (
        value.endswith(".ckpt") or is_reference(value)
    )


def swept_options(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the axes of a sweep that the tags of a run name."""
    return {k.removeprefix(_OPTION): v for k, v in tags.items() if k.startswith(_OPTION)}


def make_run(
    record: EvaluationRecord,
    source: str,
    tags: Mapping[str, str] | None = None,
    seed: str | None = None,
    params: Mapping[str, str] | None = None,
    data: Mapping[str, float] | None = None,
) -> Run:
    """Put together what is known of a run; tags of a sweep win over the record's names.

    Raises:
        EvaluationError: nothing says which seed it was trained with.
    """
    tags = tags or {}
    acting = {k: str(v) for k, v in record.policy_options.items()}
    options = swept_options(tags)
    # A sweep over an option of the policy names it in its tags too: once is enough.
    options = {k: v for k, v in options.items() if acting.get(k) != v}
    options |= {f"policy.{k}": v for k, v in acting.items()}
    if Path(record.checkpoint or "").suffix == ".onnx":
        options["exported"] = "onnx"  # a row of its own beside the checkpoint's
    return Run(
        method=tags.get(f"{TAG}method", record.method),
        dataset=tags.get(f"{TAG}dataset", record.dataset or record.env_id),
        options=tuple(sorted(options.items())),
        seed=_training_seed(record, seed, source),
        record=record,
        source=source,
        params=params or {},
        data=data or {},
    )


def _training_seed(record: EvaluationRecord, seed: str | None, source: str) -> int:
    if record.training_seed is not None:
        return record.training_seed
    named = _SEED_IN_NAME.search(Path(record.checkpoint or "").parent.name)
    if seed is None and named is None:
        raise EvaluationError(
            f"{source}: does not say the training's seed, as an earlier version wrote it: "
            "evaluate the checkpoint again."
        )
    return int(seed if seed is not None else named[1] if named else 0)
