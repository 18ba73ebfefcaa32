"""The protocol behind scores, and where that of some runs differs from the others'."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lit_offrl.common.errors import EvaluationError
from lit_offrl.envs.differences import EARLIER
from lit_offrl.evaluation.record import EvaluationRecord, config_sha256
from lit_offrl.evaluation.runs import Run

_NAMED = 3  # runs that a message names


def protocol(record: EvaluationRecord) -> dict[str, str]:
    """Return what must be equal for scores on one dataset to be comparable, in words."""
    low, high = record.ref_min_score, record.ref_max_score
    limit = record.max_episode_steps
    facts = {
        "sha256": record.dataset_sha256 or "unknown",
        "handling": "; ".join(record.dataset_handling) or "none",
        "environment": record.env_id,
        "differences": "; ".join(EARLIER.get(one, one) for one in record.environment_differences)
        or "none",
        "step limit": "the environment's" if limit is None else f"{limit:,}",
        "tasks": ", ".join(map(str, sorted(set(record.tasks or ())))) or "none",
        "episodes": f"{len(record.returns):,}",
        "evaluation seed": f"{record.seed}",
        "references": "none" if low is None or high is None else f"{low:g} and {high:g}",
        "checkpoint": record.checkpoint_rule or "unknown",
    }
    return facts | {f"version of {name}": text for name, text in sorted(record.versions.items())}


def digest(facts: Mapping[str, str]) -> str:
    """Return a short text by which files tell one protocol from another; "" for no facts."""
    return config_sha256(facts)[:16] if facts else ""


def columns(record: EvaluationRecord) -> dict[str, str]:
    """Return the protocol as columns of a table of results, of which the last stands for all."""
    return {
        "episodes": f"{len(record.returns)}",
        "evaluation_seed": f"{record.seed}",
        "env_id": record.env_id,
        "dataset_sha256": record.dataset_sha256 or "",
        "checkpoint_rule": record.checkpoint_rule or "",
        "protocol": digest(protocol(record)),
    }


def settings(run: Run) -> dict[str, str]:
    """Return what must be equal within a cell besides: the runs differ by their seed alone."""
    steps = run.record.training_steps
    return {"training steps": "unknown" if steps is None else f"{steps:,}"} | dict(run.params)


@dataclass(frozen=True)
class Difference:
    """Runs of one cell that differ from the others on their dataset, and how, in words."""

    dataset: str
    runs: tuple[Run, ...]
    how: str


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Find runs unlike most: in their protocol on a dataset, or in their settings in a cell."""
    found = _outliers(runs, lambda run: (run.dataset,), lambda run: protocol(run.record))
    return found + _outliers(runs, cell, settings)


def cell(run: Run) -> tuple[object, ...]:
    """What runs that differ by their seed alone share."""
    return run.dataset, run.method, run.options


def _outliers(
    runs: Sequence[Run],
    group: Callable[[Run], tuple[object, ...]],
    facts: Callable[[Run], Mapping[str, str]],
) -> list[Difference]:
    groups: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[group(run)].append(run)
    found = []
    for members in groups.values():
        described = [facts(run) for run in members]
        counts = Counter(tuple(sorted(each.items())) for each in described)
        most = max(counts.values())
        usual = dict(min(key for key in counts if counts[key] == most))  # ties: the same each time
        by_how: dict[tuple[object, ...], list[Run]] = defaultdict(list)
        for run, each in zip(members, described, strict=True):
            if each != usual:
                by_how[(*cell(run), _words(each, usual))].append(run)
        found += [
            Difference(different[0].dataset, tuple(different), str(key[-1]))
            for key, different in by_how.items()
        ]
    return found


def _words(found: Mapping[str, str], usual: Mapping[str, str]) -> str:
    return ", ".join(
        f"{key} {_short(found.get(key))} instead of {_short(usual.get(key))}"
        for key in dict.fromkeys([*usual, *found])
        if found.get(key) != usual.get(key)
    )


def _short(text: str | None) -> str:
    if text is None:
        return "none"
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:8]}…" if is_hash else text


def refuse(found: Sequence[Difference]) -> None:
    """Refuse the first difference, if there is one, by an EvaluationError."""
    if not found:
        return
    first = found[0]
    named = "; ".join(run.source for run in first.runs[:_NAMED])
    more = f" and {len(first.runs) - _NAMED} more" if len(first.runs) > _NAMED else ""
    others = f" ({len(found) - 1} more differences.)" if len(found) > 1 else ""
    raise EvaluationError(
        f"{first.dataset}: not all runs can be compared: {first.runs[0].method} has {first.how} "
        f"({named}{more}).{others} Evaluate all in one way, leave runs out with --filter or "
        "--records, or have them marked by `lit-offrl compare --allow_unequal`."
    )


def describe(dataset: str, record: EvaluationRecord) -> str:
    """Return a dataset's protocol as a sentence."""
    facts = protocol(record)
    parts = [
        f"{facts['environment']}",
        f"{facts['episodes']} episodes a run, evaluation seed {facts['evaluation seed']}",
        f"checkpoint: {facts['checkpoint']}",
    ]
    if facts["step limit"] != "the environment's":
        parts.append(f"at most {facts['step limit']} steps")
    if facts["tasks"] != "none":
        parts.append(f"tasks {facts['tasks']}")
    if facts["references"] != "none":
        source = f" ({record.ref_source})" if record.ref_source else ""
        parts.append(f"references {facts['references']}{source}")
    if facts["handling"] != "none":
        parts.append(f"data: {facts['handling']}")
    if facts["differences"] != "none":
        parts.append(f"environment: {facts['differences']}")
    return f"{dataset} (sha256 {facts['sha256']}): {'; '.join(parts)}"


def evaluated(record: EvaluationRecord) -> list[str]:
    """Return sentences on a policy's evaluation: its score, and by which protocol."""
    numbers = record.summary()
    scored = "score" if record.scores is not None else "return"
    what = "Normalised score" if scored == "score" else "Return"
    said = (
        f"{what} {numbers[f'{scored}_mean']:.1f} ± {numbers[f'{scored}_standard_error']:.1f} "
        f"(s.e.), IQM {numbers[f'{scored}_iqm']:.1f}"
    )
    if "reached_share" in numbers:
        said += f"; successes: {100 * numbers['reached_share']:.0f} %"
    if record.policy_options:
        options = ", ".join(f"{name} {value}" for name, value in record.policy_options.items())
        said += f"; options of the policy: {options}"
    return [f"{said}.", f"Protocol: {describe(record.dataset or record.env_id, record)}."]


def versions(records: Sequence[EvaluationRecord]) -> str:
    """Return the packages' versions that most of the records have, as a sentence."""
    counts = Counter(tuple(sorted(record.versions.items())) for record in records)
    usual = counts.most_common(1)[0][0]
    return ", ".join(f"{name} {text}" for name, text in usual)
