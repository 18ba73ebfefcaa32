"""What a method's authors did to a task's rewards: options, each stated beside the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.d4rl import family
from lit_offrl.datasets.schema import OfflineDataset

Rewards = Literal[
    "as_recorded",
    "minus_one",
    "centred",
    "hundredfold",
    "return_range",
    "differences",
    "sparse_windows",
]
_NAMES: tuple[str, ...] = get_args(Rewards)
_ELEMENTS = 4  # of the kitchen


def handle_rewards(dataset: OfflineDataset, rewards: Rewards) -> OfflineDataset:
    """Return a dataset whose rewards are what a method trains on; scores are not touched.

    Args:
        dataset: Dataset as read.
        rewards: ``as_recorded``;
            ``minus_one``: r − 1, for rewards of 0 and 1 (IQL on AntMaze);
            ``centred``: 4 · (r − 0.5) (CQL, Diffusion-QL on AntMaze);
            ``hundredfold``: 100 r (ReBRAC on AntMaze);
            ``return_range``: r · 1000 / (largest − smallest episode return), over all episodes (IQL
            on locomotion);
            ``differences``: +1 when the largest count of solved elements so far rises, for the
            kitchen, whose data hold the count in every row where its environment pays once (an
            element solved while another is undone leaves the count, and so pays nothing);
            ``sparse_windows``: what ``d4rl.fix_conventions`` does on reading, so none is left.

    Raises:
        ConfigError: there is no such option, or the data are of another kind than it is for.
        DatasetError: the data have no rewards, or rewards that it is not for.
    """
    if rewards not in _NAMES:
        raise ConfigError(f"rewards is {rewards!r}: use one of {', '.join(_NAMES)}.")
    if rewards in ("as_recorded", "sparse_windows"):
        return dataset
    dataset.column("rewards")
    if rewards == "return_range":
        return _return_range(dataset)
    if rewards == "differences":
        return _differences(dataset)
    values = dataset.columns["rewards"].astype(np.float64)
    _refuse(dataset, (values != 0) & (values != 1), rewards, "only 0 and 1")
    words = {"minus_one": "r - 1", "centred": "4 (r - 0.5)", "hundredfold": "100 r"}
    return dataset.with_rewards(environment_rewards(dataset, rewards)(values), words[rewards])


def environment_rewards(
    recorded: OfflineDataset, rewards: Rewards
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes an environment's rewards (n,) those that ``handle_rewards`` trains on.

    Args:
        recorded: Dataset as read, from whose episode returns ``return_range`` is computed.
        rewards: Option, as in ``handle_rewards``. With ``differences`` the environment's rewards
            are unchanged, since the kitchen itself rewards each element once.

    Raises:
        ConfigError: ``sparse_windows``, which ends episodes where no environment does.
    """
    if rewards == "sparse_windows":
        raise ConfigError(
            f"{recorded.spec.origin}: rewards 'sparse_windows' ends episodes where the environment "
            "goes on: own steps in it cannot be added to such data."
        )
    if rewards == "minus_one":
        return lambda values: values - 1
    if rewards == "centred":
        return lambda values: 4 * (values - 0.5)
    if rewards == "hundredfold":
        return lambda values: 100 * values
    if rewards == "return_range":
        factor = np.float32(1000 / _spread(recorded))
        return lambda values: values * factor
    return lambda values: values


def _return_range(dataset: OfflineDataset) -> OfflineDataset:
    count, spread = len(dataset.episodes), _spread(dataset)
    scaled = environment_rewards(dataset, "return_range")(dataset.columns["rewards"])
    handling = f"r * 1000 / {spread:.6g}, the range of the {count:,} episode returns"
    return dataset.with_rewards(scaled, handling)


def _spread(dataset: OfflineDataset) -> float:
    returns = dataset.episode_returns()
    spread = float(returns.max() - returns.min())
    if spread == 0:
        raise DatasetError(
            f"{dataset.spec.origin}: column 'rewards' gives every episode the return "
            f"{returns[0]:g}, so rewards 'return_range' cannot scale it: use 'as_recorded'."
        )
    return spread


def _differences(dataset: OfflineDataset) -> OfflineDataset:
    if "kitchen" not in (family(dataset.spec.env_id), family(dataset.spec.name)):
        raise ConfigError(
            f"{dataset.spec.origin}: rewards 'differences' is for kitchen, and this dataset is of "
            f"'{dataset.spec.env_id or dataset.spec.name}': leave the option out."
        )
    counts = dataset.columns["rewards"].astype(np.float64)
    bad = (counts < 0) | (counts > _ELEMENTS) | (counts != np.round(counts))
    _refuse(dataset, bad, "differences", f"counts from 0 to {_ELEMENTS}")
    # The largest so far within each episode: later episodes are lifted above all earlier ones.
    lift = np.repeat(np.arange(len(dataset.episodes)), dataset.episode_lengths) * (_ELEMENTS + 1.0)
    largest = np.maximum.accumulate(counts + lift) - lift
    increments = np.diff(largest, prepend=0.0)
    starts = dataset.episodes[:, 0]
    increments[starts] = largest[starts]
    return dataset.with_rewards(increments, "1 for each rise of the count of solved elements")


def _refuse(dataset: OfflineDataset, bad: np.ndarray, option: str, wanted: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        value = dataset.columns["rewards"][row]
        raise DatasetError(
            f"{dataset.spec.origin}: column 'rewards' has {value:g} in row {row:,} as read, and "
            f"rewards '{option}' is for {wanted}: use 'as_recorded'."
        )
