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
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_offrl.collecting.rounds import FIT, STATE, collect_round, grow, read_state, write_state
from lit_offrl.commands.parsing import OneLineParser, positive, seed_number
from lit_offrl.common.errors import ConfigError, first_line
from lit_offrl.common.files import file_sha256
from lit_offrl.common.user_code import command_line
from lit_offrl.evaluation.envs import make_env, name_env, require_step_limit
from lit_offrl.tracking.results import add_to_run, results
from lit_offrl.tracking.store import redacted, store_uri

_KEPT = ("env", "steps_per_round", "noise", "hold", "seed", "max_episode_steps", "episodes",
         "evaluation_seed")  # fmt: skip
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


def main(argv: Sequence[str]) -> int:
    """Run what is missing of K rounds; return 0, or the exit code of a fit that was stopped.

    Raises:
        LitOffRLError: an option, the environment or the module cannot be used.
    """
    options, fit = _parser().parse_known_args(argv)
    _check(options, fit)
    command = redacted(command_line(["online", *argv]))
    folder: Path = options.output
    settings = {f"--{name}": getattr(options, name) for name in _KEPT}
    settings[FIT] = _grouped(fit)
    rounds = read_state(folder, settings)
    if len(rounds) < options.rounds:
        from lit_offrl.cli.main import require_options  # brings torch and Lightning: seconds

        require_options(_fit_words(folder, folder, options, fit))
    for number in range(len(rounds), options.rounds):
        code = _round(number, rounds, settings, options, fit, command)
        if code:
            print(f"lit-offrl online: stopped in round {number}; the same command goes on.",
                  file=sys.stderr)  # fmt: skip
            return code
    _finish(folder, rounds)
    return 0


def _parser() -> OneLineParser:
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
    add = parser.add_argument
    add(
        "--env",
        required=True,
        metavar="ID",
        help="A gymnasium id, or MODULE:ID for one of your own.",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="Folder of all files.")
    for name, kind, default, metavar, text in (
        ("rounds", positive, 10, "K", "Number of rounds."),
        ("steps_per_round", positive, 5000, "N", "Number of environment steps in each round."),
        (
            "noise",
            float,
            0.3,
            "X",
            "Standard deviation of the noise, in half-ranges of the action.",
        ),
        ("hold", float, 1.0, "N", "Mean number of steps that noise and random actions last."),
        ("seed", seed_number, 0, "N", "Seed of fits, environments and noise."),
        ("num_envs", positive, 8, "E", "Number of environments that are stepped together."),
        ("episodes", positive, 20, "N", "Number of episodes of each round's evaluation."),
        ("evaluation_seed", seed_number, 0, "N", "Seed that each episode's own follows from."),
    ):
        text += " (default: %(default)s)"
        add(f"--{name}", type=kind, default=default, metavar=metavar, help=text)
    limit = "Step limit of episodes. (default: the registered one)"
    add("--max_episode_steps", type=positive, metavar="N", help=limit)
    return parser


def _check(options: argparse.Namespace, fit: Sequence[str]) -> None:
    name_env(options.env)
    with contextlib.closing(
        make_env(options.env, max_episode_steps=options.max_episode_steps)
    ) as env:
        require_step_limit(env, options.env)
    if not (math.isfinite(options.noise) and options.noise >= 0):
        raise ConfigError(f"--noise {options.noise:g}: give a number from 0 upwards.")
    for word in fit:
        why = _OURS.get(word.partition("=")[0])
        if why is not None:
            raise ConfigError(f"{word.partition('=')[0]} is not for online: {why}.")


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


def _round(
    number: int,
    rounds: list[dict[str, Any]],
    settings: Mapping[str, Any],
    options: argparse.Namespace,
    fit: Sequence[str],
    command: str,
) -> int:
    """Run what is missing of a round and add it to ``rounds``; return fit's exit code."""
    folder: Path = options.output
    before = folder / f"round-{number - 1}" / "last.ckpt" if number else None
    same = ("env", "seed", "noise", "hold", "num_envs", "max_episode_steps")
    chosen = {name: getattr(options, name) for name in same}
    steps = options.steps_per_round
    collected = collect_round(folder, number, command, steps=steps, policy=before, **chosen)
    dataset = grow(folder, number + 1)
    own = folder / f"round-{number}"
    code = _fit(own, dataset, options, fit)
    if code:
        return code
    record = _evaluate(own / "last.ckpt", options, command)
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
    _draw(folder, rounds)
    write_state(folder, settings, rounds)
    _log_to_mlflow(own, record, rounds, folder, _store(fit))
    last = rounds[-1]
    print(f"round {number}: {last['environment_steps']:,} steps, return "
          f"{last['return_mean']:.1f} ± {last['return_standard_error']:.1f}, data "
          f"{last['collected_return_mean']:.1f}", flush=True)  # fmt: skip
    return 0


