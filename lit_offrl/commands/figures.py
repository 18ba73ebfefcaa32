"""``lit-offrl figures``: a paper's figure as a picture and as numbers."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from lit_offrl.commands.options import add_options, make
from lit_offrl.commands.parsing import OneLineParser, positive, seed_number
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.files import make_folder, write_whole
from lit_offrl.common.user_code import command_line
from lit_offrl.tracking.results import log_to_experiment, log_to_origin
from lit_offrl.tracking.store import redacted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_offrl.studies.inputs import Study


class Entry(NamedTuple):
    """One figure.

    Attributes:
        study: ``MODULE:CLASS`` of a dataclass of options with ``run() -> Study``.
        drawing: ``MODULE:FUNCTION`` from the study's numbers to a matplotlib Figure.
        line: What the figure shows.
    """

    study: str
    drawing: str
    line: str


# Adding a figure is adding a line; its modules are imported when it is drawn.
FIGURES: dict[str, Entry] = {
    "mountain-car": Entry(
        "lit_offrl.studies.mountain_car:MountainCar",
        "lit_offrl.figures.mountain_car:mountain_car",
        "DVF, Fig. 2: values, returns and predicted rewards of graded controllers",
    ),
    "maze2d-policies": Entry(
        "lit_offrl.studies.maze2d:Maze2dPolicies",
        "lit_offrl.figures.mazes:maze2d_policies",
        "DVF, Fig. 3: where each policy goes, in data and in samples",
    ),
    "maze2d-gamma": Entry(
        "lit_offrl.studies.maze2d:Maze2dGamma",
        "lit_offrl.figures.mazes:maze2d_gamma",
        "DVF, Fig. 4: how far samples go as the discount grows",
    ),
    "value-against-return": Entry(
        "lit_offrl.studies.value_against_return:ValueAgainstReturn",
        "lit_offrl.figures.values:from_numbers",
        "values of states against what the data earned from there on",
    ),
    "ldcq-latents": Entry(
        "lit_offrl.studies.ldcq_latents:LDCQLatents",
        "lit_offrl.figures.latents:latents",
        "LDCQ, Figs. 2 and 3: latents of the data and of both priors, over horizons",
    ),
    "ldcq-ends": Entry(
        "lit_offrl.studies.ldcq_latents:LDCQLatents",
        "lit_offrl.figures.latents:ends",
        "LDCQ, Fig. 5: where the priors' latents lead by the world model, as at a junction",
    ),
    "scores": Entry(
        "lit_offrl.studies.scores:Scores",
        "lit_offrl.figures.bars:from_numbers",
        "DVF, Fig. 5: scores of runs by method and dataset, with intervals",
    ),
    "score-against": Entry(
        "lit_offrl.studies.scores:ScoreAgainst",
        "lit_offrl.figures.against:from_numbers",
        "scores of runs against an option of a sweep or of the policy",
    ),
    "learning-curves": Entry(
        "lit_offrl.studies.learning_curves:LearningCurves",
        "lit_offrl.figures.against:learning_curves",
        "scores of runs, evaluated during training, against the optimiser step",
    ),
    "training-curves": Entry(
        "lit_offrl.studies.training_curves:TrainingCurves",
        "lit_offrl.figures.curves:from_numbers",
        "every metric of a run against its gradient steps",
    ),
}


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """Options of all figures.

    Args:
        output: Folder for the picture and the numbers.
        seed: Seed of all that the study draws.
        dpi: Resolution of the picture in dots per inch, at least 1.
        mlflow: Log to the MLflow run that the checkpoint came from, if any; a figure of runs goes
            to a run of its own in their experiment.
        tracking_uri: Address of the MLflow store; without it, that of $MLFLOW_TRACKING_URI, else
            sqlite:///mlflow.db.
    """

    output: Path = Path("figures")
    seed: Annotated[int, seed_number] = 0
    dpi: Annotated[int, positive] = 120
    mlflow: bool = True
    tracking_uri: str | None = None


def main(argv: Sequence[str]) -> int:
    """List the figures, or draw one; return 0."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *rest = argv
    if name not in FIGURES:
        hint = nearest(name, FIGURES) or f" It knows {', '.join(FIGURES)}."
        raise ConfigError(f"there is no figure '{name}'.{hint}")
    entry = FIGURES[name]
    kind: type[Any] = pkgutil.resolve_name(entry.study)
    parser = OneLineParser(prog=f"lit-offrl figures {name}", description=f"{entry.line}.")
    add_options(parser, kind, FigureOptions)
    options = parser.parse_args(rest)
    study = make(kind, options)
    make_folder(options.output)
    found: Study = study.run()
    command = redacted(command_line(["figures", *argv]))
    draw: Callable[..., Figure] = pkgutil.resolve_name(entry.drawing)
    picture, numbers = (options.output / f"{name}.{kind}" for kind in ("png", "json"))
    from lit_offrl.figures import save_figure  # as the next, heavy and here by now

    save_figure(draw(found.numbers), picture, options.dpi)
    from lit_offrl.evaluation.record import hardware, now, package_versions  # torch, by now here

    found.protocol.update(
        figure=name,
        command=command,
        versions=package_versions(),
        hardware=hardware(),
        date=now(),
    )
    write_whole(numbers, found.to_json())
    for metric, value in found.metrics.items():
        print(f"{metric:<36}{value:>12.4g}")
    print(f"figure: {picture}\nnumbers: {numbers}")
    if options.mlflow and found.checkpoint is not None:
        from lit_offrl.modules.checkpoints import mlflow_origin

        named = {f"figures/{name}/{metric}": value for metric, value in found.metrics.items()}
        origin, uri = mlflow_origin(found.checkpoint), options.tracking_uri
        log_to_origin(origin, "figures", named, [picture, numbers], tracking_uri=uri)
    elif options.mlflow and found.experiment is not None:
        log_to_experiment(*found.experiment, name, "figures", [picture, numbers])
    return 0


def _usage() -> str:
    lines = "\n".join(f"  {name:<22}{entry.line}" for name, entry in FIGURES.items())
    return (
        "usage: lit-offrl figures NAME [options]     lit-offrl figures NAME --help for its options"
        f"\n\nWrites NAME.png and NAME.json, the numbers with their protocol.\n\nfigures:\n{lines}"
    )
