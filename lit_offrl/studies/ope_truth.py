"""True values of logged policies, from their own episodes, and of others by roll-outs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.split import episodes_of_policies
from lit_offrl.evaluation.evaluate import evaluate_module
from lit_offrl.evaluation.statistics import standard_error
from lit_offrl.modules import DVFModule, load_module
from lit_offrl.studies.candidates import Candidate
from lit_offrl.studies.inputs import known_rewards


class Truth(NamedTuple):
    """Discounted returns: mean (K,), standard error (K,) and episodes (K,); NaN where unknown."""

    values: np.ndarray
    errors: np.ndarray
    episodes: np.ndarray
    unseen: float
    """Largest weight γ^length at which a recording was cut off."""


def true_returns(
    module: DVFModule,
    dataset: OfflineDataset,
    candidates: Sequence[Candidate],
    *,
    truth: Literal["data", "rollouts"],
    episodes: int,
    seed: int,
) -> Truth:
    """Return discounted returns, with the γ of DVF, of logged policies from all their episodes.

    Those of checkpoints are unknown to the ``data``; ``rollouts`` roll ``episodes`` of each out.

    Raises:
        DatasetError: The data have no rewards, or none in some rows.
        EvaluationError: A checkpoint cannot be rolled out.
    """
    skip, unseen, found = module.history, 0.0, []
    for one in candidates:
        returns = np.zeros(0)
        if one.checkpoint is None:
            own = own_episodes(dataset, one.policy, skip)
            returns = discounted_returns(dataset, module.gamma, skip)[own]
            ended = dataset.episode_terminated[own]
            rest = module.gamma ** (dataset.episode_lengths[own] - skip)
            unseen = max(unseen, float(np.where(ended, 0.0, rest).max()))
        elif truth == "rollouts":
            other = load_module(one.checkpoint, module.device)
            env_id = module.spec.env_id if module.spec is not None else None
            record = evaluate_module(
                other, episodes=episodes, seed=seed, gamma=module.gamma, env_id=env_id
            )
            returns = np.array(record.discounted_returns)
        found.append(returns)
    return Truth(
        np.array([each.mean() if len(each) else np.nan for each in found]),
        np.array([standard_error(each) for each in found]),
        np.array([len(each) for each in found]),
        unseen,
    )


def discounted_returns(dataset: OfflineDataset, gamma: float, skip: int = 0) -> np.ndarray:
    """Return Σ γ^t r of each episode (E,) from its step ``skip`` on, float64.

    Raises:
        DatasetError: The data have no rewards, or none in some rows.
    """
    rewards = known_rewards(dataset)
    step = np.arange(len(rewards)) - np.repeat(dataset.episodes[:, 0], dataset.episode_lengths)
    weights = np.where(step >= skip, float(gamma) ** np.maximum(step - skip, 0), 0.0)
    return np.add.reduceat(weights * rewards, dataset.episodes[:, 0])


def own_episodes(dataset: OfflineDataset, policy: float, skip: int) -> np.ndarray:
    """Numbers of a policy's whole episodes that are longer than ``skip``.

    Raises:
        DatasetError: There is no such episode.
    """
    own = episodes_of_policies(dataset, [policy]) & (dataset.episode_lengths > skip)
    if dataset.cut_off:
        own[-1] = False
    if not own.any():
        raise DatasetError(
            f"{dataset.spec.origin}: policy {policy:g} has no whole episode of more than {skip} "
            "steps: choose another policy."
        )
    return np.flatnonzero(own)
