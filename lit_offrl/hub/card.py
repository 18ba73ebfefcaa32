"""The model card: what a policy is, how it was made, and how it scored, from its records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.evaluation.statistics import (
    ENOUGH,
    interquartile_mean,
    interval_within_range,
    standard_error,
)
from lit_offrl.modules.base import CHECKPOINT_KEY


def card(
    repository: str,
    *,
    method: str,
    spec: DatasetSpec,
    saved: Mapping[str, Any],
    checkpoint_sha256: str,
    weights_sha256: str,
    records: Sequence[EvaluationRecord],
    licence: str | None = None,
) -> str:
    """Return the text of ``README.md``, with the hub's header.

    Args:
        repository: ``ORG/NAME``.
        method: Class of the method.
        spec: Spec of the dataset.
        saved: What the checkpoint holds.
        checkpoint_sha256: Hash of the checkpoint, which records name.
        weights_sha256: Hash of the weights' file.
        records: Evaluations of this checkpoint.
        licence: Licence by the hub's name for it.
    """
    header = _header(repository, method, spec, records, licence)
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    title = f"{method.removesuffix('Module')} on {spec.name}"
    parts = [
        f"---\n{front}---\n\n# {title}",
        f"A policy trained offline by `{method}` of lit-offrl on `{spec.name}`: observations of "
        f"{spec.observation_dim} numbers in, actions of {spec.action_dim} out.",
        "## Scores\n\n" + _scores(records),
        "## Protocol\n\n" + _list(_protocol(records)),
        "## Data and training\n\n"
        + _list(_training(spec, saved, checkpoint_sha256, weights_sha256)),
        "## How to use it\n\n" + _usage(repository),
        "## Limits\n\n" + _list(_limits(spec, records)),
    ]
    return "\n\n".join(parts) + "\n"


def _header(
    repository: str,
    method: str,
    spec: DatasetSpec,
    records: Sequence[EvaluationRecord],
    licence: str | None,
) -> dict[str, Any]:
    header: dict[str, Any] = {} if licence is None else {"license": licence}
    header |= {
        "library_name": "lit-offrl",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "offline-rl", method.removesuffix("Module").lower()],
    }
    results = []
    for record in records:
        metrics = [_metric("mean_reward", "mean return", record.returns)]
        if record.scores is not None:
            metrics.append(_metric("normalized_score", "mean normalised score", record.scores))
        results.append(
            {
                "task": {"type": "reinforcement-learning", "name": "reinforcement learning"},
                "dataset": {"name": record.env_id, "type": record.env_id},
                "metrics": metrics,
            }
        )
    if results:
        header["model-index"] = [{"name": repository.partition("/")[2], "results": results}]
    if spec.env_id is not None:
        header["tags"].append(spec.env_id)
    return header


def _metric(kind: str, name: str, values: Sequence[float]) -> dict[str, Any]:
    array = np.array(values)
    return {
        "type": kind,
        "name": f"{name} ± standard error",
        "value": f"{array.mean():.2f} ± {standard_error(array):.2f}",
        "verified": False,
    }


def _scores(records: Sequence[EvaluationRecord]) -> str:
    if not records:
        return "It has not been evaluated: `lit-offrl evaluate` does that."
    lines = [
        "| environment | episodes | measure | mean ± s.e. | IQM | 95 % of IQM |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        for name, values in (("normalised score", record.scores), ("return", record.returns)):
            if values is None:
                continue
            array = np.array(values, np.float64)
            low, high = interval_within_range(array)
            interval = "–" if math.isnan(low) else f"{low:.1f} … {high:.1f}"
            cells = [
                record.env_id,
                f"{len(array)}",
                name,
                f"{array.mean():.1f} ± {standard_error(array):.1f}",
                f"{interquartile_mean(array):.1f}",
                interval,
            ]
            lines.append(f"| {' | '.join(map(_plain, cells))} |")
    return "\n".join(lines)


def _protocol(records: Sequence[EvaluationRecord]) -> Iterator[str]:
    for record in records:
        limit = "the environment's own step limit"
        if record.max_episode_steps is not None:
            limit = f"at most {record.max_episode_steps} steps"
        yield (
            f"`{record.env_id}`: {len(record.episodes)} episodes, evaluation seed {record.seed}, "
            f"{limit}; checkpoint chosen as: {record.checkpoint_rule or 'not known'}"
        )
        if record.policy_options:
            yield f"options of the policy: `{_plain(str(dict(record.policy_options)))}`"
        if record.ref_source is not None and record.scores is not None:
            yield (
                f"a score of 0 is a return of {record.ref_min_score:g}, one of 100 "
                f"{record.ref_max_score:g} ({_plain(record.ref_source)})"
            )
        yield from map(_plain, record.environment_differences)
        if record.command:
            yield f"command: `{_plain(record.command)}`"
    if not records:
        yield "none"


def _training(
    spec: DatasetSpec, saved: Mapping[str, Any], checkpoint_sha256: str, weights_sha256: str
) -> Iterator[str]:
    yield f"dataset: `{spec.name}`, sha256 `{spec.sha256 or 'not known'}`"
    yield from map(_plain, spec.handling)
    options = saved.get("hyper_parameters", {})
    steps = saved.get("global_step", "an unknown number of")
    yield f"{steps} optimiser steps, seed {options.get('seed', 0)}; all options: `config.yaml`"
    yield f"lit-offrl {saved[CHECKPOINT_KEY].get('version', 'of an unknown version')}"
    yield f"sha256 of the checkpoint that was evaluated: `{checkpoint_sha256}`"
    yield f"sha256 of `policy.safetensors`: `{weights_sha256}`"


def _usage(repository: str) -> str:
    reference = f"hub:{repository}"
    return (
        "```bash\n"
        'pip install "lit-offrl[hub]"\n'
        f"lit-offrl evaluate --ckpt_path {reference} --episodes 20\n"
        f"lit-offrl serve --ckpt_path {reference} --port 8000\n"
        "```\n\n"
        "```python\n"
        "from lit_offrl.modules.checkpoints import load_module\n\n"
        f'policy = load_module("{reference}").policy()\n'
        "policy.reset()\n"
        "actions = policy.act(observations)  # (E, o) -> (E, a), float32\n"
        "```"
    )


def _limits(spec: DatasetSpec, records: Sequence[EvaluationRecord]) -> Iterator[str]:
    yield (
        f"It has seen `{spec.name}` alone: observations unlike those, another robot or another "
        "simulator are beyond what was measured."
    )
    yield "Nothing bounds its actions but the action space: keep a robot's own safety limits."
    yield "One training seed: another may score otherwise, which these intervals do not show."
    few = [record for record in records if len(record.episodes) < ENOUGH]
    if few:
        yield f"Fewer than {ENOUGH} episodes have no interval (–)."


def _list(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _plain(text: str) -> str:
    """Return a text that is one line and no table's end."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())
