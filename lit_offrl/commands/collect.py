"""``lit-offrl collect``: make a dataset from any gymnasium environment with continuous actions."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from tqdm import tqdm

from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.errors import ConfigError, LitOffRLError
from lit_offrl.evaluation.envs import box, find_spec, make_env
from lit_offrl.evaluation.record import now, package_versions
from lit_offrl.evaluation.recorder import Enough, Recorder, episode_returns
from lit_offrl.randomness import mix

if TYPE_CHECKING:
    from stable_baselines3 import SAC

# The recipe of d4rl-pybullet; what is not named is stable-baselines3's default.
SAC_RECIPE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "tau": 0.005,
    "batch_size": 100,
    "learning_starts": 100,
    "train_freq": 1,
    "gradient_steps": 1,
    "ent_coef": "auto",
    "policy_kwargs": {"net_arch": [256, 256]},
}
# The return of one episode at which d4rl-pybullet stopped training (`mixed`, `medium`).
TARGET_RETURNS = {
    "HopperBulletEnv-v0": 1000.0,
    "HalfCheetahBulletEnv-v0": 800.0,
    "AntBulletEnv-v0": 600.0,
    "Walker2DBulletEnv-v0": 1300.0,
}
QUANTILES = {"min": 0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1}
KINDS = ("random", "mixed", "medium", "expert")


class Interrupted(BaseException):
    """A signal asked to stop; not an Exception, so that nobody on the way swallows it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def _act(recorder: Recorder, choose: Callable[[np.ndarray], np.ndarray], seed: int) -> None:
    """Fill the recorder with episodes of ``choose``, an action for an observation (o,)."""
    observation, _ = recorder.reset(seed=mix(seed, 1) % 2**31)
    while True:  # until the recorder has enough
        observation, _, terminated, truncated, _ = recorder.step(choose(observation))
        if terminated or truncated:
            observation, _ = recorder.reset()


def _train(recorder: Recorder, recipe: dict[str, Any], steps: int, seed: int) -> SAC:
    """Train soft actor-critic (Haarnoja et al., 2018) on the recorder's environment."""
    try:
        import torch
        from stable_baselines3 import SAC
    except ImportError as error:
        raise ConfigError(
            "This kind of dataset trains an agent with stable-baselines3, which is not installed:"
            ' pip install "lit-offrl[collect]", or choose --kind random.'
        ) from error
    torch.set_num_threads(1)  # such small nets gain nothing from more, and sums keep their order
    model = SAC("MlpPolicy", recorder, seed=seed, device="cpu", **copy.deepcopy(recipe))
    with contextlib.suppress(Enough):
        model.learn(steps + 1)  # the recorder stops it, after the last step's transition
    return model


def _bar(total: int, what: str) -> tqdm:
    return tqdm(total=total, desc=what, unit="step", smoothing=0.02, dynamic_ncols=True)


