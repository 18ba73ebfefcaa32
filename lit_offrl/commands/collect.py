"""``lit-offrl collect``: make a dataset from any gymnasium environment with continuous actions."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_offrl.collecting.agents import TARGET_RETURNS, AgentCollection
from lit_offrl.collecting.antmaze import AntMazeCollection
from lit_offrl.collecting.base import Collection
from lit_offrl.collecting.graded import GradedCollection
from lit_offrl.collecting.planned import PlannedCollection
from lit_offrl.collecting.policies import PolicyCollection
from lit_offrl.collecting.steps import StepsCollection
from lit_offrl.commands.parsing import OneLineParser, positive, seed_number
from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, LitOffRLError
from lit_offrl.common.user_code import command_line
from lit_offrl.evaluation.envs import name_env

KINDS = ("random", "mixed", "medium", "expert", "policy")
PLANNERS: dict[str, Callable[[argparse.Namespace], Collection]] = {
    "waypoint": PlannedCollection,
    "graded": GradedCollection,
    "steps": StepsCollection,
}
_OF_PLANNERS = {"goals": "waypoint", "start": "waypoint", "policies": "graded"}
# What only the agents of --kind have, by what it is where it was not given.
_OF_KINDS = {"thin": 1, "target_return": None, "train_steps": 200_000}
_OF_POLICIES = {"hold": 1.0, "num_envs": 8}


def _cells(text: str) -> list[tuple[int, int]]:
    """Read cells from ``(1,1),(7,9)``."""
    text = "".join(text.split())
    if not re.fullmatch(r"\(\d+,\d+\)(,\(\d+,\d+\))*", text):
        raise ValueError
    return [(int(i), int(j)) for i, j in re.findall(r"(\d+),(\d+)", text)]


def _cell(text: str) -> tuple[int, int]:
    (cell,) = _cells(text)
    return cell


_cells.__name__ = "list of cells, as '(1,1),(7,9)',"  # argparse names the type in its message
_cell.__name__ = "cell, as '(3,1)',"


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
  policy   the policy of the checkpoint --policy, of any method; its --noise lasts --hold steps

planners:
  waypoint lit_offrl/maze2d-*: the recipe of D4RL's maze2d data: one run to one random cell after
           another, in which timeouts say that a goal was reached or given up, and rewards[t] is of
           observations[t]. D4RL's noise is --noise 0.5. With --goals, episodes of the whole step
           limit instead, each to one of the goals in turn, from a random cell or from --start;
           the column 'policy' says to which.
           lit_offrl/antmaze-* with --policy: runs of 1,001 rows in which a policy walks the ant to
           one waypoint after another; D4RL's noise is --noise 0.2. The policy is a checkpoint, or
           an .npz of an MLP with the layers w0 (29, h), b0, w1, b1, ... (the last 8 wide, or 16
           with log std) and optionally log_std, observation_mean, observation_std and activation
           (relu, tanh, elu)
  graded   lit_offrl/mountain-car-v0: --policies controllers from random to good, an episode each in
           turn; the column 'policy' says whose, and the file what each earned
  steps    lit_offrl/random-walk-v0: the recipe of LDCQ, steps of random sign and 0.8 to 1 long

The target return is 1000 for hopper, 800 for halfcheetah, 600 for ant and 1300 for walker2d
(PyBullet); give --target_return for other environments. An interrupted run keeps its rows.""",
    )
    add = parser.add_argument
    add(
        "--env",
        required=True,
        metavar="ID",
        help="a gymnasium id, e.g. HopperBulletEnv-v0, or MODULE:ID for one of your own",
    )
    acts = parser.add_mutually_exclusive_group(required=True)
    acts.add_argument("--kind", choices=KINDS)
    acts.add_argument("--planner", choices=tuple(PLANNERS))
    add(
        "--policy",
        type=Path,
        metavar="FILE",
        help="the checkpoint of --kind policy; of AntMaze's planner: what walks the ant",
    )
    add("--output", required=True, type=Path, metavar="FILE.hdf5", help="what to write")
    add("--steps", type=positive, default=1_000_000, help="steps recorded at most [1000000]")
    add("--seed", type=seed_number, default=0, help="of SAC, the environment and all noise [0]")
    add("--target_return", type=float, metavar="R", help="ends the training of mixed and medium")
    add("--train_steps", type=positive, metavar="N", help="SAC's steps at most [200000]")
    add(
        "--noise",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="normal noise on planners, policies and the actor of medium and expert, in half-ranges"
        " of the action [0]",
    )
    add("--hold", type=float, metavar="N", help="of policy: steps that noise lasts in the mean [1]")
    add("--num_envs", type=positive, metavar="E", help="of policy: stepped together [8]")
    add(
        "--goals",
        type=_cells,
        metavar="CELLS",
        help="of waypoint: '(1,1),(7,9)' [random cells]",
    )
    add("--start", type=_cell, metavar="CELL", help="with --goals: '(3,1)' [a random cell each]")
    add("--policies", type=positive, metavar="K", help="of graded: how many [10]")
    add("--thin", type=positive, metavar="K", help="write every K-th episode only [1]")
    add("--max_episode_steps", type=positive, metavar="N", help="instead of the registered limit")
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
    name_env(options.env)
    if options.output.exists() and not options.overwrite:
        raise ConfigError(f"{options.output} exists: choose another --output or say --overwrite.")
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder of {options.output} cannot be made: {error}.") from error
    if options.output.is_dir() or not os.access(options.output.parent, os.W_OK):
        raise ConfigError(f"{options.output} cannot be written: choose another --output.")
    if not (math.isfinite(options.noise) and options.noise >= 0):
        raise ConfigError(f"--noise {options.noise:g}: give a number from 0 upwards.")
    for name, planner in _OF_PLANNERS.items():
        if getattr(options, name) is not None and options.planner != planner:
            raise ConfigError(f"--{name} is of --planner {planner}: choose that, or leave it out.")
    if options.start is not None and options.goals is None:
        raise ConfigError("--start is for episodes with fixed goals: give --goals too.")
    _check_policy(options)
    for name, default in _OF_KINDS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif options.planner is not None:
            raise ConfigError(f"--{name} is for --kind, which --planner replaces: leave it out.")
        elif options.kind == "policy":
            raise ConfigError(f"--{name} is for agents: --kind policy has none, leave it out.")
    if options.kind in ("mixed", "medium") and options.target_return is None:
        options.target_return = TARGET_RETURNS.get(options.env)
        if options.target_return is None:
            raise ConfigError(
                f"'{options.env}' has no usual level at which {options.kind} stops: give"
                " --target_return (inf for none)."
            )


