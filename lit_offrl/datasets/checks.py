"""What a dataset is like, and what in it is odd without being wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lit_offrl.datasets.bounds import outside_bounds, ranges
from lit_offrl.datasets.d4rl import family
from lit_offrl.datasets.pybullet import GUESSED
from lit_offrl.datasets.schema import OfflineDataset

_BLOCK = 100_000  # rows that are compared at a time


@dataclass(frozen=True)
class Report:
    """What ``examine`` found: facts in a row each, and a sentence for each oddity."""

    facts: dict[str, str]
    warnings: tuple[str, ...]


def examine(dataset: OfflineDataset) -> Report:
    """Describe a dataset that has been read, and so is valid."""
    return Report(dict(_facts(dataset)), tuple(_warnings(dataset)))


def _facts(dataset: OfflineDataset) -> Iterator[tuple[str, str]]:
    spec, lengths = dataset.spec, dataset.episode_lengths
    terminated = int(dataset.episode_terminated.sum())
    yield "rows", f"{len(dataset):,}"
    yield (
        "episodes",
        f"{len(lengths):,}: {terminated:,} end in a terminal, "
        f"{len(lengths) - terminated:,} in a timeout" + ", the last cut off" * _cut(dataset),
    )
    if spec.action_low is not None and spec.action_high is not None:
        yield "action bounds", ranges(spec.action_low, spec.action_high)
    if spec.handling:
        yield "done on reading", "; ".join(spec.handling)
    yield "episode lengths", _spread(lengths, "{:,.0f}")
    returns = dataset.complete_returns() if "rewards" in dataset.columns else np.empty(0)
    if len(returns):
        yield "episode returns", _spread(returns, "{:,.2f}")
        scored = spec.score_of == "return"  # whether an episode of data succeeds, no column says
        if scored and spec.ref_min_score is not None and spec.ref_max_score is not None:
            scale = 100 / (spec.ref_max_score - spec.ref_min_score)
            yield "normalised scores", _spread((returns - spec.ref_min_score) * scale, "{:,.1f}")
    for name, values in dataset.columns.items():
        if values.dtype == np.bool_:
            yield name, f"{int(values.sum()):,} of {len(values):,} rows"
        else:
            shape = " × ".join(f"{size:,}" for size in values.shape)
            yield name, f"{shape}, {values.min():.4g} to {values.max():.4g}"


def _spread(values: np.ndarray, form: str) -> str:
    figures = zip(
        ("mean", "min", "median", "max"),
        (values.mean(), values.min(), np.median(values), values.max()),
        strict=True,
    )
    return ", ".join(f"{name} {form.format(value)}" for name, value in figures)


def _warnings(dataset: OfflineDataset) -> Iterator[str]:
    columns, spec, episodes = dataset.columns, dataset.spec, dataset.episodes
    for name in ("observations", "actions"):
        if name in columns:
            flat = np.flatnonzero(columns[name].min(0) == columns[name].max(0))
            if len(flat):
                which = ", ".join(map(str, flat))
                yield f"column '{name}' is constant in dimensions {which}"
    if "rewards" in columns and columns["rewards"].min() == columns["rewards"].max():
        yield f"column 'rewards' is {columns['rewards'][0]:g} in every row"
    if outside := outside_bounds(columns, spec):
        yield outside
    states, following = columns["observations"], columns["observations"][1:]
    changed = _rows(lambda part: following[part] != states[:-1][part], len(following))
    if same := int((~changed).sum()):
        yield f"{same:,} rows repeat the observation of the row before"
    if "next_observations" in columns:
        stated = columns["next_observations"][:-1]
        broken = _rows(lambda part: stated[part] != following[part], len(following))
        broken[episodes[:-1, 1] - 1] = False
        if broken.any():
            yield (
                f"column 'next_observations' is not the observation of the following row in "
                f"{int(broken.sum()):,} rows within episodes, first in row "
                f"{int(np.argmax(broken)):,}"
            )
    yield from (each for each in spec.handling if each.startswith(GUESSED))
    yield from spec.notices
    yield from _odd_ends(dataset)


def _rows(test: Callable[[slice], np.ndarray], rows: int) -> np.ndarray:
    """Return of which rows (N,) a test (n, d) holds in any dimension, without copies of columns."""
    found = np.zeros(rows, dtype=np.bool_)
    for start in range(0, rows, _BLOCK):
        part = slice(start, start + _BLOCK)
        found[part] = test(part).any(axis=1)
    return found


def _cut(dataset: OfflineDataset) -> bool:
    """Say whether the last episode was cut, by the file or, as it says, by its collection."""
    return dataset.cut_off or dataset.provenance.get("last_episode_cut") == "True"


def _odd_ends(dataset: OfflineDataset) -> Iterator[str]:
    lengths, terminated = dataset.episode_lengths, dataset.episode_terminated
    spec, limit = dataset.spec, dataset.spec.max_episode_steps
    if dataset.provenance.get("complete") == "False":
        yield "the file says that its collection was interrupted"
    if dataset.cut_off:
        yield f"the last episode is cut off after {lengths[-1]:,} rows: read as a timeout"
    if len(lengths) == 1:
        yield "there is a single episode, so none can be held out"
    of_states = spec.score_of == "success"  # OGBench: the ends are those of recordings and tasks
    if not of_states and (single := int((lengths == 1).sum())):
        yield f"{single:,} episodes are a single row"
    whole = lengths[: len(lengths) - dataset.cut_off]
    alike = len(whole) > 1 and whole.min() == whole.max() and whole[0] not in (1, limit)
    if alike and terminated[: len(whole)].all():
        yield (
            f"all {len(whole):,} episodes have {whole[0]:,} rows and end in 'terminals': most "
            "likely timeouts, after which values go on: write those ends as 'timeouts'"
        )
    # D4RL's mazes end episodes by rules of their own: at goals, or after runs of 1,001 rows.
    mazes = family(spec.env_id or spec.name) in ("maze2d", "antmaze")
    if limit is None or mazes or of_states:
        return
    if count := int((terminated & (lengths == limit)).sum()):
        yield (
            f"{count:,} episodes end in a terminal at exactly the limit of {limit:,} steps: "
            "most likely timeouts, which cut no bootstrap"
        )
    if count := int((lengths > limit).sum()):
        yield f"{count:,} episodes are longer than the limit of {limit:,} steps"
    early = ~terminated & (lengths < limit)
    early[-1] &= not _cut(dataset)
    if count := int(early.sum()):
        yield f"{count:,} episodes time out before the limit of {limit:,} steps"
