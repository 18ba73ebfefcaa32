"""``lit-offrl online`` in rounds: collect with the current policy, fit on all data so far, again.

    round 0   random actions ─▶ rows, policy 0 ─▶ fit on round 0       ─▶ checkpoint 0 ─▶ score
    round 1   checkpoint 0   ─▶ rows, policy 1 ─▶ fit on rounds 0 to 1 ─▶ checkpoint 1 ─▶ score
    round 2   checkpoint 1   ─▶ …

DVF's online mode (Mazoure et al., section 3.3, item 4). Each fit begins with new weights, since the
range of states, the range of rewards and the values sampled for all rows must be those of the data
that grew.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lit_offrl.collecting.rounds import FIT, collect_round, grow, read_state, write_state
from lit_offrl.commands.online_base import OURS, Online, fitted, grouped, print_curve
from lit_offrl.commands.parsing import positive
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_fields
from lit_offrl.evaluation.envs import make_env, name_env, require_step_limit

_KEPT = ("env", "steps_per_round", "noise", "hold", "seed", "max_episode_steps", "episodes",
         "evaluation_seed")  # fmt: skip
_OF_COLLECTION = ("env", "seed", "noise", "hold", "num_envs", "max_episode_steps")
_OURS = {
    **OURS,
    "--ckpt_path": "rounds resume by themselves",
    "--checkpoint.dirpath": "the rounds' checkpoints go to --output",
    "--data.init_args.dataset": "the data are those that the rounds collect",
    "--data.dataset": "the data are those that the rounds collect",
    "--seed_everything": "give --seed",
    "--evaluation.episodes": "give --episodes",
}


@dataclass(frozen=True, kw_only=True)
class Rounds(Online):
    """Collect with the current policy, fit on all data so far, and again.

    Args:
        rounds: Number of rounds, at least 1.
        steps_per_round: Number of environment steps in each round, at least 1.
    """

    noise: Annotated[float, "[0, inf)"] = 0.3
    rounds: Annotated[int, positive] = 10
    steps_per_round: Annotated[int, positive] = 5000

    def __post_init__(self) -> None:
        if self.env is None:
            raise ConfigError("--env is needed: name the environment of the rounds.")
        name_env(self.env)
        env = make_env(self.env, max_episode_steps=self.max_episode_steps)
        with contextlib.closing(env):
            require_step_limit(env, self.env)
        require_fields(self)
        self.require_free(_OURS)

    def run(self) -> int:
        """Run the rounds that are missing; return 0, or the exit code of a fit that was stopped."""
        settings = {f"--{name}": getattr(self, name) for name in _KEPT}
        settings[FIT] = grouped(self.fit)
        rounds = read_state(self.output, settings)
        if len(rounds) < self.rounds:
            from lit_offrl.cli.main import parse_options  # brings torch and Lightning: seconds

            parse_options(self._fit_argv(self.output, self.output))
        for number in range(len(rounds), self.rounds):
            code = self._round(number, rounds, settings)
            if code:
                print(f"lit-offrl online: stopped in round {number}; the same command goes on.",
                      file=sys.stderr)  # fmt: skip
                return code
        print_curve(self.output, rounds, f"{len(rounds)} rounds")
        last = f"round-{len(rounds) - 1}/last.ckpt"
        print(f"curve: {self.output / 'curve.png'}; last policy: {last}")
        return 0

    def _round(self, number: int, rounds: list[dict[str, Any]], settings: Mapping[str, Any]) -> int:
        """Run what is missing of a round and add it to ``rounds``; return fit's exit code."""
        own, before = (self.output / f"round-{each}" for each in (number, number - 1))
        collected = collect_round(
            self.output,
            number,
            self.command,
            steps=self.steps_per_round,
            policy=before / "last.ckpt" if number else None,
            **{name: getattr(self, name) for name in _OF_COLLECTION},
        )
        code = self._fit(own, grow(self.output, number + 1))
        if code:
            return code
        record = self._evaluate(own / "last.ckpt")
        record.save(own / "evaluation.json")
        figures = record.summary()
        rounds.append(
            {
                "round": number,
                "environment_steps": sum(one["rows"] for one in rounds) + collected["rows"],
                "rows": collected["rows"],
                "collected_return_mean": float(collected["return_mean"]),
                "collected_episodes": int(collected["episodes"]),
                **{key: figures[key] for key in figures if not key.startswith("clipped")},
            }
        )
        self._draw(rounds)
        write_state(self.output, settings, rounds)
        tags = {"lit_offrl.round": str(number)}
        self._log_to_mlflow(own, record, rounds, **tags)
        last = rounds[-1]
        print(f"round {number}: {last['environment_steps']:,} steps, return "
              f"{last['return_mean']:.1f} ± {last['return_standard_error']:.1f}, data "
              f"{last['collected_return_mean']:.1f}", flush=True)  # fmt: skip
        return 0

    def _fit(self, own: Path, dataset: Path) -> int:
        """Fit on a dataset into a round's folder, going on from the checkpoint there, if any."""
        from lit_offrl.cli.main import OfflineCLI

        class RoundCLI(OfflineCLI):
            """A fit whose module tells the rounds' policies apart."""

            def instantiate_trainer(self, **kwargs: Any) -> Any:
                _require_scalar(self.model)
                return super().instantiate_trainer(**kwargs)

        argv, checkpoint = self._fit_argv(own, dataset), own / "last.ckpt"
        if checkpoint.is_file():
            argv += ["--ckpt_path", str(checkpoint)]
        return fitted(argv, RoundCLI, checkpoint)

    def _fit_argv(self, own: Path, dataset: Path) -> list[str]:
        """Return a fit's command, but for the checkpoint that it may go on from."""
        argv = ["fit", *self.fit, "--data.init_args.dataset", str(dataset)]
        argv += ["--checkpoint.dirpath", str(own), "--seed_everything", str(self.seed)]
        argv += ["--evaluation.episodes", "0"]
        return [*argv, "--trainer.devices", "1", "--trainer.num_nodes", "1"]


def _require_scalar(module: Any) -> None:
    found = getattr(module, "policy_representation", None)
    if found != "scalar":
        kind = type(module).__name__ + (f" with policy_representation '{found}'" if found else "")
        raise ConfigError(
            f"{kind} has no scalar φ(π) to tell the rounds' policies apart: choose DVFModule with"
            " --model.init_args.policy_representation scalar."
        )
