"""Where episodes end, from whatever columns a file has for it: read rightly, or refused by name.

Beside ``terminals`` (the task ended) and ``timeouts`` (only the recording ended), files say it with
other words. What a column of a known name claims of each row:

    terminals   terminations, terminated, is_terminal; discounts, where 0     a terminal
    timeouts    truncations, truncated, TimeLimit.truncated                   a timeout
    ends        dones, is_last, episode_terminals, episode_ends, …            one of the two
    starts      is_first, episode_starts                                      one a row before
    episodes    episode_ids, episode_index, traj_id; episode_lengths          one where they change
    masks       0 at a terminal                                               (JaxRL, OGBench)
    counts, …   steps within an episode, numbers of demonstrations: see ``ends_implied``

Ends that are no terminals are timeouts. Claims that contradict each other are refused, and so is a
flag of an unknown name that sounds like an end and is True where no end was read: what is left out
would silently join episodes. Where the file's own ``timeouts`` tell of ends, what cannot be read of
other names is ignored.

OGBench's ``terminals`` mark each trajectory's last state, and its ``masks`` the true ends: where
both are there, differ, and no timeouts are, they are read so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NoReturn

import numpy as np

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.columns import KINDS, NUMERIC
from lit_offrl.datasets.ends_implied import implied_ends, runs

_EPISODE = r"(ep|eps|episode|episodes|traj|trajs|trajectory|trajectories|rollout)"
_NAMES = {
    "terminals": r"terminals?|terminations?|terminateds?|terminates|is_terminals?|is_terminated",
    "timeouts": r"time_?outs?|truncations?|(is_)?truncateds?|time_?limits?(_truncated)?",
    "ends": rf"(is_|{_EPISODE}_|next_)?(dones?|ends?|ended|last|terminals?)(_float)?|is_final",
    "starts": rf"(is_|{_EPISODE}_)?(first|starts?|resets?|begins?)|new_{_EPISODE}",
    "episodes": rf"{_EPISODE}(_(ids?|idxs?|index|indexes|indices|nums?|numbers?|no|nr))?",
    "lengths": rf"{_EPISODE}_(lens?|lengths?)",
    "masks": r"masks|non_?terminals?|continues?",
    "going on": r"valids|not_dones?",
    "discounts": r"discounts?",
    # These may imply ends, where no other column states them.
    "counts": r"((ep|eps|episode|traj|trajectory|env|elapsed)_)?(t|time_?steps?|steps?|frames?)"
    r"(_(ids?|idx|index|indices|num|number|no|count|counter))?",
    "numbers": r"(paths?|demos?|demonstrations?|sequences?|seqs?|runs?|trials?)"
    r"(_(ids?|idx|index|indices|num|number|no))?",
}
_SOUNDS_LIKE_AN_END = re.compile(
    r"dones?|termina|truncat|time_?out|time_?limit|new_episode|(episode|traj|trajectory)_(over|start)"
    r"|(^|_)(ends?|ended|last|final|first|resets?|boundary|boundaries)$"
    r"|(^|_)(finish|finished|eos|eoe|eop)$|^ends?_of_"
)
_DECISIVE = ("terminals", "timeouts")
"""Kinds that say which sort of end it is."""
_IMPLIED = ("counts", "numbers")
"""Kinds of columns that may imply ends."""


def kind_of(key: str) -> str | None:
    """Return what a column claims by its name, ``"unknown"`` if it only sounds like an end.

    Args:
        key: Name of the column, such as ``infos/TimeLimit.truncated``. Only its last part counts.

    Returns:
        One of the kinds above; None for a name that has nothing to do with episodes' ends.
    """
    snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.rpartition("/")[2])
    name = re.sub(r"[^a-z0-9]+", "_", snake_case.lower()).strip("_")
    for kind, pattern in _NAMES.items():
        if re.fullmatch(pattern, name):
            return kind
    return "unknown" if _SOUNDS_LIKE_AN_END.search(name) else None


def stating(keys: Iterable[str]) -> list[str]:
    """Return the columns that state episodes' ends, or seem to, rather than imply them."""
    return [key for key in keys if kind_of(key) not in _IMPLIED]


def decisive(keys: Iterable[str]) -> bool:
    """Say whether a column tells terminals or timeouts, so that ends can be read."""
    return any(kind_of(key) in _DECISIVE for key in keys)


