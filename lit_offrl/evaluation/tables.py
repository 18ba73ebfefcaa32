"""A comparison as lines of text: for the terminal, CSV and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_offrl.common.files import whole_file, write_whole
from lit_offrl.evaluation.comparison import ALL, Cell, Comparison, Estimate, run_mean
from lit_offrl.evaluation.protocol import columns
from lit_offrl.evaluation.run_files import LIST, save_runs
from lit_offrl.evaluation.runs import Run, SeededRun
from lit_offrl.evaluation.statistics import MANY, coverage

DATA = "data"
MISSING = "missing"
_DIGITS = "₀₁₂₃₄₅₆₇₈₉"


def entries(comparison: Comparison) -> Iterator[tuple[str, str, Cell | float | None]]:
    """Yield (dataset, method, cell) in the table's order: the data's mean last on each dataset.

    The cell is a number for the data's mean and None where runs are missing; the aggregates come at
    the end, under the dataset ``all datasets``.
    """
    for dataset in comparison.units:
        for method in comparison.methods:
            yield dataset, method, comparison.cells.get((dataset, method))
        if dataset in comparison.data:
            yield dataset, DATA, comparison.data[dataset]
    if len(comparison.scored) > 1:
        for method in comparison.methods:
            yield ALL, method, comparison.aggregates.get(method)
        if set(comparison.scored) <= set(comparison.data):
            values = [comparison.data[dataset] for dataset in comparison.scored]
            yield ALL, DATA, sum(values) / len(values)


def heads(seeds: bool) -> list[str]:
    """The table's headings."""
    names = ["dataset", "method", "mean", "95 %", "IQM", "95 %", "seeds"]
    return [*names, "runs"] if seeds else names


def lines(comparison: Comparison, seeds: bool) -> Iterator[list[str]]:
    """Yield the table's lines, a text for each heading."""
    for dataset, method, cell in entries(comparison):
        unit = " (return)" if comparison.units.get(dataset) == "return" else ""
        start, blank = [f"{dataset}{unit}", method], [""] * seeds
        if cell is None:
            yield [*start, MISSING, "", "", "", "0" if dataset != ALL else "", *blank]
        elif isinstance(cell, Cell):
            start[1] += "".join(dagger(number) for number in cell.marks)
            numbers = [*_texts(cell.mean), *_texts(cell.iqm)]
            runs = [_run_scores(cell)] if dataset != ALL else [""]
            yield [*start, *numbers, _count(cell), *(runs * seeds)]
        else:
            yield [*start, f"{cell:.1f}", "", "", "", "", *blank]


def dagger(number: int) -> str:
    """The mark of a footnote."""
    return "†" + "".join(_DIGITS[int(digit)] for digit in str(number))


def _texts(estimate: Estimate) -> tuple[str, str]:
    known = math.isfinite(estimate.low)
    interval = f"{estimate.low:.1f} … {estimate.high:.1f}" if known else "–"
    return f"{estimate.value:.1f}", interval


def _count(cell: Cell) -> str:
    sizes = sorted({len(values) for values in cell.strata})
    return f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _run_scores(cell: Cell) -> str:
    (values,) = cell.strata
    pairs = zip(cell.runs, values, strict=True)
    return ", ".join(f"{run.seed}: {value:.1f}" for run, value in pairs)


def footnotes(comparison: Comparison) -> list[str]:
    """Return what has to be known to read the table, a sentence each."""
    notes = [f"{dagger(n)} {text}." for n, text in enumerate(comparison.unequal, 1)]
    if len(comparison.scored) > 1:
        for method in comparison.methods:
            lacking = [d for d in comparison.scored if (d, method) not in comparison.cells]
            if lacking:
                notes.append(f"{method} has no runs on {', '.join(lacking)}: no aggregate.")
    if any(unit == "return" for unit in comparison.units.values()) and comparison.scored:
        notes.append("Datasets with returns have no reference returns; aggregates leave them out.")
    cells = [*comparison.cells.values(), *comparison.aggregates.values()]
    if any(len({len(values) for values in cell.strata}) > 1 for cell in cells):
        notes.append("IQM of all datasets: those with more seeds count more. The mean: all alike.")
    if any(sum(map(len, cell.strata)) < 4 for cell in cells):
        notes.append("The IQM of fewer than 4 runs is their mean: nothing can be left out.")
    notes.append(
        "Intervals: statistic ± t · standard error of 2,000 resamples of the runs within each "
        f"dataset, cut at the least and the most that an episode of any run earned there where "
        f"there are {MANY} or more; "
        "–: a single run has none."
    )
    return notes + list(_coverages(cells))


