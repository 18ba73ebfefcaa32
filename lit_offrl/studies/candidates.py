"""Candidates of off-policy evaluation: whose states φ stands for, and what is done in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.rows import as_tensor
from lit_offrl.datasets.sampler import RowOrder
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.split import episodes_of_policies
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.modules.policies import NetworkPolicy
from lit_offrl.nets import GaussianPolicy
from lit_offrl.tracking.references import checkpoint_path

_CLONE, _CLONE_ROWS = 0xC10E, 0xC10F  # keep the streams of one seed apart
_HIDDEN, _STEPS, _ROWS, _RATE = (64, 64), 500, 256, 3e-3  # of a clone: seconds, not a study

Act = Callable[[Tensor], Tensor]
"""Maps raw observations (…, o) to actions (…, a)."""

Draw = Callable[[Tensor, ShardedGenerator], Tensor]
"""Draws actions (…, a), within the bounds, in raw observations (…, o)."""


@dataclass(frozen=True)
class Candidate:
    """A policy to evaluate.

    Attributes:
        policy: Value of the column ``policy``, φ(π).
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
            one = (float(value), checkpoint_path(path.strip()) if named else None)
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

    ``named`` has φ and, for a checkpoint, its path; the normaliser and the device are those of
    ``module``.

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
    act, remark = acting(other, module.spec, str(path))
    if remark is not None:
        raise ConfigError(
            f"{path}: the policy of {type(other).__name__} remembers earlier steps, which sampled "
            "states do not have: take a checkpoint whose policy acts on the state alone."
        )
    return lambda observations, noise: act(observations)


def acting(module: OfflineModule, spec: DatasetSpec, where: str) -> tuple[Act, str | None]:
    """Return a module's policy on single states, and a remark on how it acts, if there is one.

    Actions are clipped to the data's bounds. A policy that holds something between steps, such as
    LDCQ's skills, begins anew in each state. ``where`` names the module in messages.

    Raises:
        ConfigError: It acts on other observations or actions than the data's, or cannot act.
        EvaluationError: The policy needs a goal, and none is given; raised when it acts.
    """
    own = module.spec
    sizes = (spec.observation_dim, spec.action_dim)
    if own is None or (own.observation_dim, own.action_dim) != sizes:
        raise ConfigError(
            f"{where}: acts on other observations or actions than the data's ({sizes[0]} and"
            f" {sizes[1]} dimensions): name its own data with --data, or leave it out."
        )
    try:
        policy = module.policy()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    remark = None
    if not isinstance(policy, NetworkPolicy):
        remark = "remembers earlier steps, and is valued as if it began anew in each state"

    def act(observations: Tensor) -> Tensor:
        flat = observations.reshape(-1, observations.shape[-1]).cpu().numpy()
        policy.reset()
        try:
            taken = np.asarray(policy.act(flat), np.float32)
        except EvaluationError as error:
            raise EvaluationError(f"{where}: {error}") from error
        if not np.isfinite(taken).all():
            raise EvaluationError(
                f"{where}: its policy's actions are not finite: its training went wrong."
            )
        if spec.action_low is not None and spec.action_high is not None:
            taken = np.clip(taken, spec.action_low, spec.action_high).astype(np.float32)
        return torch.from_numpy(taken).to(observations.device).unflatten(0, observations.shape[:-1])

    return act, remark