def refuse_undecided(keys: Iterable[str], where: str) -> None:
    """Raise DatasetError for the first column that says where episodes end and not how."""
    for key in keys:
        if kind_of(key) not in (None, "unknown", *_IMPLIED):
            raise DatasetError(
                f"{where}: has neither 'terminals' nor 'timeouts', and its column '{key}' does not "
                "say which of its ends are the task's and which only the recording's: write them "
                "as two bool columns, 'terminals' and 'timeouts'."
            )


def may_claim(key: str, shape: tuple[int, ...], dtype: np.dtype, rows: int) -> bool:
    """Say whether a column is to be read for what it claims, or refused by name in ``read_ends``.

    Not where another use explains it better: a start position (N, 2), an action mask (N, k).
    """
    kind = kind_of(key)
    flat = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if flat and dtype.kind in NUMERIC:
        lenient = (None, "unknown", "masks", "going on", "discounts", *_IMPLIED)
        return shape[0] == rows or kind not in lenient
    return kind in _DECISIVE or "done" in key.lower() or (flat and kind == "episodes")


def settled(found: Mapping[str, np.ndarray]) -> bool:
    """Say whether the file's own ``timeouts`` tell of an end, so that no other name is needed."""
    timeouts = found.get("timeouts")
    return timeouts is not None and timeouts.dtype.kind in NUMERIC and bool((timeouts != 0).any())


