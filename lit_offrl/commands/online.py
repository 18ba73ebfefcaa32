"""``lit-offrl online``: collect with the current policy, fit on all data so far, and again.

    round 0   random actions ─▶ rows, policy 0 ─▶ fit on round 0       ─▶ checkpoint 0 ─▶ score
    round 1   checkpoint 0   ─▶ rows, policy 1 ─▶ fit on rounds 0 to 1 ─▶ checkpoint 1 ─▶ score
    round 2   checkpoint 1   ─▶ …

DVF's online mode (Mazoure et al., section 3.3, item 4). Each fit begins with new weights, since the
range of states, the range of rewards and the values sampled for all rows must be those of the data
that grew.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from lit_offrl.collecting.rounds import FIT, STATE, collect_round, grow, read_state, write_state
from lit_offrl.commands.options import add_options
from lit_offrl.commands.parsing import OneLineParser, positive, seed_number
from lit_offrl.common.errors import ConfigError, first_line
from lit_offrl.common.files import file_sha256
from lit_offrl.common.ranges import require_fields
from lit_offrl.common.user_code import command_line
from lit_offrl.evaluation.envs import make_env, name_env, require_step_limit
from lit_offrl.tracking.results import add_to_run, results
from lit_offrl.tracking.store import redacted, store_uri

_KEPT = ("env", "steps_per_round", "noise", "hold", "seed", "max_episode_steps", "episodes",
         "evaluation_seed")  # fmt: skip
_OF_COLLECTION = ("env", "seed", "noise", "hold", "num_envs", "max_episode_steps")
_OURS = {
    "--ckpt_path": "rounds resume by themselves",
    "--checkpoint.dirpath": "the rounds' checkpoints go to --output",
    "--data.init_args.dataset": "the data are those that the rounds collect",
    "--data.dataset": "the data are those that the rounds collect",
    "--seed_everything": "give --seed",
    "--evaluation.episodes": "give --episodes",
    "--trainer.devices": "one process trains and collects",
    "--trainer.num_nodes": "one process trains and collects",
}


@dataclass(frozen=True, kw_only=True)
class Online:
    """Collect with the current policy, fit on all data so far, and again.

    Args:
        env: A gymnasium id, or MODULE:ID for one of your own.
        output: Folder of all files.
        rounds: Number of rounds, at least 1.
        steps_per_round: Number of environment steps in each round, at least 1.
        noise: Standard deviation of the noise, at least 0, in half-ranges of the action.
        hold: Mean number of steps that noise and random actions last, at least 1.
        seed: Seed of fits, environments and noise.
        num_envs: Number of environments that are stepped together, at least 1.
        max_episode_steps: Step limit of episodes. (default: the registered one)
        episodes: Number of episodes of each round's evaluation, at least 1.
        evaluation_seed: Seed that each episode's own follows from.
        fit: Options of 'lit-offrl fit'.
        command: The command line.
    """

    env: str
    output: Path
    rounds: Annotated[int, positive] = 10
    steps_per_round: Annotated[int, positive] = 5000
    noise: Annotated[float, "[0, inf)"] = 0.3
    hold: float = 1.0
    seed: Annotated[int, seed_number] = 0
    num_envs: Annotated[int, positive] = 8
    max_episode_steps: Annotated[int | None, positive] = None
    episodes: Annotated[int, positive] = 20
    evaluation_seed: Annotated[int, seed_number] = 0
    fit: Sequence[str]
    command: str

    def __post_init__(self) -> None:
        name_env(self.env)
        env = make_env(self.env, max_episode_steps=self.max_episode_steps)
        with contextlib.closing(env):
            require_step_limit(env, self.env)
        require_fields(self)
        for name in (word.partition("=")[0] for word in self.fit):
            if name in _OURS:
                raise ConfigError(f"{name} is not for online: {_OURS[name]}.")

    def run(self) -> int:
        """Run the rounds that are missing; return 0, or the exit code of a fit that was stopped."""
        settings = {f"--{name}": getattr(self, name) for name in _KEPT}
        settings[FIT] = _grouped(self.fit)
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
        _print_curve(self.output, rounds)
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
        from lit_offrl.figures import improvement_curve, save_figure

        figure = improvement_curve(rounds, self.output.resolve().name)
        save_figure(figure, self.output / "curve.png")
        write_state(self.output, settings, rounds)
        self._log_to_mlflow(own, record, rounds)
        last = rounds[-1]
        print(f"round {number}: {last['environment_steps']:,} steps, return "
              f"{last['return_mean']:.1f} ± {last['return_standard_error']:.1f}, data "
              f"{last['collected_return_mean']:.1f}", flush=True)  # fmt: skip
        return 0

    def _fit(self, own: Path, dataset: Path) -> int:
        """Fit on a dataset into a round's folder, going on from the checkpoint there, if any."""
        from lit_offrl.cli import main as cli

        class RoundCLI(cli.OfflineCLI):
            """A fit whose module tells the rounds' policies apart."""

            def instantiate_trainer(self, **kwargs: Any) -> Any:
                _require_scalar(self.model)
                return super().instantiate_trainer(**kwargs)

        argv, checkpoint = self._fit_argv(own, dataset), own / "last.ckpt"
        if checkpoint.is_file():
            argv += ["--ckpt_path", str(checkpoint)]
        code = cli.main(argv, RoundCLI)
        if code == 0 and not checkpoint.is_file():
            raise ConfigError(
                f"{checkpoint}: the fit wrote no checkpoint: leave trainer.enable_checkpointing and"
                " trainer.fast_dev_run alone."
            )
        return code

    def _fit_argv(self, own: Path, dataset: Path) -> list[str]:
        """Return a fit's command, but for the checkpoint that it may go on from."""
        argv = ["fit", *self.fit, "--data.init_args.dataset", str(dataset)]
        argv += ["--checkpoint.dirpath", str(own), "--seed_everything", str(self.seed)]
        argv += ["--evaluation.episodes", "0"]
        return [*argv, "--trainer.devices", "1", "--trainer.num_nodes", "1"]

    def _evaluate(self, checkpoint: Path) -> Any:
        from lit_offrl.evaluation.evaluate import evaluate_module
        from lit_offrl.modules.checkpoints import load_module

        return evaluate_module(
            load_module(checkpoint),
            episodes=self.episodes,
            seed=self.evaluation_seed,
            num_envs=self.num_envs,
            env_id=self.env,
            max_episode_steps=self.max_episode_steps,
            checkpoint=checkpoint,
            checkpoint_rule="last",
            command=self.command,
        )

    def _log_to_mlflow(self, own: Path, record: Any, rounds: Sequence[Mapping[str, Any]]) -> None:
        """Add the record and the curve so far to the MLflow run of a round's fit, if it has one."""
        from lit_offrl.modules.checkpoints import mlflow_origin

        origin = mlflow_origin(own / "last.ckpt")
        if origin is None:
            return
        files, steps = [own / "evaluation.json"], record.training_steps or 0
        outbox = results(record.metrics(), files, "evaluate", steps)
        outbox.tags = {"lit_offrl.online": self.output.resolve().name,
                       "lit_offrl.round": str(len(rounds) - 1)}  # fmt: skip
        for one in rounds:
            names = ("return_mean", "collected_return_mean")
            metrics = {f"online/{name}": float(one[name]) for name in names}
            outbox.add(results(metrics, [], "", one["environment_steps"]))
        outbox.add(results({}, [self.output / STATE, self.output / "curve.png"], "online"))
        words = [word for given in self.fit for word in given.split("=", 1)]
        uris = [b for a, b in pairwise(words) if a.endswith(".init_args.tracking_uri")]
        try:
            add_to_run(origin["run_id"], store_uri(uris[-1] if uris else None), outbox)
        except Exception as error:  # the files are written; a store that moved must not undo that
            said = f"not logged to MLflow run {origin['run_id']}: {redacted(first_line(error))}"
            print(f"lit-offrl online: {said}", file=sys.stderr)


