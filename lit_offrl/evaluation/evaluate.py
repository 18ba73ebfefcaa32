"""From a trained module to an evaluation record: what the command and the callback share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
import torch.distributed as dist

from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, EvaluationError, LitOffRLError, nearest
from lit_offrl.common.files import file_sha256
from lit_offrl.common.policy import Policy
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.environments import ENVIRONMENTS, REFERENCES
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.envs.differences import DIFFERENCES
from lit_offrl.evaluation.envs import make_env, require_step_limit, step_limit
from lit_offrl.evaluation.record import EvaluationRecord, config_sha256
from lit_offrl.evaluation.rollouts import Rollouts, merge, rollout
from lit_offrl.evaluation.scores import has_references, normalized_score

if TYPE_CHECKING:
    from lit_offrl.export.running import OnnxPolicy
    from lit_offrl.modules.base import OfflineModule

_MAZE2D = "lit_offrl/maze2d-"  # episodes go on at the goal, where every step has the same reward


def evaluate_module(
    module: OfflineModule,
    *,
    episodes: int,
    seed: int,
    num_envs: int = 8,
    env_id: str | None = None,
    max_episode_steps: int | None = None,
    policy_options: Mapping[str, Any] | None = None,
    gamma: float | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_rule: str | None = None,
    training_steps: int | None = None,
    command: str | None = None,
    **kwargs: Any,
) -> EvaluationRecord:
    """Roll out a module's policy and record the results.

    Where ``torch.distributed`` runs, the processes divide the episodes among them and all get the
    record of all episodes; each must call this. It leaves the global generators as they were.

    Args:
        module: Trained method with its ``spec``.
        episodes: Number of episodes of all processes together, at least 1.
        seed: Seed that gives each episode its own, with the episode's number.
        num_envs: Number of environments stepped together, at least 1.
        env_id: Gymnasium id of the environment; None for the dataset's own.
        max_episode_steps: Step limit instead of the environment's own; None takes that of the data
            where the environment has none.
        policy_options: Options of ``module.policy``.
        gamma: Discount factor in [0, 1] of discounted returns, which are recorded in addition to
            the others.
        progress: Whether to show a bar.
        checkpoint: File that the module came from.
        checkpoint_rule: Rule by which that file was chosen, such as ``last``.
        training_steps: Number of optimiser steps that the module has had.
        command: Command line, for the record.
        **kwargs: Further options of ``rollout``: record_video, video_size and stopping.

    Raises:
        Interrupted: A signal has ended the roll-outs, in all processes alike.
        EvaluationError: No environment is known, it does not fit, nothing limits its episodes, or
            the policy went wrong.
        ConfigError: The policy does not have one of the options.
    """
    options = dict(policy_options or {})
    if module.spec is None:
        raise EvaluationError("This module was never trained on a dataset, so it cannot act.")
    hyperparameters = {k: v for k, v in module.hparams.items() if not k.startswith("_")}

    def make() -> Policy:
        require_policy_options(type(module), options)
        return module.policy(**options)

    return _evaluate(
        make,
        module.spec,
        acting(module, seed),
        about={
            "method": type(module).__name__,
            "config_sha256": config_sha256(hyperparameters),
            "training_seed": module.seed,
            "training_steps": training_steps,
            "checkpoint_rule": checkpoint_rule,
            "policy_options": options,
        },
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        env_id=env_id,
        max_episode_steps=max_episode_steps,
        gamma=gamma,
        progress=progress,
        file=checkpoint,
        command=command,
        **kwargs,
    )


def evaluate_exported(
    policy: OnnxPolicy,
    *,
    episodes: int,
    seed: int,
    num_envs: int = 8,
    env_id: str | None = None,
    max_episode_steps: int | None = None,
    file: str | Path | None = None,
    **kwargs: Any,
) -> EvaluationRecord:
    """Roll out an exported policy and record the results, as ``evaluate_module`` does.

    Args:
        policy: The policy, which draws its noise by a seed of its own.
        episodes: Number of episodes, at least 1.
        seed: Seed that gives each episode its own, with the episode's number.
        num_envs: Number of environments stepped together, at least 1.
        env_id: Gymnasium id of the environment; None for that of its training's dataset.
        max_episode_steps: As in ``evaluate_module``.
        file: The policy's file, for the record.
        **kwargs: gamma, progress and command as in ``evaluate_module``, and further options of
            ``rollout``.

    Raises:
        Interrupted: A signal has ended the roll-outs.
        EvaluationError: No environment is known, it does not fit, nothing limits its episodes, or
            the policy went wrong.
    """
    facts = policy.facts
    names = ("method", "config_sha256", "training_seed", "training_steps", "checkpoint_rule")
    return _evaluate(
        lambda: policy,
        DatasetSpec.from_dict(facts.spec),
        contextlib.nullcontext(),
        about={name: getattr(facts, name) for name in (*names, "policy_options")},
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        env_id=env_id,
        max_episode_steps=max_episode_steps,
        file=file,
        **kwargs,
    )


def _evaluate(
    make: Callable[[], Policy],
    of: DatasetSpec,
    within: contextlib.AbstractContextManager[None],
    about: Mapping[str, Any],
    *,
    episodes: int,
    seed: int,
    num_envs: int,
    env_id: str | None,
    max_episode_steps: int | None,
    gamma: float | None = None,
    progress: bool = False,
    file: str | Path | None = None,
    command: str | None = None,
    **kwargs: Any,
) -> EvaluationRecord:
    """Roll out the policy that is made, and acts, within a context; ``about`` it says the rest."""
    spec, max_episode_steps = environment_of(of, env_id, max_episode_steps)
    assert spec.env_id is not None  # environment_of saw to it
    share = (0, 1)
    if dist.is_available() and dist.is_initialized():
        share = (dist.get_rank(), dist.get_world_size())
    outcome: Rollouts | LitOffRLError | int
    try:
        with within:
            outcome = rollout(
                make(),
                spec.env_id,
                episodes=episodes,
                seed=seed,
                num_envs=num_envs,
                max_episode_steps=max_episode_steps,
                shard=share,
                gamma=gamma,
                progress=progress and share[0] == 0,
                **kwargs,
            )
    except LitOffRLError as error:
        outcome = error
    except signals.Interrupted as stop:
        if share[1] == 1:
            raise
        outcome = stop.number
    rollouts = _gather(outcome, share[1])
    earned = rollouts.reached > 0 if spec.score_of == "success" else rollouts.returns
    scores = normalized_score(earned, spec) if has_references(spec) else None
    stayed = None
    if scores is not None and spec.env_id.startswith(_MAZE2D):
        stayed = tuple(normalized_score(rollouts.stayed_returns, spec).tolist())
    says = bool((rollouts.reached >= 0).all())  # whether the goal was reached
    return EvaluationRecord(
        **about,
        env_id=spec.env_id,
        max_episode_steps=max_episode_steps,
        environment_differences=DIFFERENCES.get(spec.env_id, ()),
        seed=seed,
        num_envs=num_envs,
        episodes=tuple(rollouts.episodes.tolist()),
        seeds=tuple(rollouts.seeds.tolist()),
        returns=tuple(rollouts.returns.tolist()),
        discounted_returns=None if gamma is None else tuple(rollouts.discounted_returns.tolist()),
        gamma=gamma,
        lengths=tuple(rollouts.lengths.tolist()),
        terminated=tuple(rollouts.terminated.tolist()),
        clipped_steps=int(rollouts.clipped.sum()),
        scores=None if scores is None else tuple(scores.tolist()),
        reached=tuple(rollouts.reached.tolist()) if says else None,
        tasks=tuple(rollouts.tasks.tolist()) if (rollouts.tasks > 0).all() else None,
        scores_if_stayed=stayed,
        dataset=spec.name,
        dataset_sha256=spec.sha256,
        dataset_handling=spec.handling,
        ref_min_score=spec.ref_min_score,
        ref_max_score=spec.ref_max_score,
        ref_source=spec.ref_source,
        checkpoint=str(file) if file else None,
        checkpoint_sha256=file_sha256(file) if file else None,
        command=command,
    )


def _gather(outcome: Rollouts | LitOffRLError | int, world_size: int) -> Rollouts:
    """Put all processes' episodes together; what one of them met is raised in every one.

    That is an error, or the number of a signal.
    """
    outcomes = [outcome] * world_size
    if world_size > 1:  # also after an error: the others wait here
        dist.all_gather_object(outcomes, outcome)
    parts = []
    for found in outcomes:
        if isinstance(found, LitOffRLError):
            raise found
        if isinstance(found, int):
            raise signals.Interrupted(found, agreed=True)
        parts.append(found)
    return merge(parts)


def require_policy_options(kind: type[OfflineModule], options: Mapping[str, Any]) -> None:
    """Refuse options that a method's policy does not have, and values of other types than theirs.

    Raises:
        ConfigError: naming the nearest option, or what the value has to be.
    """
    hints = kind.policy_options()
    known = list(hints)
    for name, value in options.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(
                f"The policy of {kind.__name__} has no option '{name}' ({has})."
                f"{nearest(name, known)}"
            )
        parts = _parts(hints[name])
        if all(part in _TYPES and not _fits(value, part) for part in parts):
            wanted = " or ".join(_TYPES[part][0] for part in parts)
            raise ConfigError(
                f"The option '{name}' of the policy of {kind.__name__} is {value!r}: give {wanted}."
            )


_TYPES: Mapping[Any, tuple[str, Any]] = {
    NoneType: ("null", NoneType),
    bool: ("true or false", bool),
    int: ("a whole number", Integral),
    float: ("a number", Real),
    str: ("text", str),
    Sequence: ("a list", Sequence | np.ndarray),
}
"""What a value may be by an annotation's type: in words, and its own type."""