def _coverages(cells: Iterable[Cell]) -> Iterator[str]:
    """Say what the simulation found for each size of cell in the table."""
    sizes = {(len(cell.strata), min(map(len, cell.strata))) for cell in cells}
    for datasets, seeds in sorted(sizes):
        if seeds < 2:
            continue
        texts = []
        for statistic in ("mean", "IQM"):
            runs, tasks, shares = coverage(statistic, seeds, datasets)
            by_shape = ", ".join(f"{shape} {share:.1%}" for shape, share in shares.items())
            texts.append(f"{statistic}: {by_shape}")
        where = f"{runs} seeds, {tasks} dataset{'s' * (tasks > 1)}"
        yield f"Simulated coverage at {where}, by the scores' distribution: {'; '.join(texts)}."


def protocol_lines(comparison: Comparison) -> list[str]:
    """Return the protocol, a sentence each."""
    steps = ", ".join(f"{method} {text}" for method, text in comparison.steps.items())
    options = [f"options: {method} has {text}" for method, text in comparison.options.items()]
    ends = [f"training steps: {steps}", *options, f"versions: {comparison.versions}"]
    return [*comparison.protocols, *ends]


def write_files(comparison: Comparison, left_out: Iterable[str], folder: Path) -> list[Path]:
    """Write ``results.csv`` and ``runs.jsonl`` (a line a run), ``table.csv`` and ``table.md``.

    ``runs.jsonl`` has all that the table was made from, and is read by ``--records``.

    Returns:
        The paths of the files.
    """
    names = ("results.csv", "table.csv", "table.md", f"runs{LIST}")
    paths = [folder / name for name in names]
    runs = [run for shown in comparison.cells.values() for run in shown.runs]
    write_csv(paths[0], map(_result, runs))
    write_csv(paths[1], (_row(comparison, *entry) for entry in entries(comparison)))
    write_whole(paths[2], markdown(comparison, left_out))
    save_runs(runs, paths[3])
    return paths


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as a CSV file, whole or not at all; NaN and None are empty."""
    import pandas as pd  # seconds to import

    with whole_file(path) as temporary:
        pd.DataFrame(list(rows), dtype=object).to_csv(temporary, index=False, lineterminator="\r\n")


def _row(
    comparison: Comparison, dataset: str, method: str, cell: Cell | float | None
) -> dict[str, Any]:
    means = {"mean": cell.mean, "iqm": cell.iqm} if isinstance(cell, Cell) else {}
    row: dict[str, Any] = {
        "dataset": dataset,
        "method": method,
        "unit": comparison.units.get(dataset, "score"),
    }
    for name in ("mean", "iqm"):
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            row[name + end] = getattr(means.get(name), key, None)
    if isinstance(cell, Cell):
        return {**row, "seeds": _count(cell), "marks": " ".join(map(dagger, cell.marks))}
    row["mean"] = cell
    return {**row, "seeds": 0 if cell is None and dataset != ALL else None, "marks": None}


def run_columns(run: SeededRun) -> dict[str, Any]:
    """Return the columns of a table of results that say which run a row is of."""
    return {
        "method": run.method,
        "options": "; ".join(f"{name}={value}" for name, value in run.options),
        "dataset": run.dataset,
        "seed": run.seed,
    }


def _result(run: Run) -> Mapping[str, Any]:
    record = run.record
    return {
        **run_columns(run),
        "module": record.method,
        "score": None if record.scores is None else run_mean(run, "score"),
        "return": run_mean(run, "return"),
        **columns(record),
        "training_steps": record.training_steps,
        "checkpoint": record.checkpoint_sha256,
        "date": record.date,
        "source": run.source,
    }


def markdown(comparison: Comparison, left_out: Iterable[str]) -> str:
    """Return the table in Markdown, with each run's score, the footnotes and the protocol."""
    rows = [heads(True), ["---", "---", *["---:"] * 5, "---"], *lines(comparison, True)]
    table = [f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows]
    parts = ["\n".join(table), _bullets(footnotes(comparison))]
    parts += ["Protocol:", _bullets(protocol_lines(comparison))]
    left_out = list(left_out)
    if left_out:
        parts += ["Not in the table:", _bullets(left_out)]
    return "\n\n".join(parts) + "\n"


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
