"""``next_observations`` that are the next episode's first, as auto-resetting environments give.

    episode           0   0   0 | 1   1
    observations      s0  s1  s2| s0' s1'
    next_observations s1  s2  s0'                      s0' is no state that s2's action led to

Such rows are marked in the column ``next_unknown`` and get their own observation as the next one:
where the episode timed out they make no transition, as in data without ``next_observations``;
where it terminated nothing is bootstrapped from it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lit_offrl.datasets.d4rl import family
from lit_offrl.datasets.schema import OfflineDataset

_ON_AND_ON = ("maze2d", "antmaze")  # D4RL's runs go on where an episode was cut from them


def mark_autoresets(dataset: OfflineDataset) -> OfflineDataset:
    """Return a dataset, in the order recorded, with auto-resets' ``next_observations`` marked.

    An equality of one episode's last with the next one's first observation counts where it holds
    for half of the ends of its kind (terminals, timeouts) or more, or where no other episode begins
    in that state; else an environment that always begins in one state, and by chance ended there,
    would be taken for one.
    """
    columns, spec = dataset.columns, dataset.spec
    if "next_observations" not in columns or "next_unknown" in columns:
        return dataset
    if family(spec.env_id or spec.name) in _ON_AND_ON or len(dataset.episodes) < 2:
        return dataset
    found = _episodes(dataset)
    count = int(found.sum())
    if count == 0:
        return dataset
    rows = dataset.episodes[found, 1] - 1
    unknown = np.zeros(len(dataset), dtype=np.bool_)
    unknown[rows] = True
    following = columns["next_observations"].copy()
    following[rows] = columns["observations"][rows]
    notice = (
        f"next_observations of the last row of {count:,} episodes is the next episode's first "
        "observation (an auto-reset): leave the column out, or store the final observation; "
        "those that time out make no transition of that row"
    )
    names = tuple(dict.fromkeys([*spec.columns, "next_unknown"]))
    return OfflineDataset.from_checked(
        {**columns, "next_observations": following, "next_unknown": unknown},
        replace(spec, notices=(*spec.notices, notice), columns=names),
        dataset.provenance,
        dataset.episodes,
        dataset.cut_off,
    )


def _episodes(dataset: OfflineDataset) -> np.ndarray:
    """Return of which episodes (E,) the last row's next observation is the next one's first."""
    observations, following = dataset.columns["observations"], dataset.columns["next_observations"]
    starts, lasts = dataset.episodes[:, 0], dataset.episodes[:, 1] - 1
    firsts = observations[starts]
    same = (following[lasts[:-1]] == firsts[1:]).all(axis=1)
    if not same.any():
        return np.zeros(len(lasts), dtype=np.bool_)
    _, kinds, sizes = np.unique(firsts, axis=0, return_inverse=True, return_counts=True)
    single = sizes[kinds.reshape(-1)][1:] == 1
    found = np.zeros(len(lasts), dtype=np.bool_)
    terminated = dataset.episode_terminated
    for kind in (True, False):
        of_kind = terminated[:-1] == kind
        usual = of_kind.any() and same[of_kind].mean() >= 0.5
        found[:-1] |= of_kind & same & (single | usual)
        # What the last one was reset to is not in the file; if it was cut off, nothing was reset.
        if usual and terminated[-1] == kind and not dataset.cut_off:
            found[-1] = True
    return found
