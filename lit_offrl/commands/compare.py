"""``lit-offrl compare``: scores of runs by method and dataset, with intervals and protocol."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.errors import ConfigError, EvaluationError
from lit_offrl.evaluation.comparison import ALL, Comparison, compare
from lit_offrl.evaluation.runs import Found, runs_from_files, runs_from_mlflow
from lit_offrl.evaluation.tables import (
    footnotes,
    heads,
    lines,
    protocol_lines,
    write_files,
)
from lit_offrl.mlflow_store import absolute_uri, default_uri

_EXPERIMENT = "lit-offrl"  # where `fit` logs by default
_SQLITE_MAGIC = b"SQLite format 3\0"


def main(argv: Sequence[str]) -> int:
    """Print the table, write files where asked to, and return 0.

    Raises:
        LitOffRLError: the runs cannot be read or compared.
    """
    options = _parser().parse_args(list(argv))
    found = _find(options)
    if not found.runs:
        what = f": {'; '.join(found.left_out[:3])}" if found.left_out else "."
        raise EvaluationError(f"There is no evaluated run to compare{what}")
    comparison = compare(
        found.runs,
        metric=options.metric,
        allow_unequal=options.allow_unequal,
        latest=options.latest,
    )
    _print(comparison, found.left_out, options.seeds)
    if options.output is not None:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
            paths = write_files(comparison, found.left_out, options.output)
            paths += draw(comparison, options.output)
        except OSError as error:
            raise ConfigError(
                f"--output {options.output}: cannot be written ({error.strerror})."
            ) from error
        print("written: " + ", ".join(str(path) for path in paths))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lit-offrl compare",
        description="Scores of runs by method and dataset: means and IQMs with 95 % intervals "
        "over training seeds, and the protocol beneath.",
        epilog=f"Without --experiment, --filter and --records: MLflow's experiment {_EXPERIMENT}.",
    )
    add = parser.add_argument
    add("--experiment", nargs="+", default=[], metavar="NAME", help="MLflow experiments")
    add("--filter", default="", metavar="TEXT", help="MLflow's filter, e.g. \"tags.x = 'y'\"")
    add(
        "--tracking_uri",
        metavar="URI",
        help="MLflow's store [$MLFLOW_TRACKING_URI, else sqlite:///mlflow.db]",
    )
    add(
        "--records",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files of evaluation records, folders of them, or glob patterns",
    )
    add("--metric", choices=("score", "return"), default="score", help="[score]")
    add("--seeds", action="store_true", help="show each run's score")
    add("--latest", action="store_true", help="of a seed evaluated twice take the newest")
    add("--allow_unequal", action="store_true", help="mark unequal protocols, do not refuse them")
    add("--output", type=Path, metavar="DIR", help="write results.csv, table.csv, table.md, PNGs")
    return parser  # fmt: skip


def _find(options: argparse.Namespace) -> Found:
    parts = [runs_from_files(options.records)] if options.records else []
    if options.experiment or options.filter or not options.records:
        # The callbacks' module brings Lightning: only where there is a store to ask.
        from lit_offrl.callbacks.mlflow_run import probe, set_patience

        uri = absolute_uri(options.tracking_uri or default_uri())
        set_patience()
        _need_database(uri)
        probe(uri, "give another --tracking_uri, or files with --records.")
        names = options.experiment
        if not names and not options.filter:
            names = [_EXPERIMENT]
        parts.append(runs_from_mlflow(uri, names, options.filter))
    return Found(
        tuple(run for part in parts for run in part.runs),
        tuple(line for part in parts for line in part.left_out),
    )


def _need_database(uri: str) -> None:
    """See that a SQLite store is there: MLflow makes an empty one, or tries for minutes.

    Raises:
        ConfigError: there is none.
    """
    if not uri.startswith("sqlite:///"):
        return
    file = Path(uri.removeprefix("sqlite:///"))
    if not file.is_file():
        raise ConfigError(
            f"There is no MLflow store {file}: name it with --tracking_uri, or give files with "
            "--records."
        )
    with file.open("rb") as start:
        if start.read(len(_SQLITE_MAGIC)) != _SQLITE_MAGIC:
            raise ConfigError(f"{file} is no SQLite database: give another --tracking_uri.")


def _print(comparison: Comparison, left_out: Sequence[str], seeds: bool) -> None:
    # Into a file or a pipe the table is as wide as it likes, so that nothing is cut there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(title="Normalised scores" if comparison.scored else "Returns")
    for place, name in enumerate(heads(seeds)):
        text = place < 2 or name == "runs"
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    latest = ""
    for line in lines(comparison, seeds):
        dataset = line[0]
        if dataset != latest:
            table.add_section()
        cells = [dataset if dataset != latest else "", *line[1:]]
        table.add_row(*map(escape, cells), style="bold" if dataset == ALL else None)
        latest = dataset
    console.print(table)
    texts = footnotes(comparison)
    parts = [texts, ["Protocol", *(f"  {text}" for text in protocol_lines(comparison))]]
    if left_out:
        parts.append(["Not in the table", *(f"  {text}" for text in left_out)])
    console.print("\n".join(text for part in parts for text in part), markup=False, highlight=False)


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw ``bars.png`` and, where there are scores, ``performance_profiles.png``; return paths."""
    import numpy as np

    from lit_offrl.evaluation.statistics import performance_profile
    from lit_offrl.figures import Bar, Profile, performance_profiles, score_bars

    datasets = list(comparison.scored or comparison.units)
    label = "normalised score" if comparison.scored else "return"
    bars = {
        key: Bar(cell.mean.value, cell.mean.low, cell.mean.high, cell.strata[0])
        for key, cell in comparison.cells.items()
        if key[0] in datasets
    }
    figure = score_bars(
        bars,
        datasets,
        comparison.methods,
        comparison.data,
        label=label,
        share=bool(comparison.scored),
    )
    figures = {"bars": figure}
    whole = {
        method: [comparison.cells[name, method].strata[0] for name in datasets]
        for method in comparison.methods
        if all((name, method) in comparison.cells for name in datasets)
    }
    if whole and (comparison.scored or len(datasets) == 1):
        data = {name: value for name, value in comparison.data.items() if name in datasets}
        parts = [values for strata in whole.values() for values in strata]
        values = np.concatenate([*parts, list(data.values())])
        room = 0.05 * (float(np.ptp(values)) or 1.0)
        thresholds = np.linspace(values.min() - room, values.max() + room, 400)
        profiles = {
            method: Profile(*performance_profile(strata, thresholds))
            for method, strata in whole.items()
        }
        figures["performance_profiles"] = performance_profiles(
            thresholds, profiles, label=label, data=data
        )
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return paths
