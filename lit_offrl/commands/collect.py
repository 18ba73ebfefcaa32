"""``lit-offrl collect``: make a dataset from any gymnasium environment with continuous actions."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_offrl.collecting.agents import AgentCollection
from lit_offrl.collecting.antmaze import AntMazeCollection
from lit_offrl.collecting.base import Recipe
from lit_offrl.collecting.graded import GradedCollection
from lit_offrl.collecting.ogbench import OGBenchCollection
from lit_offrl.collecting.ogbench_episodes import KINDS
from lit_offrl.collecting.planned import PlannedCollection
from lit_offrl.collecting.policies import PolicyCollection
from lit_offrl.collecting.steps import StepsCollection
from lit_offrl.commands.options import add_options
from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError, LitOffRLError
from lit_offrl.common.files import require_replaceable
from lit_offrl.common.user_code import command_line
from lit_offrl.evaluation.envs import name_env
from lit_offrl.tracking.references import checkpoint_path

RECIPES: dict[str, type[Recipe]] = {
    "--kind random, mixed, medium or expert": AgentCollection,
    "--kind policy": PolicyCollection,
    "--kind play, noisy, navigate or stitch": OGBenchCollection,
    "--planner waypoint in maze2d": PlannedCollection,
    "--planner waypoint in AntMaze": AntMazeCollection,
    "--planner graded": GradedCollection,
    "--planner steps": StepsCollection,
}
"""The recipes by the options that choose them; the other options are their fields."""

AGENTS = ("random", "mixed", "medium", "expert")


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
  play, noisy, navigate, stitch
           OGBench's data by its recipes, into NAME.npz and, a tenth as many episodes, NAME-val.npz:
           play and noisy of cube-{single,double,triple,quadruple}-v0, scene-v0 and
           puzzle-{3x3,4x4,4x5,4x6}-v0, navigate and stitch of
           pointmaze-{medium,large,giant,teleport}-v0. Sizes are the official ones, unless --steps,
           --episodes or --max_episode_steps say others. After an interruption, or a kill, the same
           command goes on

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
    acts = parser.add_mutually_exclusive_group(required=True)
    text = "Who acts in any environment, see below."
    acts.add_argument("--kind", choices=(*AGENTS, "policy", *KINDS), help=text)
    text = "Recipe of a family of environments, see below."
    acts.add_argument("--planner", choices=("waypoint", "graded", "steps"), help=text)
    add = parser.add_argument
    text = "Checkpoint of --kind policy, or in AntMaze the file of the policy that walks the ant."
    add("--policy", type=Path, metavar="FILE", help=text, default=argparse.SUPPRESS)
    ours = ("kind", "policy", "next_observations")
    add_options(parser, *RECIPES.values(), skip=ours, default=argparse.SUPPRESS)
    text = "Leave that column out, so that the file has half the size; readers take the next row's."
    leave_out: dict[str, Any] = {"action": "store_false", "default": argparse.SUPPRESS}
    names = ("--no_next_observations", "--no-next-observations")
    add(*names, dest="next_observations", help=text, **leave_out)
    add("--overwrite", action="store_true", help="Replace an existing file.")
    return parser


def _collection(options: argparse.Namespace) -> Recipe:
    """Return the recipe that the options choose, made from those that are given."""
    given = vars(options)
    if "policy" in given:
        given["policy"] = checkpoint_path(given["policy"])
    kind, planner, overwrite = given.pop("kind"), given.pop("planner"), given.pop("overwrite")
    chosen = f"--planner {planner}" if kind is None else "--kind random, mixed, medium or expert"
    if planner == "waypoint":
        chosen += " in AntMaze" if "policy" in given else " in maze2d"
    elif kind == "policy":
        chosen = "--kind policy"
    elif kind in KINDS:
        chosen = "--kind play, noisy, navigate or stitch"
    if kind not in KINDS:  # which know their environments before they are registered
        name_env(options.env)
    taken = RECIPES[chosen].taken(options.output)
    if taken is not None and not overwrite:
        raise ConfigError(f"{taken} exists: choose another --output or say --overwrite.")
    # found now, not after hours of training; the user has agreed to what is replaced
    require_replaceable(options.output, "dataset", lambda _: True, [given.get("policy")])
    if kind == "policy" and "policy" not in given:
        raise ConfigError("--kind policy needs --policy FILE, a checkpoint of 'fit'.")
    if kind in (*AGENTS, *KINDS):
        given["kind"] = kind
    fields = {name: {each.name for each in dataclasses.fields(RECIPES[name])} for name in RECIPES}
    for name in [name for name in given if name not in fields[chosen]]:
        owners = [recipe for recipe in RECIPES if name in fields[recipe]]
        which = "that" if len(owners) == 1 else "one of them"
        raise ConfigError(
            f"--{name} is of {' and of '.join(owners)}: choose {which}, or leave it out."
        )
    return RECIPES[chosen](**given)


def main(argv: Sequence[str]) -> int:
    """Collect a dataset; return 0, or 1 for a failing environment, or 128 + the signal's number."""
    collection = _collection(_parser().parse_args(argv))
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
            kept = collection.save(command, complete=code == 0)
    if refused is not None and not kept:
        raise refused
    kept = kept or "no rows, so nothing was written"
    if code:
        print(f"lit-offrl collect: {why}; kept {kept}.", file=sys.stderr)
        return code
    if isinstance(collection, AgentCollection) and collection.target_reached is False:
        print(f"The return {collection.target_return:g} was not reached within the steps given.")
    print(kept)
    return 0