def main(argv: Sequence[str]) -> int:
    """Run what is missing of K rounds; return 0, or the exit code of a fit that was stopped."""
    parser = OneLineParser(
        prog="lit-offrl online",
        usage="lit-offrl online --env ID --output DIR [--rounds K ...] [options of 'fit']",
        description="Collect with the current policy, fit on all data so far, and again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""All other options are those of 'lit-offrl fit', e.g. --config FILE; the module has
to tell policies apart by a scalar (DVFModule with policy_representation scalar).

DIR holds for each round its rows (round-K.hdf5), its fit (round-K/) and its evaluation; all
rounds' rows in one file; online.json, curve.png. The same command goes on where it was stopped;
a larger --rounds adds rounds.""",
    )
    add_options(parser, Online, skip=("fit", "command"))
    options, fit = parser.parse_known_args(argv)
    command = redacted(command_line(["online", *argv]))
    return Online(**vars(options), fit=fit, command=command).run()


def _grouped(fit: Sequence[str]) -> list[str]:
    """Return options of fit with their values, files with the beginning of their sha256."""
    groups: list[str] = []
    for word in fit:
        name, _, value = word.partition("=")
        file = Path(value or name)
        if file.suffix in (".yaml", ".yml", ".json") and file.is_file():
            word += f" (sha256 {file_sha256(file)[:8]})"
        if word.startswith("--") or not groups:
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    return groups


def _require_scalar(module: Any) -> None:
    found = getattr(module, "policy_representation", None)
    if found != "scalar":
        kind = type(module).__name__ + (f" with policy_representation '{found}'" if found else "")
        raise ConfigError(
            f"{kind} has no scalar φ(π) to tell the rounds' policies apart: choose DVFModule with"
            " --model.init_args.policy_representation scalar."
        )


def _print_curve(folder: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{folder}: {len(rounds)} rounds")
    for heading in ("round", "environment steps", "data's return", "policy's return", "± s.e."):
        table.add_column(heading, justify="right")
    for one in rounds:
        numbers = (one["collected_return_mean"], one["return_mean"], one["return_standard_error"])
        table.add_row(
            str(one["round"]), f"{one['environment_steps']:,}", *(f"{n:.1f}" for n in numbers)
        )
    Console().print(table)
    print(f"curve: {folder / 'curve.png'}; last policy: round-{len(rounds) - 1}/last.ckpt")
