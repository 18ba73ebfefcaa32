"""Candidates of off-policy evaluation: whose states φ stands for, and what is done in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator, mix
from lit_offrl.datasets.rows import as_tensor
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.datasets.split import episodes_of_policies
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import GaussianPolicy

_CLONE, _CLONE_ROWS = 0xC10E, 0xC10F  # keep the streams of one seed apart
_HIDDEN, _STEPS, _ROWS, _RATE = (64, 64), 500, 256, 3e-3  # of a clone: seconds, not a study

Draw = Callable[[Tensor, ShardedGenerator], Tensor]
"""Draws actions (…, a), within the bounds, in raw observations (…, o)."""


@dataclass(frozen=True)
class Candidate:
    """A policy to evaluate.

    Attributes:
        policy: φ(π), its value of the column ``policy``.
        checkpoint: Checkpoint of the module that acts; None where the logged actions are cloned.
        draw: Draws the candidate's actions.
    """

    policy: float
    checkpoint: Path | None
    draw: Draw

    @property
    def label(self) -> str:
        """Name in tables."""
        name = f"{self.policy:g}"
        return name if self.checkpoint is None else f"{name}={self.checkpoint.name}"

    def actions(self, *keys: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return observations → actions with noise of its own, named by ``keys``."""
        noise = ShardedGenerator(*keys, device=device)
        return lambda observations: self.draw(observations, noise)


def parse_policies(text: str) -> list[tuple[float, Path | None]]:
    """Read ``2,5,8`` or ``2=walker.ckpt,5``: values of φ, and checkpoints that act there.

    Raises:
        ConfigError: The text is of another form, or names a candidate twice.
    """
    found: list[tuple[float, Path | None]] = []
    for word in text.split(","):
        value, named, path = word.partition("=")
        try:
            one = (float(value), Path(path.strip()) if named else None)
        except ValueError:
            one = (np.nan, None)
        if not np.isfinite(one[0]) or (named and not path.strip()):
            raise ConfigError(
                f"--policies: '{word.strip()}' is no policy: give values of the column 'policy', "
                "such as 2,5,8, or with checkpoints 2=walker.ckpt,5=runner.ckpt."
            )
        if one in found:
            raise ConfigError(f"--policies: '{word.strip()}' is named twice: name it once.")
        found.append(one)
    return found


def make_candidates(
    named: Sequence[tuple[float, Path | None]],
    dataset: OfflineDataset,
    module: OfflineModule,
    *,
    seed: int,
) -> list[Candidate]:
    """Clone the logged policies and load the checkpoints.

    A clone is fitted to the states and actions of its own policy's episodes, not to their rewards
    or outcomes. It draws actions from its Gaussian, since the logged policy may have drawn them,
    too: both the rewards and Q depend on the spread of actions, not on their mean alone.

    Args:
        named: φ and, for a checkpoint, its path.
        dataset: The data, with all episodes.
        module: Module whose normaliser and device are used.
        seed: Seed of the clones.

    Raises:
        DatasetError: A policy to be cloned is not in the data.
        ConfigError: A checkpoint cannot be used.
    """
    made = []
    for policy, path in named:
        if path is None:
            draw = _clone(policy, dataset, module, mix(seed, _CLONE, *policy.as_integer_ratio()))
        else:
            draw = _loaded(path, module)
        made.append(Candidate(policy, path, draw))
    return made


def _clone(policy: float, dataset: OfflineDataset, module: OfflineModule, seed: int) -> Draw:
    assert module.spec is not None  # it comes from a checkpoint
    own = np.repeat(episodes_of_policies(dataset, [policy]), dataset.episode_lengths)
    states = as_tensor(dataset.column("observations")[own], module.device)
    actions = as_tensor(dataset.column("actions")[own], module.device)
    low, high = module.spec.action_low, module.spec.action_high
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = GaussianPolicy(states.shape[1], actions.shape[1], hidden=_HIDDEN, low=low, high=high)
    net.to(module.device)
    with torch.no_grad():
        states = module.normalizer.normalize(states)
        # the spread of all actions bounds that in one state; from σ = 1 Adam takes long to go there
        net.raw_log_std.copy_(actions.std(dim=0).clamp_min(1e-3).log())
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE, fused=True)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    order = RowOrder(len(states), _ROWS, mix(seed, _CLONE_ROWS), device=module.device)
    for step in range(_STEPS):
        rows = order.rows(step)
        loss = -net.log_prob(states[rows], actions[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    net.requires_grad_(False)

    def draw(observations: Tensor, noise: ShardedGenerator) -> Tensor:
        mean = net(module.normalizer.normalize(observations))
        return net.perturb(mean, noise.normal(mean.shape))

    return draw


def _loaded(path: Path, module: OfflineModule) -> Draw:
    assert module.spec is not None
    other = load_module(path, module.device)
    spec, own = other.spec, module.spec
    if spec is None or (spec.observation_dim, spec.action_dim) != (
        own.observation_dim,
        own.action_dim,
    ):
        raise ConfigError(
            f"{path}: acts on other observations or actions than the evaluated data's "
            f"({own.observation_dim} and {own.action_dim} dimensions): take a checkpoint of them."
        )
    policy = other.policy()
    if not isinstance(policy, NetworkPolicy):
        raise ConfigError(
            f"{path}: the policy of {type(other).__name__} remembers earlier steps, which sampled "
            "states do not have: take a checkpoint whose policy acts on the state alone."
        )
    low, high = own.action_low, own.action_high

    def draw(observations: Tensor, noise: ShardedGenerator) -> Tensor:
        flat = observations.reshape(-1, observations.shape[-1]).cpu().numpy()
        taken = policy.act(flat)
        if low is not None and high is not None:
            taken = np.clip(taken, low, high).astype(np.float32)
        return torch.from_numpy(taken).to(observations.device).unflatten(0, observations.shape[:-1])

    return draw