def _check_policy(options: argparse.Namespace) -> None:
    wanted = options.kind == "policy"
    if wanted and options.policy is None:
        raise ConfigError("--kind policy needs --policy FILE, a checkpoint of 'fit'.")
    if options.policy is not None and not wanted and options.planner != "waypoint":
        raise ConfigError(
            "--policy is of --planner waypoint and of --kind policy: choose one, or leave it out."
        )
    for name, default in _OF_POLICIES.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif not wanted:
            raise ConfigError(f"--{name} is of --kind policy: choose that, or leave it out.")


def _collection(options: argparse.Namespace) -> Collection:
    if options.kind == "policy":
        return PolicyCollection(options)
    if options.policy is not None:
        return AntMazeCollection(options)
    return PLANNERS[options.planner](options) if options.planner else AgentCollection(options)


def main(argv: Sequence[str]) -> int:
    """Collect a dataset; return 0, or 1 for a failing environment, or 128 + the signal's number.

    Raises:
        LitOffRLError: an option cannot work; nothing was written.
    """
    options = _parser().parse_args(argv)
    _check(options)
    collection = _collection(options)
    code, why = 0, ""
    refused: LitOffRLError | None = None
    with signals.listening():
        try:
            collection.run()
        except LitOffRLError as error:
            refused, code, why = error, 1, str(error).rstrip(".")
        except signals.Interrupted as stop:
            code, why = 128 + stop.number, str(stop).rstrip(".")
        except Exception as error:  # whatever an environment may throw: the rows are worth more
            code, why = 1, f"stopped by {type(error).__name__}: {error}".splitlines()[0]
        command = command_line(["collect", *argv])
        with signals.held():  # the writing is not to be interrupted
            rows = collection.save(command, complete=code == 0)
    if refused is not None and not rows:
        raise refused
    kept = f"{rows:,} rows in {options.output}" if rows else "no rows, so nothing was written"
    if code:
        mark = " (complete: False)" if rows else ""
        print(f"lit-offrl collect: {why}; kept {kept}{mark}.", file=sys.stderr)
        return code
    if collection.target_reached is False:
        print(f"The return {options.target_return:g} was not reached within the steps given.")
    print(kept)
    return 0