def doubt(columns: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Return a line if every timeout is marked as a terminal as well, as ``done`` often is."""
    known = {kind_of(key): values.reshape(-1) for key, values in columns.items()}
    if not known.keys() >= set(_DECISIVE):
        return ()
    flags = [known[kind] for kind in _DECISIVE]
    if any(each.dtype.kind not in NUMERIC for each in flags) or len(flags[0]) != len(flags[1]):
        return ()  # which is refused later
    terminals, timeouts = (each != 0 for each in flags)
    count = int(timeouts.sum())
    if count < 2 or (timeouts & ~terminals).any():
        return ()
    return (
        f"all {count:,} rows that 'timeouts' marks are marked by 'terminals' as well, and read as "
        "terminals, after which no value follows: if only the recording ended there, write False "
        "in 'terminals'",
    )


def refuse(key: str, what: str, where: str) -> NoReturn:
    """Raise DatasetError for ``what`` is wrong with a column whose name promises episodes' ends."""
    raise DatasetError(
        f"{where}: column '{key}' sounds like episodes' ends and {what}: write 'timeouts' (bool, "
        "True on the last row of an episode that did not end in a terminal), or rename it."
    )


def read_ends(
    found: Mapping[str, np.ndarray], rows: int, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return ``terminals`` and, where they are known, ``timeouts`` (N,), and how they were read.

    ``found`` are the columns, as stored, whose names have a ``kind_of``, those two among them.

    Raises:
        DatasetError: a column has another form than its name promises, or two contradict.
    """
    return _Ends(found, rows, where).read()


class _Ends:
    """The claims of one file."""

    def __init__(self, found: Mapping[str, np.ndarray], rows: int, where: str) -> None:
        self._rows, self._where = rows, where
        self._claims: dict[str, list[tuple[str, np.ndarray]]] = {
            kind: [] for kind in ("terminals", "timeouts", "ends", "masks", "unknown")
        }
        self._hints: list[tuple[str, str, np.ndarray]] = []  # the kind, name and values of each
        self._settled = settled(found)
        # our own names first, so that messages set the others beside them
        for key in sorted(found, key=lambda key: (key not in KINDS, key)):
            try:
                self._take(key, np.asarray(found[key]))
            except DatasetError:
                if not self._settled:
                    raise

    def read(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        terminals = self._agreed("terminals")
        timeouts = self._agreed("timeouts", None if terminals is None else terminals[1])
        said = [
            f"{kind} read from '{claim[0]}'"
            for kind, claim in (("terminals", terminals), ("timeouts", timeouts))
            if claim is not None and claim[0] != kind
        ]
        ends = list(self._claims["ends"])
        stray = False  # whether terminals may lie within a trajectory
        masked = self._agreed("masks")
        if masked is not None:
            if terminals is None:
                terminals = masked
                said.append(f"terminals read where '{masked[0]}' is 0")
            elif not np.array_equal(masked[1], terminals[1]):
                if timeouts is not None:
                    self._contradict(terminals, masked)
                ends, terminals, stray = [terminals, *ends], masked, True
                said.append(
                    f"terminals read where '{masked[0]}' is 0; rows that '{ends[0][0]}' marks "
                    "besides are the last of their trajectories, read as timeouts"
                )
        if terminals is not None:  # `dones` that are the very terminals say nothing more
            ends = [end for end in ends if not np.array_equal(end[1], terminals[1])]
        for end in ends[1:]:
            if not _same(end[1], ends[0][1]):
                self._contradict(ends[0], end)
        read = self._combine(terminals, timeouts, ends[0] if ends else None, stray, said)
        if not self._settled:
            if not ends and (timeouts is None or not timeouts[1].any()):
                self._imply(read, said)
            self._refuse_unknown(read)
        return read, tuple(said)

    def _imply(self, read: dict[str, np.ndarray], said: list[str]) -> None:
        """Put in as timeouts what counters and numbers of episodes imply and no column states."""
        never = np.zeros(self._rows, dtype=np.bool_)
        terminals = read.get("terminals", never)
        for kind, key, values in self._hints:
            ends = implied_ends(kind, values, terminals)
            if ends is None:
                continue
            known = terminals | read.get("timeouts", never)
            more = ends & ~known
            if more[:-1].any():
                read["timeouts"] = read.get("timeouts", never) | more
                said.append(
                    f"timeouts read where by '{key}' an episode ends without a terminal "
                    f"({int(more.sum()):,} rows)"
                )

    def _combine(
        self,
        terminals: tuple[str, np.ndarray] | None,
        timeouts: tuple[str, np.ndarray] | None,
        ends: tuple[str, np.ndarray] | None,
        stray: bool,
        said: list[str],
    ) -> dict[str, np.ndarray]:
        if ends is None:
            given = {"terminals": terminals, "timeouts": timeouts}
            return {name: claim[1] for name, claim in given.items() if claim is not None}
        if terminals is None:
            if timeouts is None:
                refuse_undecided([ends[0]], self._where)
            assert timeouts is not None
            if (timeouts[1][:-1] & ~ends[1][:-1]).any():
                self._contradict(timeouts, ends)
            said.append(f"terminals read where '{ends[0]}' ends episodes without a timeout")
            return {"terminals": ends[1] & ~timeouts[1], "timeouts": timeouts[1]}
        if not stray and (terminals[1][:-1] & ~ends[1][:-1]).any():
            self._contradict(terminals, ends)
        rest = ends[1] & ~terminals[1]
        if timeouts is not None:
            if not _same(rest, timeouts[1] & ~terminals[1]):
                self._contradict(timeouts, (ends[0], rest))
            return {"terminals": terminals[1], "timeouts": timeouts[1]}
        if not stray:
            said.append(
                f"timeouts read where '{ends[0]}' ends episodes without a terminal "
                f"({int(rest.sum()):,} rows)"
            )
        return {"terminals": terminals[1], "timeouts": rest}

    def _take(self, key: str, values: np.ndarray) -> None:
        kind = kind_of(key)
        if values.dtype.kind not in NUMERIC or values.ndim not in (1, 2) or values[:1].size != 1:
            if key in KINDS:
                return  # its own check says what is wrong with it
            self._refuse(key, f"has dtype {values.dtype} and shape {values.shape}")
        values = values.reshape(-1)
        # such lengths are those of each row's episode
        implied = kind in _IMPLIED or (kind == "lengths" and values.sum() != self._rows)
        if implied and kind is not None and len(values) == self._rows:
            self._hints.append((kind, key, values))
        elif claim := self._claim(kind, key, values):
            self._claims[claim[0]].append((key, claim[1]))

    def _claim(
        self, kind: str | None, key: str, values: np.ndarray
    ) -> tuple[str, np.ndarray] | None:
        """Return what a column claims, and of which rows (N,); None where that is nothing."""
        if kind == "lengths":
            return "ends", self._at(key, np.cumsum(values) - 1)
        if len(values) != self._rows:
            if key in KINDS:
                return None
            if kind == "ends" and values.dtype.kind in "iu":  # row numbers, cumulative
                past = int(values[-1:].sum()) == self._rows
                return "ends", self._at(key, values.astype(np.int64) - past)
            if kind == "starts" and values.dtype.kind in "iu":
                return "ends", _before(self._at(key, values, last=False))
            self._refuse(key, f"has {len(values):,} rows where 'observations' has {self._rows:,}")
        if kind == "episodes":
            return "ends", self._changes(key, values)
        if kind == "discounts":
            return ("terminals", values == 0) if (values == 0).any() else None
        if kind == "masks" and _discounts(values):
            return "masks", values == 0
        flags, bad = values != 0, (values != 0) & (values != 1)
        if bad.any() and (key in KINDS or kind == "unknown"):
            return None
        if bad.any():
            row = int(np.argmax(bad))
            self._refuse(key, f"has {values[row]} in row {row:,}, where only 0 and 1 may stand")
        if kind == "starts":
            return "ends", _before(flags)
        if kind in ("masks", "going on"):
            return "masks" if kind == "masks" else "ends", ~flags
        return None if kind is None else (kind, flags)

    def _changes(self, key: str, values: np.ndarray) -> np.ndarray:
        """Return the last rows of runs of equal numbers; an episode must be one run."""
        ends, again = runs(values)
        if again is not None:
            apart = "so that the rows of an episode do not lie together (sort them by episode)"
            self._refuse(key, f"comes back to {values[again]} in row {again:,}, {apart}")
        return ends

    def _at(self, key: str, rows: np.ndarray, last: bool = True) -> np.ndarray:
        """Return flags (N,) of rows given by rising numbers that end, or begin, at the file's."""
        whole = len(rows) > 0 and (rows[-1] == self._rows - 1 if last else rows[0] == 0)
        if not whole or (np.diff(rows) <= 0).any() or rows[0] < 0 or rows[-1] >= self._rows:
            self._refuse(
                key, f"has {len(rows):,} numbers that do not divide the {self._rows:,} rows"
            )
        flags = np.zeros(self._rows, dtype=np.bool_)
        flags[rows.astype(np.int64)] = True
        return flags

    def _agreed(
        self, kind: str, besides: np.ndarray | None = None
    ) -> tuple[str, np.ndarray] | None:
        """Return the one claim of a kind that is only about rows other than ``besides`` (N,)."""
        claims = self._claims[kind]
        if besides is not None:
            claims = [(key, claim & ~besides) for key, claim in claims]
        if kind == "timeouts" and any(claim[1].any() for claim in claims):
            # another name's that are never True were not written, and join nothing
            claims = [each for each in claims if each[0] in KINDS or each[1].any()]
        same = _same if kind == "timeouts" else np.array_equal
        for claim in claims[1:]:
            if not same(claim[1], claims[0][1]):
                self._contradict(claims[0], claim)
        return claims[0] if claims else None

    def _refuse(self, key: str, what: str) -> NoReturn:
        refuse(key, what, self._where)

    def _contradict(self, one: tuple[str, np.ndarray], other: tuple[str, np.ndarray]) -> NoReturn:
        row = int(np.argmax(one[1] != other[1]))
        raise DatasetError(
            f"{self._where}: columns '{one[0]}' and '{other[0]}' contradict each other about "
            f"episodes' ends, first in row {row:,}: keep 'terminals' (the task ended) and "
            "'timeouts' (only the recording ended)."
        )

    def _refuse_unknown(self, read: Mapping[str, np.ndarray]) -> None:
        ends = np.zeros(self._rows, dtype=np.bool_)
        for flags in read.values():
            ends = ends | flags
        ends[-1] = True
        for key, flags in self._claims["unknown"]:
            lost = flags & ~ends
            if lost.any() and (flags & ~np.append(True, ends[:-1])).any():
                self._refuse(key, f"is True in row {int(np.argmax(lost)):,}, where no end was read")


def _discounts(values: np.ndarray) -> bool:
    """Say whether masks are multiplied by a discount already: 0 and one positive number."""
    high = values.max()
    return bool(high > 0 and ((values == 0) | (values == high)).all())


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Say whether two agree; of the last row, which is an end in any case, both may be silent."""
    return bool(np.array_equal(one[:-1], other[:-1]))


def _before(firsts: np.ndarray) -> np.ndarray:
    """Return the rows before the first ones of episodes, and the last row of all."""
    return np.append(firsts[1:], True)
