"""Do DVF's values go with what policies earn? (Mazoure et al., section 4.1, Fig. 2).

For each policy φ of the data and at each of some gradient steps: the mean return of φ's episodes,
V(s0; φ) at their first states, and the reward predicted at states drawn from ρ(· | s0, φ). The last
two are drawn independently, else their correlation would be that of a number with itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import truncated_geometric
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.modules.dvf import DVFModule
from lit_offrl.modules.dvf_value import CHAINS
from lit_offrl.studies.inputs import (
    CheckpointStudy,
    Study,
    known_rewards,
    load_data,
    load_dvf,
    policies_of,
    protocol_of,
)
from lit_offrl.studies.measures import correlations

_ENVIRONMENTS = ("lit_offrl/mountain-car-v0", "MountainCarContinuous-v0")
_KNOWN = 0.01  # rows count whose return lacks less than this share of what is after a time limit
_PAIRS = (("return", "value"), ("value", "reward"), ("return", "reward"))


@dataclass(frozen=True, kw_only=True)
class MountainCar(CheckpointStudy):
    """Values of the policies of Mountain Car's data beside what these earned.

    Args:
        ckpt_path: A checkpoint, or the folder of a run with checkpoint.keep all.
        starts: Number of initial states valued for each policy, at least 1.
        states: Number of states along the way valued for each policy, at least 1.
        samples: Number of states drawn for one value, n, at least 1.
    """

    starts: Annotated[int, "[1, inf)"] = 10
    states: Annotated[int, "[1, inf)"] = 20
    samples: Annotated[int, "[1, inf)"] = 128

    def run(self) -> Study:
        """Measure; see :func:`measure`."""
        paths = checkpoints_in(self.ckpt_path)
        last = paths[max(paths)]
        module = load_dvf(last, self.device, values=True)
        data = load_data(self.data, last, ("policy", "rewards"))
        if data.spec.env_id not in _ENVIRONMENTS:
            raise ConfigError(
                f"{data.spec.origin}: is of '{data.spec.env_id}'; this figure is of Mountain Car: "
                "collect data of lit_offrl/mountain-car-v0 with --planner graded."
            )
        truth = Truth(data, module.gamma, self.states, self.seed)
        sizes = {"starts": self.starts, "samples": self.samples, "seed": self.seed}
        by_step = []
        for step, path in sorted(paths.items()):
            now = load_dvf(path, self.device, values=True)
            by_step.append({"step": step, **measure(now, truth, **sizes, along=path == last)})
        final = by_step[-1]
        metrics = {
            f"{kind}_{name}": value
            for name, both in final["correlations"].items()
            for kind, value in both.items()
        }
        numbers: dict[str, Any] = {
            "gamma": module.gamma,
            "policies": truth.policies,
            "return": truth.discounted,
            "undiscounted_return": truth.undiscounted,
            "episodes": [len(own) for own in truth.first],
            "by_step": by_step,
        }
        more = {"gamma": module.gamma, **sizes, "states": self.states, "checkpoints": len(paths)}
        return Study(numbers, metrics, protocol_of(last, data, **more), last)


def checkpoints_in(path: Path) -> dict[int, Path]:
    """Return checkpoints by their gradient step: a file's own, or all ``step-*.ckpt`` of a folder.

    Raises:
        ConfigError: A folder has none.
    """
    if not path.is_dir():
        return {0: path}
    found = {
        int(match[1]): file
        for file in path.iterdir()
        if (match := re.fullmatch(r"step-(\d+)\.ckpt", file.name))
    }
    if not found:
        raise ConfigError(
            f"{path}: has no step-*.ckpt: train with --checkpoint.keep all, or name one .ckpt."
        )
    return found


class Truth:
    """Returns of the policies of a dataset with columns ``policy`` and ``rewards``.

    Args:
        data: The data.
        gamma: Discount γ.
        states: Number of states along the way of each policy.
        seed: Seed of the choice of states.

    Attributes:
        policies: Indices φ (K,) of the policies.
        first: First states (E_k, o) of each policy's episodes.
        discounted: Mean discounted return of each policy's episodes, (K,).
        undiscounted: Mean return of each policy's episodes, (K,).
        states: States along the way (K, M, o), whose whole return is known; None where a policy
            has none.
        returns: Discounted returns from these states on, (K, M).
    """

    def __init__(self, data: OfflineDataset, gamma: float, states: int, seed: int) -> None:
        of_episode = policies_of(data)
        returns, starts = discounted_returns(data, gamma), data.episodes[:, 0]
        observations, earned = data.columns["observations"], data.episode_returns()
        self.policies = np.unique(of_episode)
        mine = [of_episode == policy for policy in self.policies]
        self.first = [observations[starts[own]] for own in mine]
        self.discounted = np.array([returns[starts[own]].mean() for own in mine])
        self.undiscounted = np.array([earned[own].mean() for own in mine])
        left = np.repeat(data.episodes[:, 1], data.episode_lengths) - np.arange(len(data))
        whole = np.repeat(data.episode_terminated, data.episode_lengths) | (gamma**left < _KNOWN)
        random, column = np.random.default_rng(mix(seed, 7)), data.columns["policy"]
        rows = [np.flatnonzero(whole & (column == policy)) for policy in self.policies]
        self.states: np.ndarray | None = None
        if all(len(some) for some in rows):
            chosen = np.stack([random.choice(some, states) for some in rows])
            self.states, self.returns = observations[chosen], returns[chosen]


def discounted_returns(data: OfflineDataset, gamma: float) -> np.ndarray:
    """Return Σ_i γ^i r_{t+i} to the end of each row's episode (N,), float64.

    Raises:
        DatasetError: The data have no rewards, or none in some rows.
    """
    returns = known_rewards(data)
    for start, stop in data.episodes.tolist():
        returns[start:stop] = lfilter([1.0], [1.0, -gamma], returns[start:stop][::-1])[::-1]
    return returns


def measure(
    module: DVFModule, truth: Truth, *, starts: int, samples: int, seed: int, along: bool
) -> dict[str, Any]:
    """Return each policy's value and predicted reward, and how they go with the returns.

    They are means over ``starts`` initial states and ``samples`` states drawn for each of these.
    ``along`` values states along the way, too.
    """
    value, reward = [], []
    for policy, first in zip(truth.policies, truth.first, strict=True):
        value.append(_values(module, first[:starts], policy, samples, seed).mean())
        reward.append(_rewards(module, first[:starts], policy, samples, seed + 1).mean())
    of = {"return": truth.discounted, "value": np.array(value), "reward": np.array(reward)}
    together = {f"{a}_{b}": correlations(of[a], of[b]) for a, b in _PAIRS}
    together["undiscounted_return_value"] = correlations(truth.undiscounted, of["value"])
    numbers: dict[str, Any] = {"value": of["value"], "reward": of["reward"]}
    if along and truth.states is not None:
        pairs = zip(truth.states, truth.policies, strict=True)
        numbers["state_values"] = np.stack(
            [_values(module, some, policy, samples, seed + 2) for some, policy in pairs]
        )
        numbers["state_returns"] = truth.returns
        flat = numbers["state_values"].ravel(), truth.returns.ravel()
        together["states_return_value"] = correlations(*flat)
    return numbers | {"correlations": together}


def _parts(
    module: DVFModule, states: np.ndarray, policy: float, samples: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield the states (M, o), their φ (M,) and a seed, in parts of bounded memory."""
    for number, part in enumerate(np.array_split(states, -(-len(states) * samples // CHAINS))):
        rows = torch.from_numpy(part).to(module.device)
        phi = torch.full((len(rows),), float(policy), device=module.device)
        yield rows, phi, mix(seed, number)


def _values(
    module: DVFModule, states: np.ndarray, policy: float, samples: int, seed: int
) -> np.ndarray:
    """Return V(s; φ) (M,) of states (M, o)."""
    found = [
        module.value(rows, policy=phi, num_samples=samples, seed=keyed).cpu()
        for rows, phi, keyed in _parts(module, states, policy, samples, seed)
    ]
    return torch.cat(found).double().numpy()


def _rewards(
    module: DVFModule, states: np.ndarray, policy: float, samples: int, seed: int
) -> np.ndarray:
    """Return the mean (M,) of r(s', π(s')) over s' ~ ρ(· | s, φ), with 0 past a terminal."""
    limit = float("inf") if module.max_offset is None else module.max_offset
    found = []
    for rows, phi, keyed in _parts(module, states, policy, samples, seed):
        drawn = torch.Generator().manual_seed(keyed)
        uniforms = torch.rand(len(rows), samples, generator=drawn, dtype=torch.float64)
        offsets = truncated_geometric(uniforms, module.gamma, limit).to(module.device)
        futures, absorbed = module.sample_future(rows, offsets, policy=phi, seed=keyed)
        rewards = module.predicted_reward(futures).masked_fill(absorbed, 0.0)
        found.append(rewards.mean(dim=1).cpu())
    return torch.cat(found).double().numpy()
