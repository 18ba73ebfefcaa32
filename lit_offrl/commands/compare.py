"""``lit-offrl compare``: scores of runs by method and dataset, with intervals and protocol."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_offrl.commands.options import parse
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import begins, replacing_files, require_replaceable
from lit_offrl.evaluation.comparison import ALL, Comparison, Metric, compare
from lit_offrl.evaluation.run_files import LIST, matching_files
from lit_offrl.evaluation.tables import footnotes, heads, lines, protocol_lines, write_files
from lit_offrl.studies.runs import RunSelection
from lit_offrl.tracking.store import default_experiment

_FILES = (
    "results.csv", "table.csv", "table.md", f"runs{LIST}", "bars.png", "performance_profiles.png",
)  # fmt: skip
_LEFT_OUT = "Not in the table"


def _metric(text: str) -> str:
    if text not in get_args(Metric) and "/" not in text:
        raise ValueError
    return text


_metric.__name__ = "metric (score, return, or a name of MLflow's with a '/', such as val/loss)"


@dataclass(frozen=True, kw_only=True)
class CompareOptions(RunSelection):
    """Scores of runs by method and dataset.

    Means and IQMs with 95 % intervals over training seeds, and the protocol beneath.

    Args:
        metric: What is compared: score, return, or for runs that were never rolled out a metric of
            MLflow, such as val/loss (the sum of a method's losses), val/loss/actor or ope/fqe.
        better: Which values of an offline metric are better; without it, lower ones of losses and
            errors, higher ones of ope/.
        seeds: Show the score of each run.
        latest: Take the newest evaluation of a seed that was evaluated twice.
        allow_unequal: Mark unequal protocols in the table instead of refusing them.
        output: Folder for results.csv, table.csv, table.md, the figures and runs.jsonl, which
            --records reads; without it, none is written.
    """

    metric: Annotated[str, _metric] = "score"
    better: Literal["lower", "higher"] | None = None
    seeds: bool = False
    latest: bool = False
    allow_unequal: bool = False
    output: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Print the table, write files if there is an output folder, and return 0."""
    if argv and not argv[0].startswith("-"):
        argv = ["--parent", *argv]
    epilog = (
        "'lit-offrl compare ID' stands for --parent ID. Without --experiment, --filter, --parent"
        f" and --records: MLflow's {default_experiment()}."
    )
    options = parse(CompareOptions, argv, "compare", epilog)
    _require_place(options)
    if options.metric not in get_args(Metric):
        return compare_offline(options)
    if options.better is not None:
        raise ConfigError(
            "--better is only for offline metrics: higher scores and returns are always better."
        )
    found = options.find()
    comparison = compare(
        found.runs,
        metric=cast(Metric, options.metric),
        allow_unequal=options.allow_unequal,
        latest=options.latest,
    )
    _print_comparison(comparison, found.left_out, options.seeds)
    _write(
        options,
        lambda folder: [
            *write_files(comparison, found.left_out, folder),
            *draw(comparison, folder),
        ],
    )
    return 0


def compare_offline(options: CompareOptions) -> int:
    """Print the table of an offline metric, write it with an output folder, and return 0."""
    from lit_offrl.evaluation import offline  # else the help would read it

    better = options.better or offline.direction(options.metric)
    found = options.find_offline(options.metric)
    rows, notes = offline.tabulate(
        found.runs, better, latest=options.latest, allow_unequal=options.allow_unequal
    )
    title = f"{options.metric}: {better} is better"
    table = _table(title, offline.heads(options.seeds))
    for row in rows:
        cells = offline.cells(row, options.seeds)
        table.add_row(*map(escape, cells), style="bold" if row.best else None)
    _print(table, {"": offline.footnotes(rows, options.metric, notes), _LEFT_OUT: found.left_out})
    _write(options, lambda folder: offline.write_files(rows, options.metric, better, folder))
    return 0


def _require_place(options: CompareOptions) -> None:
    """Refuse a folder in which files would be replaced that are of no earlier comparison.

    Raises:
        FileError: There is such a file, or one of them is read.
    """
    folder = options.output
    if folder is None or not folder.is_dir():
        return
    is_earlier = begins(folder / "table.csv", b"dataset,method,")
    records = [file for file, _ in matching_files(options.records, (".json", LIST))]
    for name in _FILES:
        require_replaceable(folder / name, "comparison", lambda _: is_earlier, records)


def _write(options: CompareOptions, write: Callable[[Path], Sequence[Path]]) -> None:
    """Write a table's files, if there is an output folder, in place of an earlier table's."""
    if options.output is None:
        return
    with replacing_files(options.output, _FILES) as folder:
        written = write(folder)
    print("written: " + ", ".join(str(options.output / path.name) for path in written))


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title)
    for place, name in enumerate(names):
        text = place < 2 or name == "runs"
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    return table


def _print(table: Table, notes: Mapping[str, Sequence[str]]) -> None:
    """Print a table, and notes under their headings."""
    # Into a file or a pipe the table is as wide as it likes, so that nothing is cut there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    for heading, texts in notes.items():
        shown = [heading, *(f"  {text}" for text in texts)] if heading else texts
        if texts:
            console.print("\n".join(shown), markup=False, highlight=False)


def _print_comparison(comparison: Comparison, left_out: Sequence[str], seeds: bool) -> None:
    table = _table("Normalised scores" if comparison.scored else "Returns", heads(seeds))
    latest = ""
    for line in lines(comparison, seeds):
        dataset = line[0]
        if dataset != latest:
            table.add_section()
        cells = [dataset if dataset != latest else "", *line[1:]]
        table.add_row(*map(escape, cells), style="bold" if dataset == ALL else None)
        latest = dataset
    notes = {"": footnotes(comparison), "Protocol": protocol_lines(comparison)}
    _print(table, {**notes, _LEFT_OUT: left_out})


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
        margin = 0.05 * (float(np.ptp(values)) or 1.0)
        thresholds = np.linspace(values.min() - margin, values.max() + margin, 400)
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
