"""Corrects d4rl-pybullet's layout: rewards shifted by one, and time limits written as terminals.

A row of the file is (obs_t, action_t, the reward that arrived AT obs_t, whether obs_t is terminal),
and each episode ends in an extra row (final observation, zero action, terminal 1):

    row           0    1    2    3*        * extra row        transition t, where terminals[t] = 0:
    observations  s0   s1   s2   s3                           (obs[t], actions[t], rewards[t+1],
    actions       a0   a1   a2   0                             obs[t+1], terminals[t+1])
    rewards       0    r0   r1   r2
    terminals     0    0    0    1

The step limit too is written as terminal 1, so one at exactly the limit is a timeout.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.columns import clean_columns

COLUMNS = ("observations", "actions", "rewards", "terminals")
STEP_LIMIT = 1000  # of all four environments
LAYOUT = "layout: "
"""Begins what is said of the layout."""
GUESSED = LAYOUT + "guessed to be "


def looks_like(terminals: np.ndarray, actions: np.ndarray | None) -> bool | None:
    """Say whether these columns, as stored without ``timeouts``, have this layout.

    None if they leave it open: ``terminals`` are (N, 1), and there are no actions (N, a).
    """
    if terminals.ndim != 2 or terminals.shape[1] != 1:
        return False
    ends = terminals[:, 0] != 0
    if not ends.any():
        return False
    if actions is None or len(actions) != len(ends):
        return None
    return not actions[ends].any()


def handling(extra: int, guessed: bool) -> str:
    """Return what stands with the data: how many rows were left out, and whether on a guess."""
    done = f"d4rl-pybullet's: each row's reward is the one after it, {extra:,} extra rows left out"
    if not guessed:
        return LAYOUT + done
    return (
        f"{GUESSED}{done}; the signs were 'terminals' of shape (N, 1), no 'timeouts', and zero "
        "actions on all terminal rows: if the rows are steps already, give format 'd4rl'"
    )


def to_transitions(
    columns: Mapping[str, np.ndarray], step_limit: int, where: str
) -> dict[str, np.ndarray]:
    """Turn the file's rows into one row a transition, with ``next_observations`` and ``timeouts``.

    Args:
        columns: Columns as stored: ``observations`` (N, o), ``terminals`` (N, 1), and ``actions``
            (N, a) and ``rewards`` (N, 1) if the file has them.
        step_limit: Step limit: an episode of exactly this many transitions ended in a timeout.
        where: The file, for messages; their rows are those of the file.

    Raises:
        DatasetError: if a column is wrong, or no transition is left.
    """
    cleaned = clean_columns(columns, where)
    ended = cleaned["terminals"]
    rows = np.flatnonzero(~ended[:-1])
    if len(rows) < 2:
        raise DatasetError(
            f"{where}: column 'terminals' ends nearly every row, so that {len(rows)} transitions "
            "are left: read the file with format='d4rl' if its rows are transitions already."
        )
    ends = ended[rows + 1]
    # A transition's place in its episode: the row after the last end is the episode's first.
    firsts = np.concatenate([[0], np.flatnonzero(ended) + 1])
    steps = rows - firsts[np.searchsorted(firsts, rows, side="right") - 1] + 1
    timeouts = ends & (steps == step_limit)
    made = {
        "observations": cleaned["observations"][rows],
        "next_observations": cleaned["observations"][rows + 1],
        "terminals": ends & ~timeouts,
        "timeouts": timeouts,
    }
    if "actions" in cleaned:
        made["actions"] = cleaned["actions"][rows]
    if "rewards" in cleaned:
        made["rewards"] = cleaned["rewards"][rows + 1]
    return made
