"""Which columns of a log are meant by ``a,b,c``, ``obs_0..obs_11`` and ``obs_*``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.datasets.columns import listed

_NUMBERED = r"(?P<{0}head>.*?)(?P<{0}number>\d+)(?P<{0}tail>\D*)"
_RANGE = re.compile(_NUMBERED.format("a") + r"\.\." + _NUMBERED.format("b"))
_MOST = 10**6  # columns that a range may stand for


def choose_columns(text: str, names: Sequence[str], option: str, where: str) -> list[str]:
    """Return the columns that a text stands for, in its order.

    Args:
        text: Names with commas between them. Each may also be a range of numbered columns,
            ``obs_0..obs_11`` or ``obs_0..11``, both ends included, or a pattern with ``*`` and
            ``?``, whose columns come in the log's order. A name that the log has stands for itself,
            whatever is in it.
        names: Names of the log's columns.
        option: Option that the text was given with, for messages.
        where: The log, for messages.

    Raises:
        ConfigError: a column is not there, or is named twice.
    """
    chosen: list[str] = []
    for item in [text] if text in names else text.split(","):
        for name in _expand(item.strip(), names, option, where):
            if name in chosen:
                raise ConfigError(f"{where}: {option} names column '{name}' twice: name it once.")
            chosen.append(name)
    return chosen


def _expand(item: str, names: Sequence[str], option: str, where: str) -> list[str]:
    if item in names:
        return [item]
    found = _RANGE.fullmatch(item)
    if found is not None:
        return _numbered(found, item, names, option, where)
    if "*" in item or "?" in item:
        pattern = item.replace("[", "[[]")  # brackets are names' own, as in `q[0]`
        matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if matching:
            return matching
    what = f"no column '{item}'" if item else f"an empty name in '{option}'"
    hint = nearest(item, names) or f" Give a name that {option} is to stand for."
    raise ConfigError(f"{where}: has {what} (it has {listed(names)}).{hint}")


def _numbered(
    found: re.Match[str], item: str, names: Sequence[str], option: str, where: str
) -> list[str]:
    head, tail = found["ahead"], found["atail"]
    first, last = int(found["anumber"]), int(found["bnumber"])
    same = found["bhead"] in ("", head) and found["btail"] in ("", tail)
    if not same or not first <= last <= first + _MOST:
        raise ConfigError(
            f"{where}: {option} has '{item}', which is no range: write the first and the last "
            "column of one name and rising numbers, as obs_0..obs_11."
        )
    digits = len(found["anumber"]) if found["anumber"].startswith("0") else 1
    columns = [f"{head}{number:0{digits}d}{tail}" for number in range(first, last + 1)]
    known = set(names)
    for column in columns:
        if column not in known:
            raise ConfigError(
                f"{where}: has no column '{column}' of '{item}' (it has {listed(names)})."
                f"{nearest(column, names) or ' Give a range of columns that it has.'}"
            )
    return columns
