"""The keys of a sweep's file about a search, and the value of a trial."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from lit_offrl.common.configs import from_yaml
from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.ranges import SEEDS
from lit_offrl.evaluation.record import present_name
from lit_offrl.experiments.config import FileReader, Section, all_differ, yaml_text
from lit_offrl.experiments.job import Cell

_RECORDS = ("score", "return", "ope")  # of a finished trial
_CURVES = ("val/", "eval/", "train/")  # beginnings of what fits log by step
_OPE_KEYS = ("fqe_steps", "starts", "gamma", "seed", "device", "data")
_ENDS = "two numbers, the lower end first (1.0e-4; to YAML, 1e-4 is text)"
_DISTRIBUTIONS = {
    "uniform": _ENDS,
    "log_uniform": f"{_ENDS}, both above 0",
    "int": "two whole numbers, the lower end first",
    "choice": "one value or more, each once",
}


@dataclass(frozen=True)
class Axis:
    """An option that is drawn anew for each trial.

    Attributes:
        kind: One of ``_DISTRIBUTIONS``.
        values: The two ends, both of which may be drawn, or the choices.
    """

    kind: str
    values: list[Any]

    def suggest(self, trial: Any, name: str) -> Any:
        """Return what one of Optuna's trials has drawn, or draws now, for the option."""
        if self.kind == "choice":  # as text, since its storages keep no lists
            return from_yaml(trial.suggest_categorical(name, self.listed()))
        if self.kind == "int":
            return trial.suggest_int(name, *self.values)
        return trial.suggest_float(name, *self.values, log=self.kind == "log_uniform")

    def listed(self) -> list[Any]:
        """Return all choices or whole numbers, as Optuna has them."""
        if self.kind == "int":
            return list(range(self.values[0], self.values[1] + 1))
        return [yaml_text(value) for value in self.values]


class Search(Section):
    """The key ``search``; for its fields see ``docs/sweeps.md``."""

    sampler: Literal["tpe", "random", "grid", "cmaes"] = "tpe"
    trials: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="the number of trials, at least 1"
    )
    pruner: Literal["none", "median", "hyperband"] = "none"
    metric: str = Field(default="score", description="text")
    direction: Literal["maximize", "minimize"] = "maximize"  # of losses, the other is the default
    seed: int = Field(default=0, ge=0, lt=2**32, description=f"a number in {SEEDS}")
    storage: str | None = Field(
        default=None, pattern="://", description="a database's URL, sqlite:////shared/s.db"
    )
    ope: dict[str, Any] = Field(default={}, description="a mapping of ope's options")

    @property
    def is_online(self) -> bool:
        """Whether the metric takes roll-outs in the environment."""
        return self.metric in ("score", "return") or self.metric.startswith("eval/")

    @property
    def curve(self) -> str:
        """The metric of fits whose points pruners see."""
        return f"eval/{self.metric}" if self.metric in ("score", "return") else self.metric


# ---- the file ------------------------------------------------------------------------------------


def read_axes(reader: FileReader, options: Any) -> tuple[dict[str, Axis], Any]:
    """Split options into those that are distributions, ``{NAME: [...]}``, and the others.

    Raises:
        ConfigError: One line that names the file and the key.
    """
    axes: dict[str, Axis] = {}
    for name, value in options.items() if isinstance(options, dict) else ():
        # In an axis of labels, each has a mapping.
        if isinstance(value, dict) and [type(each) for each in value.values()] == [list]:
            ((kind, values),) = value.items()
            if kind not in _DISTRIBUTIONS:
                key = f"options.{name}"
                raise reader.unknown(key, "unknown distribution", kind, [*_DISTRIBUTIONS])
            if not _fits(kind, values):
                raise reader.wrong(f"options.{name}.{kind}", values, _DISTRIBUTIONS[kind])
            axes[name] = Axis(kind, values)
    if axes:
        options = {name: value for name, value in options.items() if name not in axes}
        reader.options("options", dict.fromkeys(axes))
    return axes, options


def _fits(kind: str, values: list[Any]) -> bool:
    if kind == "choice":
        return bool(values) and all_differ(values)
    numbers = (int,) if kind == "int" else (int, float)
    if len(values) != 2 or not all(type(end) in numbers and math.isfinite(end) for end in values):
        return False
    return values[0] < values[1] and (kind != "log_uniform" or values[0] > 0)