def _fits(value: Any, part: Any) -> bool:
    """Whether a value may be given where an annotation has a type."""
    if type(value) in (bool, str):  # the one is a number and the other a sequence to Python
        return type(value) is part
    return isinstance(value, _TYPES[part][1])


def _parts(hint: Any) -> list[Any]:
    """Return the types of an annotation; which words a ``Literal`` takes, the method says."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [str if get_origin(part) is Literal else get_origin(part) or part for part in parts]


def environment_of(
    spec: DatasetSpec, env_id: str | None, max_episode_steps: int | None, *, make: bool = True
) -> tuple[DatasetSpec, int | None]:
    """Find out where policies of a dataset can be evaluated.

    Args:
        spec: Spec of the dataset.
        env_id: Gymnasium id of the environment; None for the dataset's own.
        max_episode_steps: Step limit instead of the environment's own.
        make: Whether to check that the environment can be made, fits, and has a step limit.

    Returns:
        The spec with the environment and its references, and the step limit, which is None where
        the environment's own holds.

    Raises:
        EvaluationError: no environment is known, it does not fit, or nothing limits its episodes.
    """
    if env_id is not None and env_id != spec.env_id:
        facts = ENVIRONMENTS.get(env_id)  # a dataset's references hold for its environment only
        unknown = {**dict.fromkeys(REFERENCES), "score_of": "return"}
        references: dict[str, Any] = unknown if facts is None else facts.references
        spec = dataclasses.replace(spec, env_id=env_id, why_no_env=None, **references)
    if spec.env_id is None and spec.why_no_env is not None:
        raise EvaluationError(
            f"A policy for '{spec.name}' cannot be evaluated: {spec.why_no_env}. "
            "Another environment of the same sizes may be named with --env."
        )
    if spec.env_id is None:
        raise EvaluationError(
            f"Nothing says which environment the dataset '{spec.name}' is from: name it with --env."
        )
    if not make:
        return spec, max_episode_steps
    env = make_env(spec.env_id, max_episode_steps=max_episode_steps, discrete=True)
    with contextlib.closing(env):
        if step_limit(env) is None and spec.max_episode_steps is not None:
            max_episode_steps = spec.max_episode_steps
        elif max_episode_steps is None:
            require_step_limit(env, spec.env_id)
        found = (env.observation_space.shape, env.action_space.shape)
    expected = ((spec.observation_dim,), (spec.action_dim,))
    if found != expected and spec.action_dim > 0:
        raise EvaluationError(
            f"Environment '{spec.env_id}' has observations and actions of shapes {found}, the"
            f" module was trained for {expected}: evaluate it where its data came from."
        )
    return spec, max_episode_steps


@contextlib.contextmanager
def acting(module: OfflineModule, seed: int) -> Iterator[None]:
    """Without gradients or dropout, and with global generators that depend on the seed alone."""
    training = {part: part.training for part in module.modules()}
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        # not torch.manual_seed, which prepares every kind of device: 2 ms, as much as a step
        torch.default_generator.manual_seed(mix(seed))
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(mix(seed))
        module.eval()
        try:
            yield
        finally:
            for part, mode in training.items():
                part.training = mode
