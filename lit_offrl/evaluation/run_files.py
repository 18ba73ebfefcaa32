"""Evaluated runs in files: evaluation records, and lists of runs, with a run in each line.

A record does not know how a sweep named its method and its dataset, nor the hyperparameters. A line
of a list has the record with all of these, as JSON: the table can be made again without MLflow.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import EvaluationError, reason
from lit_offrl.common.files import write_whole
from lit_offrl.common.plain import described, is_of
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.evaluation.runs import Found, Run, make_run, without_steps

LIST = ".jsonl"
"""How the name of a list of runs ends."""

_TYPES: dict[str, Any] = {
    "method": str,
    "dataset": str,
    "options": Mapping[str, Any],
    "seed": int,
    "params": Mapping[str, Any],
    "data": Mapping[str, float],
}


def runs_from_files(patterns: Sequence[str]) -> Found[Run]:
    """Read records and lists of runs from files, folders (and those below them) and glob patterns.

    Of a folder of a fit, the record of its end counts, not those made on the way.

    Raises:
        EvaluationError: a pattern matches nothing, or a file named is no record and no list.
    """
    runs: list[Run] = []
    left_out = []
    for file, named in matching_files(patterns, (".json", LIST)):
        try:
            if file.suffix == LIST:
                runs += load_runs(file)
            else:
                runs.append(make_run(EvaluationRecord.load(file), str(file)))
        except EvaluationError as error:  # which names the file
            if named:
                raise
            left_out.append(str(error))
    return Found(tuple(runs), tuple(left_out))


def matching_files(
    patterns: Sequence[str], suffixes: Sequence[str] = (".json",), option: str = "--records"
) -> Iterator[tuple[Path, bool]]:
    """Yield each file once that a pattern names, or that is below a folder that it names.

    With each: whether it is named itself, so that it must be a record.

    Args:
        patterns: Names of files and folders, and glob patterns. What is there by a name is taken,
            whatever letters the name has.
        suffixes: How names of files in folders end.
        option: The option that gave the patterns, for messages.

    Raises:
        EvaluationError: a pattern matches nothing.
    """
    found = set()
    for pattern in patterns:
        # a name may have brackets of its own, which a pattern takes for letters to choose from
        names = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        matches = [Path(name) for name in sorted(names)]
        if not matches:
            raise EvaluationError(f"{option} {pattern}: there is no such file or folder.")
        for match in matches:
            for file in _below(match, suffixes) if match.is_dir() else [match]:
                if file.resolve() not in found:
                    found.add(file.resolve())
                    yield file, not match.is_dir()


def _below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    by_folder: dict[Path, list[str]] = {}
    for file in sorted(file for end in suffixes for file in folder.rglob(f"*{end}")):
        by_folder.setdefault(file.parent, []).append(file.name)
    return [place / name for place, names in by_folder.items() for name in without_steps(names)]


def save_runs(runs: Iterable[Run], path: Path) -> None:
    """Write runs into a file, whole or not at all."""
    write_whole(path, "".join(f"{json.dumps(_line(run), allow_nan=False)}\n" for run in runs))


def _line(run: Run) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in _TYPES}
    return values | {"options": dict(run.options), "record": asdict(run.record)}


def load_runs(path: Path) -> list[Run]:
    """Read the runs of a file that ``save_runs`` wrote.

    Raises:
        EvaluationError: the file cannot be read, or a line is no such run.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as a list of runs: {reason(error)}."
        ) from error
    runs = []
    for number, line in enumerate(lines, 1):
        try:
            runs.append(_run(json.loads(line), f"{path}, line {number}"))
        except (ValueError, RecursionError, EvaluationError) as error:
            raise EvaluationError(
                f"{path}: line {number} is no run as `lit-offrl compare --output` writes it:"
                f" {error}"
            ) from error
    return runs


def _run(values: Any, source: str) -> Run:
    known = {*_TYPES, "record"}
    if not isinstance(values, Mapping) or values.keys() != known:
        raise EvaluationError(f"it has to be a mapping with {', '.join(sorted(known))}.")
    for name, hint in _TYPES.items():
        if not is_of(values[name], hint):
            raise EvaluationError(
                f"'{name}' is {values[name]!r:.60}, but has to be {described(hint)}."
            )
    options = tuple(sorted((name, str(value)) for name, value in values["options"].items()))
    record = EvaluationRecord.from_json(json.dumps(values["record"]))
    return Run(**{**values, "options": options, "record": record}, source=source)
