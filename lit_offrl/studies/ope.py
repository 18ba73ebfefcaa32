"""Off-policy evaluation: which of several candidate policies is the best, from logged data alone.

DVF's values for policies that it was not trained on, by their φ, beside fitted Q evaluation on the
same training rows, the same candidate actions and the same initial states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.rows import as_tensor
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.diffusion import map_encoded
from lit_offrl.evaluation.statistics import standard_error
from lit_offrl.modules import DVFModule
from lit_offrl.modules.dvf_value import CHAINS
from lit_offrl.modules.occupancy import History
from lit_offrl.studies.candidates import Candidate
from lit_offrl.studies.fqe import FittedQ
from lit_offrl.studies.fqe_settings import FQESettings
from lit_offrl.studies.ope_truth import own_episodes

_STARTS, _VALUES, _TARGETS, _LAST = 1, 2, 3, 4  # keep the streams of one seed apart


class Starts(NamedTuple):
    """States that candidates are valued from."""

    observations: Tensor
    """Raw observations (K, M, o) of each candidate."""
    histories: list[History] | None
    """Raw history (M, k, …) of each candidate, for the sequential representation."""


class Estimates(NamedTuple):
    """Values of K candidates, in the reward's units, with the standard errors of their means."""

    values: np.ndarray
    errors: np.ndarray
    seconds: float


def require_evaluable(module: DVFModule, named: Sequence[tuple[float, Path | None]]) -> None:
    """Refuse candidates (each φ, and a checkpoint or None) whose values cannot be estimated.

    Raises:
        ConfigError: ρ does not depend on the policy, or φ of a checkpoint is not known.
    """
    representation = module.policy_representation
    if representation == "none":
        raise ConfigError(
            "This DVFModule was trained with policy_representation 'none', so its values are of "
            "the logged policies together: train one with 'scalar' or 'sequential'."
        )
    unknown = [path for _, path in named if path is not None]
    if representation == "sequential" and unknown:
        raise ConfigError(
            f"{unknown[0]}: with policy_representation 'sequential' φ is the states that "
            "a policy came through, and a checkpoint that never acted has none: name logged "
            "policies alone, or train with 'scalar'."
        )


def initial_states(
    module: DVFModule,
    dataset: OfflineDataset,
    candidates: Sequence[Candidate],
    *,
    most: int,
    seed: int,
) -> Starts:
    """Choose up to ``most`` states to begin in.

    With a scalar φ those are first states of any of the file's episodes, the same for all
    candidates. A sequential φ is not known in an episode's first state: there it is the state after
    the first k of each of the candidate's own episodes, and values and truth are from there on.

    Raises:
        DatasetError: A candidate has no episode of more than k steps.
    """
    random = np.random.default_rng(mix(seed, _STARTS))

    def some(rows: np.ndarray) -> np.ndarray:
        return np.sort(random.permutation(rows)[:most])

    def column(name: str, rows: np.ndarray) -> Tensor:
        return as_tensor(dataset.columns[name][rows], module.device)

    if module.policy_representation != "sequential":
        states = column("observations", some(dataset.episodes[:, 0]))
        return Starts(states.expand(len(candidates), -1, -1), None)
    k = module.history
    found = [
        some(dataset.episodes[own_episodes(dataset, one.policy, k), 0] + k) for one in candidates
    ]
    fewest = min(len(rows) for rows in found)
    found = [rows[:fewest] for rows in found]
    before = [rows[:, None] + np.arange(-k, 0) for rows in found]
    actions = "actions" if module.history_actions else None
    histories = [
        History(
            column("observations", rows),
            None if actions is None else column(actions, rows),
            torch.ones(rows.shape, dtype=torch.bool, device=module.device),
        )
        for rows in before
    ]
    return Starts(torch.stack([column("observations", rows) for rows in found]), histories)


def dvf_values(
    module: DVFModule,
    candidates: Sequence[Candidate],
    starts: Starts,
    *,
    samples: int,
    seed: int,
) -> Estimates:
    """Value candidates by DVF: ρ at the candidate's φ, r at the candidate's actions.

    All candidates share the noise of the ``samples`` states drawn for each initial state, so that
    its error moves their order less than their values.
    """
    began = time.perf_counter()
    means, errors = [], []
    for number, one in enumerate(candidates):
        actions = one.actions(seed, _VALUES, device=module.device)
        parts = []
        states = starts.observations[number]
        known = None if starts.histories is None else starts.histories[number]
        for rows in torch.arange(len(states)).split(max(1, CHAINS // samples)):
            part, history = map_encoded(lambda each, rows=rows: each[rows], (states, known))
            parts.append(
                module.value(
                    part,
                    history=history,
                    policy=torch.full((len(rows),), one.policy, device=module.device),
                    num_samples=samples,
                    actions=actions,
                    seed=mix(seed, _VALUES, int(rows[0])),
                )
            )
        values = torch.cat(parts).double().cpu().numpy()
        means.append(values.mean())
        errors.append(standard_error(values))
    return Estimates(np.array(means), np.array(errors), time.perf_counter() - began)


def fqe_values(
    module: DVFModule,
    train_set: OfflineDataset,
    candidates: Sequence[Candidate],
    starts: Starts,
    *,
    settings: FQESettings,
    seed: int,
    progress: bool = False,
) -> tuple[Estimates, np.ndarray]:
    """Value candidates by fitted Q evaluation on the training rows.

    Returns:
        The estimates, and those (10, K) after each tenth of the steps, which show whether they
        converged.
    """
    began = time.perf_counter()
    drawn = [one.actions(seed, _TARGETS, device=module.device) for one in candidates]
    last = [one.actions(seed, _LAST, device=module.device) for one in candidates]

    def actions_of(draws: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
        def actions(states: Tensor) -> Tensor:
            own = states if states.ndim == 3 else states.expand(len(draws), -1, -1)
            return torch.stack([draw(rows) for draw, rows in zip(draws, own, strict=True)])

        return actions

    fitted = FittedQ(
        train_set,
        actions_of(drawn),
        len(candidates),
        gamma=module.gamma,
        normalize=module.normalizer.normalize,
        settings=settings,
        seed=seed,
        device=module.device,
    )
    values, trace = fitted.fit_and_value(
        starts.observations, value_actions=actions_of(last), progress=progress
    )
    errors = np.array([standard_error(each) for each in values])
    return Estimates(trace[-1], errors, time.perf_counter() - began), trace
