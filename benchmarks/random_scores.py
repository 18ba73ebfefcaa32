"""Returns of uniformly random actions beside D4RL's reference minima: ``… --help`` for options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import gymnasium
import numpy as np
from rich.console import Console
from rich.table import Table

import lit_offrl.envs  # noqa: F401  registers their ids
from lit_offrl.datasets.environments import ENVIRONMENTS
from lit_offrl.evaluation.envs import make_env
from lit_offrl.evaluation.statistics import standard_error


def random_returns(env_id: str, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the returns and lengths (episodes,) of random actions; episode k has the seed k."""
    env = make_env(env_id)
    env.action_space.seed(0)
    returns, lengths = np.zeros(episodes), np.zeros(episodes)
    for episode in range(episodes):
        env.reset(seed=episode)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            returns[episode] += float(reward)
            lengths[episode] += 1
            over = terminated or truncated
    env.close()
    return returns, lengths


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line an environment."""
    own = [i for i in ENVIRONMENTS if i.startswith("lit_offrl/") and i in gymnasium.registry]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_scores", description=__doc__)
    parser.add_argument("env_ids", nargs="*", metavar="ID", help="[every one of lit-offrl]")
    parser.add_argument("--episodes", type=int, default=20, help="[20]")
    options = parser.parse_args(argv)
    table = Table()
    for heading in ("environment", "random return", "steps", "D4RL's minimum", "score"):
        table.add_column(heading, overflow="fold")
    for env_id in options.env_ids or own:
        returns, lengths = random_returns(env_id, options.episodes)
        facts, mean = ENVIRONMENTS[env_id], float(returns.mean())
        low, high = facts.ref_min_score, facts.ref_max_score
        table.add_row(
            env_id,
            f"{mean:.2f} ± {standard_error(returns):.2f}",
            f"{lengths.mean():.0f}",
            f"{low:.2f}",
            f"{round(100 * (mean - low) / (high - low), 1) + 0.0:.1f}",  # never -0.0
        )
    table.caption = f"{options.episodes} episodes each, mean ± standard error"
    Console().print(table)


if __name__ == "__main__":
    main()
