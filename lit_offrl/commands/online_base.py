"""What both modes of ``lit-offrl online`` share: options, scores, the curve and MLflow."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from lit_offrl.collecting.rounds import STATE
from lit_offrl.commands.parsing import positive, seed_number
from lit_offrl.common.errors import ConfigError, first_line
from lit_offrl.common.files import file_sha256
from lit_offrl.tracking.results import add_to_run, results
from lit_offrl.tracking.store import redacted, store_uri

CURVE = "curve.csv"
"""Scores by own steps, in the folder of a run that goes on from a checkpoint."""
OURS = {
    "--trainer.devices": "one process trains and collects",
    "--trainer.num_nodes": "one process trains and collects",
}
"""Options of fit that no mode leaves to the user, and why."""


@dataclass(frozen=True, kw_only=True)
class Online:
    """A run that trains on steps which it takes itself.

    Args:
        env: A gymnasium id, or MODULE:ID for one of your own; with --from that of the data by
            default.
        output: Folder of all files.
        noise: Standard deviation of the noise, at least 0, in half-ranges of the action; 0.3 by
            default, and 0.1 with --from.
        hold: Mean number of steps that noise and random actions last, at least 1.
        seed: Seed of the online episodes and their noise, and without --from of fits, too.
        num_envs: Number of environments that are stepped together, at least 1; with --from those
            of scores alone.
        max_episode_steps: Step limit of episodes. (default: the registered one)
        episodes: Number of episodes of each score, at least 1.
        evaluation_seed: Seed that each of these episodes' own follows from.
        fit: Options of 'lit-offrl fit'.
        command: The command line.
    """

    output: Path
    env: str | None = None
    noise: float | None = None
    hold: float = 1.0
    seed: Annotated[int, seed_number] = 0
    num_envs: Annotated[int, positive] = 8
    max_episode_steps: Annotated[int | None, positive] = None
    episodes: Annotated[int, positive] = 20
    evaluation_seed: Annotated[int, seed_number] = 0
    fit: Sequence[str]
    command: str

    def require_free(self, ours: Mapping[str, str]) -> None:
        """Refuse options of fit that are not the user's to give.

        Raises:
            ConfigError: naming the option, and why.
        """
        for name in (word.partition("=")[0] for word in self.fit):
            if name in ours:
                raise ConfigError(f"{name} is not for online: {ours[name]}.")

    def _evaluate(self, checkpoint: Path, training_steps: int | None = None) -> Any:
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
            training_steps=training_steps,
            command=self.command,
        )

    def _draw(self, scores: Sequence[Mapping[str, Any]]) -> None:
        """Draw the curve of scores."""
        from lit_offrl.figures import improvement_curve, save_figure

        figure = improvement_curve(scores, self.output.resolve().name)
        save_figure(figure, self.output / "curve.png")

    def _log_to_mlflow(
        self, own: Path, record: Any, scores: Sequence[Mapping[str, Any]], **tags: str
    ) -> None:
        """Add the record and the curve so far to the MLflow run of a fit, if it has one."""
        from lit_offrl.modules.checkpoints import mlflow_origin

        origin = mlflow_origin(own / "last.ckpt")
        if origin is None:
            return
        files, steps = [own / "evaluation.json"], record.training_steps or 0
        outbox = results(record.metrics(), files, "evaluate", steps)
        outbox.tags = {"lit_offrl.online": self.output.resolve().name, **tags}
        for one in scores:
            names = ("return_mean", "score_mean", "collected_return_mean")
            metrics = {f"online/{name}": float(one[name]) for name in names if name in one}
            outbox.add(results(metrics, [], "", one["environment_steps"]))
        curve = [self.output / name for name in (STATE, "curve.png", CURVE)]
        outbox.add(results({}, [path for path in curve if path.is_file()], "online"))
        words = [word for given in self.fit for word in given.split("=", 1)]
        uris = [b for a, b in pairwise(words) if a.endswith(".init_args.tracking_uri")]
        try:
            add_to_run(origin["run_id"], store_uri(uris[-1] if uris else None), outbox)
        except Exception as error:  # the files are written; a store that moved must not undo that
            said = f"not logged to MLflow run {origin['run_id']}: {redacted(first_line(error))}"
            print(f"lit-offrl online: {said}", file=sys.stderr)


def fitted(argv: Sequence[str], kind: Any, checkpoint: Path) -> int:
    """Fit by a command line of some kind, and return its exit code.

    Raises:
        ConfigError: There is no checkpoint in the end.
    """
    from lit_offrl.cli.main import main

    code = main(argv, kind)
    if code == 0 and not checkpoint.is_file():
        raise ConfigError(
            f"{checkpoint}: the fit wrote no checkpoint: leave trainer.enable_checkpointing and"
            " trainer.fast_dev_run alone."
        )
    return code


def grouped(fit: Sequence[str]) -> list[str]:
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


def print_curve(folder: Path, scores: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print scores by environment steps, and what the collecting policy earned before each."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{folder}: {title}")
    first = "round" if "round" in scores[0] else ""
    for heading in (first, "environment steps", "data's return", "policy's return", "± s.e."):
        table.add_column(heading, justify="right")
    for number, one in enumerate(scores):
        names = ("collected_return_mean", "return_mean", "return_standard_error")
        numbers = (f"{one[name]:.1f}" if name in one else "–" for name in names)
        table.add_row(str(number), f"{one['environment_steps']:,}", *numbers)
    Console().print(table)
