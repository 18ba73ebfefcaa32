"""Corrects D4RL's conventions if rows read as recorded would make wrong episodes.

AntMaze: rewards and terminals are 1 in every row whose next position is at the goal, and the run
goes on to its timeout. One terminal ends an episode here, so the rows after the first at the goal
are left out, and what follows once the ant has walked away is an episode of its own:

    terminals   .   .   T   T   T   .   .   .   .      T: the next position is at the goal
    timeouts    .   .   .   .   .   .   .   .   x      x: the run ends
    kept        [0  1   2)  -   -  [5   6   7   8)     -: no row, as the task ends at the goal

No state that a policy can be in before the end is lost, since transitions into the goal are
terminal. Where no ``timeouts`` were written: maze2d is cut where the navigation goal changes, the
others after as many rows as the step limit, as D4RL's own conversion does.

Sparse windows, an option (LDCQ on AntMaze and maze2d): a run ends, as a terminal, with its first
rewarded row, and its other rows are left out, so that the rewards of any snippet sum to 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError
from lit_offrl.datasets.columns import clean_columns
from lit_offrl.datasets.environments import OWN


def family(task: str | None) -> str | None:
    """Return ``antmaze`` for ``lit_offrl/antmaze-umaze-v2`` or ``antmaze-umaze-v2``."""
    return None if task is None else task.removeprefix(OWN).partition("-")[0]


def fix_conventions(
    columns: Mapping[str, np.ndarray],
    task: str | None,
    step_limit: int | None,
    where: str,
    *,
    sparse_windows: bool = False,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the columns by the conventions above, and what was done, a sentence each.

    Args:
        columns: Columns as stored.
        task: Name of the dataset in D4RL, or id of one of this package's environments, which
            determines the family. None if these conventions do not apply.
        step_limit: Step limit of the environment, if it has one.
        where: The file, for messages.
        sparse_windows: Whether runs end with their first rewarded row.

    Raises:
        DatasetError: if a column is wrong, or missing for sparse windows.
        ConfigError: if sparse windows are requested for other data.
    """
    stands = task is None or (family(task) != "antmaze" and "timeouts" in columns)
    if stands and not sparse_windows:
        return dict(columns), ()
    cleaned = clean_columns(columns, where)
    done: list[str] = []
    if "timeouts" not in cleaned:
        made = _timeouts(cleaned, family(task), step_limit)
        if made is not None:
            cleaned["timeouts"], sentence = made
            done.append(sentence)
    if sparse_windows:
        cleaned, sentence = _sparse_windows(cleaned, task, where)
        done.append(sentence)
    elif family(task) == "antmaze" and "terminals" in cleaned:
        terminals = cleaned["terminals"]
        repeated = np.zeros(len(terminals), dtype=np.bool_)  # like the row before, of the same run
        repeated[1:] = terminals[1:] & terminals[:-1]
        if "timeouts" in cleaned:
            repeated[1:] &= ~cleaned["timeouts"][:-1]
        if repeated.any():
            cleaned = {name: values[~repeated] for name, values in cleaned.items()}
            count = int(repeated.sum())
            done.append(f"{count:,} rows at the goal after the first of each visit left out")
    return cleaned, tuple(done)


def _timeouts(
    columns: Mapping[str, np.ndarray], kind: str | None, step_limit: int | None
) -> tuple[np.ndarray, str] | None:
    """Return where episodes were cut, and a sentence about it; None where the file does not say."""
    if kind == "maze2d":
        goals = columns.get("goals")
        if goals is None:
            return None
        timeouts = np.zeros(len(goals), dtype=np.bool_)
        timeouts[:-1] = (goals[1:] != goals[:-1]).any(axis=1)
        return timeouts, "timeouts put where the navigation goal changes"
    if step_limit is None or "terminals" not in columns:
        return None
    terminals = columns["terminals"]
    ends = np.flatnonzero(terminals) + 1
    starts = np.concatenate([[0], ends])
    rows = np.arange(len(terminals))
    steps = rows - starts[np.searchsorted(starts, rows, side="right") - 1] + 1
    timeouts = (steps % step_limit == 0) & ~terminals
    if not timeouts.any():
        return None
    return timeouts, f"timeouts put after every {step_limit:,} rows without a terminal"


def _sparse_windows(
    columns: Mapping[str, np.ndarray], task: str | None, where: str
) -> tuple[dict[str, np.ndarray], str]:
    if family(task) not in ("antmaze", "maze2d"):
        raise ConfigError(
            f"{where}: rewards 'sparse_windows' is for antmaze and maze2d, and this dataset is of "
            f"'{task}': leave the option out, or say with env_id what it is of."
        )
    for name in ("rewards", "timeouts"):
        if name not in columns:
            raise DatasetError(
                f"{where}: has no column '{name}', which rewards 'sparse_windows' needs: "
                "use 'as_recorded'."
            )
    rewarded = columns["rewards"] > 0
    ends = np.flatnonzero(columns["timeouts"]) + 1
    starts = np.concatenate([[0], ends[ends < len(rewarded)]])
    before: np.ndarray = np.cumsum(rewarded) - rewarded
    keep: np.ndarray = before == np.repeat(before[starts], np.diff(starts, append=len(rewarded)))
    kept = {name: values[keep] for name, values in columns.items()}
    kept["terminals"] = rewarded[keep]
    kept["rewards"] = rewarded[keep].astype(np.float32)
    handling = (
        f"runs end, as terminals, with their first paid row; {int((~keep).sum()):,} rows left out"
    )
    return kept, handling