class Collection:
    """One dataset in the making; what it has so far can be saved at any moment."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.recorder: Recorder | None = None
        self.recipe: dict[str, Any] | None = None
        self.target_reached: bool | None = None

    def _env(self) -> gymnasium.Env:
        return make_env(self.options.env, max_episode_steps=self.options.max_episode_steps)

    def run(self) -> None:
        """Collect until there is enough."""
        chosen = self.options
        env = self._env()
        low, high = box(env.action_space).low, box(env.action_space).high
        if not np.isfinite([low, high]).all():
            raise ConfigError(
                f"Environment '{chosen.env}' has unbounded actions: wrap it so that they are."
            )
        random = np.random.default_rng(mix(chosen.seed, 2))
        if chosen.kind == "random":
            with _bar(chosen.steps, "collecting") as bar, contextlib.suppress(Enough):
                self.recorder = Recorder(env, chosen.steps, bar=bar, keep=True)
                _act(self.recorder, lambda _: random.uniform(low, high), chosen.seed)
            return
        target = math.inf if chosen.kind == "expert" else chosen.target_return
        keep = chosen.kind == "mixed"
        steps = min(chosen.steps, chosen.train_steps) if keep else chosen.train_steps
        with _bar(steps, "training SAC") as bar:
            training = Recorder(env, steps, target=target, bar=bar, keep=keep)
            self.recorder = training if keep else None
            self.recipe = {**SAC_RECIPE, "buffer_size": min(steps, 1_000_000)}
            model = _train(training, self.recipe, steps, chosen.seed)
        self.target_reached = training.target_reached if target < math.inf else None
        if keep:
            return

        def choose(observation: np.ndarray) -> np.ndarray:
            action, _ = model.predict(observation, deterministic=True)
            noise = chosen.noise * (high - low) / 2 * random.standard_normal(low.shape)
            return np.clip(action + noise, low, high)

        with _bar(chosen.steps, "collecting") as bar, contextlib.suppress(Enough):
            self.recorder = Recorder(self._env(), chosen.steps, bar=bar, keep=True)
            _act(self.recorder, choose, chosen.seed)

    def save(self, command: str, *, complete: bool) -> int:
        """Write what there is, if anything, and return the number of rows."""
        if self.recorder is None or self.recorder.count == 0:
            return 0
        chosen = self.options
        columns, cut = self.recorder.recorded(chosen.thin)
        if not chosen.next_observations:
            del columns["next_observations"]
        returns = episode_returns(columns)
        returns = returns[:-1] if cut and len(returns) > 1 else returns
        ending = {
            "complete": complete,
            "last_episode_cut": cut,
            "environment_steps": self.recorder.count,
            "rows": len(columns["rewards"]),
            "episodes": len(returns),
            "return_mean": returns.mean(),
            **{f"return_{name}": np.quantile(returns, q) for name, q in QUANTILES.items()},
        }
        write_hdf5(chosen.output, columns, {**ending, **self._origin(command)})
        return len(columns["rewards"])

    def _origin(self, command: str) -> dict[str, Any]:
        """Say how the rows came to be; None is left out of the file."""
        chosen = self.options
        assert self.recorder is not None
        space = box(self.recorder.action_space)
        trained = chosen.kind != "random"
        return {
            "format": "d4rl",
            "env_id": chosen.env,
            "kind": chosen.kind,
            "seed": chosen.seed,
            "thin": chosen.thin,
            "max_episode_steps": chosen.max_episode_steps
            or find_spec(chosen.env).max_episode_steps,
            "action_low": space.low,
            "action_high": space.high,
            "algorithm": "stable-baselines3 SAC" if trained else "uniform random actions",
            "hyperparameters": json.dumps(self.recipe) if self.recipe else None,
            "train_steps": chosen.train_steps if trained else None,
            "target_return": chosen.target_return if trained else None,
            "target_reached": self.target_reached,
            "noise": chosen.noise if chosen.kind in ("medium", "expert") else None,
            "versions": json.dumps(package_versions()),
            "command": command,
            "date": now(),
        }


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive integer"  # argparse names the type in its message


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lit-offrl collect",
        description="Make a dataset from any gymnasium environment with continuous actions.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""kinds:
  random   uniform random actions
  mixed    every row of a SAC training run, until one episode reaches the target return, or for
           --steps or --train_steps steps, whichever are fewer
  medium   the deterministic actor as it was when one episode reached the target return
  expert   the deterministic actor after --train_steps steps

The target return is 1000 for hopper, 800 for halfcheetah, 600 for ant and 1300 for walker2d
(PyBullet); give --target_return for other environments. An interrupted run keeps its rows.""",
    )
    add = parser.add_argument
    add("--env", required=True, metavar="ID", help="a gymnasium id, e.g. HopperBulletEnv-v0")
    add("--kind", required=True, choices=KINDS)
    add("--output", required=True, type=Path, metavar="FILE.hdf5", help="what to write")
    add("--steps", type=_positive, default=1_000_000, help="steps recorded at most [1000000]")
    add("--seed", type=int, default=0, help="of SAC, the environment and all noise [0]")
    add("--target_return", type=float, metavar="R", help="ends the training of mixed and medium")
    add("--train_steps", type=_positive, default=200_000, help="SAC's steps at most [200000]")
    add(
        "--noise",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="normal noise on the actor of medium and expert, in half-ranges of the action [0]",
    )
    add("--thin", type=_positive, default=1, metavar="K", help="write every K-th episode only [1]")
    add("--max_episode_steps", type=_positive, metavar="N", help="instead of the registered limit")
    add(
        "--no-next-observations",
        dest="next_observations",
        action="store_false",
        help="leave that column out: half the size, readers take the following row's observation",
    )
    add("--overwrite", action="store_true", help="replace an existing file")
    return parser  # fmt: skip


def _check(options: argparse.Namespace) -> None:
    """Find what cannot work before hours of training, and fill in the task's target return."""
    find_spec(options.env)
    if options.output.exists() and not options.overwrite:
        raise ConfigError(f"{options.output} exists: choose another --output or say --overwrite.")
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder of {options.output} cannot be made: {error}.") from error
    if options.output.is_dir() or not os.access(options.output.parent, os.W_OK):
        raise ConfigError(f"{options.output} cannot be written: choose another --output.")
    if options.kind in ("mixed", "medium") and options.target_return is None:
        options.target_return = TARGET_RETURNS.get(options.env)
        if options.target_return is None:
            raise ConfigError(
                f"'{options.env}' has no usual level at which {options.kind} stops: give"
                " --target_return (inf for none)."
            )


def _ignore_signals() -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into :class:`Interrupted`, once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        _ignore_signals()
        raise Interrupted(number)

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        for name in before:
            signal.signal(name, interrupt)
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def main(argv: Sequence[str]) -> int:
    """Collect a dataset; return 0, or 1 for a failing environment, or 128 + the signal's number.

    Raises:
        LitOffRLError: an option cannot work; nothing was written.
    """
    options = _parser().parse_args(argv)
    _check(options)
    collection = Collection(options)
    code, why = 0, ""
    with _signals():
        try:
            collection.run()
        except LitOffRLError:
            raise
        except Interrupted as interrupted:
            code, why = 128 + interrupted.number, f"stopped by {interrupted}"
        except Exception as error:  # whatever an environment may throw: the rows are worth more
            code, why = 1, f"stopped by {type(error).__name__}: {error}".splitlines()[0]
        finally:
            _ignore_signals()  # the writing is not to be interrupted
        command = shlex.join(["lit-offrl", "collect", *argv])
        rows = collection.save(command, complete=code == 0)
    kept = f"{rows:,} rows in {options.output}" if rows else "no rows, so nothing was written"
    if code:
        mark = " (complete: False)" if rows else ""
        print(f"lit-offrl collect: {why}; kept {kept}{mark}.", file=sys.stderr)
        return code
    if collection.target_reached is False:
        print(f"The return {options.target_return:g} was not reached within the steps given.")
    print(kept)
    return 0