def read_search(reader: FileReader, given: Any, axes: Mapping[str, Axis]) -> Search:
    """Read the key ``search``, beside the axes that are distributions.

    Raises:
        ConfigError: One line that names the file and the key.
    """
    if given is None:
        raise ConfigError(
            f"{reader.path}: options.{next(iter(axes), '')}: a distribution needs 'search:', such"
            " as search: {sampler: tpe, trials: 20, metric: score}."
        )
    search = reader.read("search", Search, given)
    if not axes:
        raise ConfigError(
            f"{reader.path}: search: no option is a distribution: give one under 'options:', such"
            " as model.init_args.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}."
        )
    metric, trials = search.metric, search.trials
    if metric not in _RECORDS and not metric.startswith(_CURVES):
        known = (*_RECORDS, "val/loss", "val/loss/actor", "eval/score", "eval/return_mean")
        raise reader.unknown("search.metric", "unknown metric", metric, known)
    reader.known(search.ope, "search.ope", _OPE_KEYS)
    if metric == "ope" and search.pruner != "none":
        wanted = "none: ope values finished trials alone"
        raise reader.wrong("search.pruner", search.pruner, wanted)
    if search.ope and metric != "ope":
        raise reader.wrong("search.ope", search.ope, "'metric: ope' with it")
    if search.sampler == "grid":
        if endless := [name for name, axis in axes.items() if "uniform" in axis.kind]:
            raise ConfigError(
                f"{reader.path}: options.{endless[0]}: a grid has no end on a distribution of"
                " numbers that are not whole: give choice or int, or another search.sampler."
            )
        size = math.prod(len(axis.listed()) for axis in axes.values())
        trials = trials or size
        if trials > size:
            raise reader.wrong("search.trials", trials, f"at most {size}, the size of the grid")
    if trials is None:
        raise reader.wrong("search.trials", trials, "the number of trials, at least 1")
    if search.sampler == "cmaes" and all(axis.kind == "choice" for axis in axes.values()):
        raise reader.wrong("search.sampler", "cmaes", "tpe: cmaes moves numbers, not choices")
    changes: dict[str, Any] = {"trials": trials}
    if "direction" not in search.model_fields_set and (metric[:4] == "val/" or "loss" in metric):
        changes["direction"] = "minimize"
    return search.model_copy(update=changes)


# ---- what came of a trial ------------------------------------------------------------------------


def read_curves(run: Path) -> dict[str, dict[int, float]]:
    """Return the points by step of each metric that a fit has logged, and the sum of its losses."""
    curves: dict[str, dict[int, float]] = {}
    with contextlib.suppress(OSError), (run / "curves.csv").open(newline="") as file:
        for row in csv.reader(file):
            with contextlib.suppress(
                ValueError, IndexError
            ):  # the heading, and a line that is being written
                step, name, value = int(row[0]), present_name(row[1]), float(row[2])
                curves.setdefault(name, {})[step] = value
                if name.startswith("val/loss/"):
                    total = curves.setdefault("val/loss", {})
                    total[step] = total.get(step, 0.0) + value
    return curves


def value_of(cell: Cell, metric: str) -> float:
    """Return the metric of a finished cell.

    Raises:
        ConfigError: The fit, or its record, has no such metric.
    """
    folder = cell.target.folder
    if metric == "ope":
        record = json.loads((folder / "ope.json").read_text())
        return float(record["policies"][0]["fqe"]["mean"])
    if metric in _RECORDS:
        record = json.loads((folder / "evaluation.json").read_text())
        if values := record.get(f"{metric}s"):
            return fmean(values)
        there = ["return"]
    else:
        curves = read_curves(cell.target.run)
        if points := curves.get(present_name(metric)):
            return points[max(points)]
        there = sorted(curves)
    hint = nearest(metric, there) or f" It has {', '.join(there) or 'none'}."
    raise ConfigError(f"search.metric: {cell.name} has no '{metric}'.{hint}")


def online_episodes(folder: Path, search: Search) -> int:
    """Return how many episodes the metric, or the pruner, has taken of the cells below a folder."""
    patterns = ["evaluation.json"] if search.metric in ("score", "return") else []
    if search.is_online and (search.pruner != "none" or not patterns):
        patterns.append("fit/evaluation*.json")
    count = 0
    for path in [path for each in patterns for path in folder.glob(f"trial=*/seed*/{each}")]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            count += len(json.loads(path.read_text())["returns"])
    return count