def _fit(own: Path, dataset: Path, options: argparse.Namespace, fit: Sequence[str]) -> int:
    """Fit on a dataset into a round's folder, going on from the checkpoint there, if any."""
    from lit_offrl.cli import main as cli

    class RoundCLI(cli.OfflineCLI):
        """A fit whose module tells the rounds' policies apart."""

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            _require_scalar(self.model)
            return super().instantiate_trainer(**kwargs)

    words = _fit_words(own, dataset, options, fit)
    checkpoint = own / "last.ckpt"
    if checkpoint.is_file():
        words += ["--ckpt_path", str(checkpoint)]
    code = cli.main(words, RoundCLI)
    if code == 0 and not checkpoint.is_file():
        raise ConfigError(
            f"{checkpoint}: the fit wrote no checkpoint: leave trainer.enable_checkpointing and"
            " trainer.fast_dev_run alone."
        )
    return code


def _fit_words(
    own: Path, dataset: Path, options: argparse.Namespace, fit: Sequence[str]
) -> list[str]:
    """Words of a fit's command without the checkpoint that it may go on from."""
    words = ["fit", *fit, "--data.init_args.dataset", str(dataset)]
    words += ["--checkpoint.dirpath", str(own), "--seed_everything", str(options.seed)]
    words += ["--evaluation.episodes", "0", "--trainer.devices", "1", "--trainer.num_nodes", "1"]
    return words


def _require_scalar(module: Any) -> None:
    found = getattr(module, "policy_representation", None)
    if found != "scalar":
        kind = type(module).__name__ + (f" with policy_representation '{found}'" if found else "")
        raise ConfigError(
            f"{kind} has no scalar φ(π) to tell the rounds' policies apart: choose DVFModule with"
            " --model.init_args.policy_representation scalar."
        )


def _evaluate(checkpoint: Path, options: argparse.Namespace, command: str) -> Any:
    from lit_offrl.evaluation.evaluate import evaluate_module
    from lit_offrl.modules.checkpoints import load_module

    return evaluate_module(
        load_module(checkpoint),
        episodes=options.episodes,
        seed=options.evaluation_seed,
        num_envs=options.num_envs,
        env_id=options.env,
        max_episode_steps=options.max_episode_steps,
        checkpoint=checkpoint,
        checkpoint_rule="last",
        command=command,
    )


def _draw(folder: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
    from lit_offrl.figures import improvement_curve, save_figure

    save_figure(improvement_curve(rounds, folder.resolve().name), folder / "curve.png")


def _log_to_mlflow(
    own: Path, record: Any, rounds: Sequence[Mapping[str, Any]], folder: Path, uri: str
) -> None:
    """Add the record and the curve so far to the MLflow run of a round's fit, if it has one."""
    from lit_offrl.modules.checkpoints import mlflow_origin

    origin = mlflow_origin(own / "last.ckpt")
    if origin is None:
        return
    outbox = results(
        record.metrics(), [own / "evaluation.json"], "evaluate", record.training_steps or 0
    )
    outbox.tags = {"lit_offrl.online": folder.resolve().name,
                   "lit_offrl.round": str(len(rounds) - 1)}  # fmt: skip
    for one in rounds:
        names = ("return_mean", "collected_return_mean")
        metrics = {f"online/{name}": float(one[name]) for name in names}
        outbox.add(results(metrics, [], "", one["environment_steps"]))
    outbox.add(results({}, [folder / STATE, folder / "curve.png"], "online"))
    try:
        add_to_run(origin["run_id"], uri, outbox)
    except Exception as error:  # the files are written; a store that moved must not undo that
        said = f"not logged to MLflow run {origin['run_id']}: {redacted(first_line(error))}"
        print(f"lit-offrl online: {said}", file=sys.stderr)


def _store(fit: Sequence[str]) -> str:
    """Return the MLflow store that the options of the fits name, else the default."""
    words = [word for given in fit for word in given.split("=", 1)]
    places = [n for n, word in enumerate(words) if word.endswith(".init_args.tracking_uri")]
    return store_uri(words[places[-1] + 1] if places and places[-1] + 1 < len(words) else None)


def _finish(folder: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
    """Print the whole curve."""
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
