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
from lit_offrl.evaluation.comparison import ALL, Comparison, compare
from lit_offrl.evaluation.tables import (
    footnotes,
    heads,
    lines,
    protocol_lines,
    write_files,
)
from lit_offrl.files import make_folder
from lit_offrl.mlflow_store import default_experiment
from lit_offrl.studies.runs import add_run_options, find_runs


def main(argv: Sequence[str]) -> int:
    """Print the table, write files where asked to, and return 0.

    Raises:
        LitOffRLError: the runs cannot be read or compared.
    """
    options = _parser().parse_args(list(argv))
    found = find_runs(options)
    comparison = compare(
        found.runs,
        metric=options.metric,
        allow_unequal=options.allow_unequal,
        latest=options.latest,
    )
    _print(comparison, found.left_out, options.seeds)
    if options.output is not None:
        make_folder(options.output)
        paths = write_files(comparison, found.left_out, options.output)
        paths += draw(comparison, options.output)
        print("written: " + ", ".join(str(path) for path in paths))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lit-offrl compare",
        description="Scores of runs by method and dataset: means and IQMs with 95 % intervals "
        "over training seeds, and the protocol beneath.",
        epilog="Without --experiment, --filter and --records: MLflow's experiment"
        f" {default_experiment()}.",
    )
    add_run_options(parser)
    add = parser.add_argument
    add("--metric", choices=("score", "return"), default="score", help="[score]")
    add("--seeds", action="store_true", help="show each run's score")
    add("--latest", action="store_true", help="of a seed evaluated twice take the newest")
    add("--allow_unequal", action="store_true", help="mark unequal protocols, do not refuse them")
    add("--output", type=Path, metavar="DIR", help="write results.csv, table.csv, table.md, PNGs")
    return parser  # fmt: skip


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
    from lit_offrl.figures import Profile, performance_profiles, save_figure
    from lit_offrl.figures.bars import from_numbers
    from lit_offrl.studies.scores import bar_numbers

    datasets = list(comparison.scored or comparison.units)
    numbers = bar_numbers(comparison)
    label, figure = numbers["label"], from_numbers(numbers)
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
            thresholds, profiles, label=label, data=data, methods=comparison.methods
        )
    paths = []
    for name, figure in figures.items():
        paths.append(save_figure(figure, folder / f"{name}.png", dpi=150))
    return paths
