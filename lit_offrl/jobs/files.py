"""What a job leaves in its folder: small files and logs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import ConfigError

_STEPS = re.compile(r"(\d+)/(\d+) \[")
_TAIL = 4096


def read_stored(path: Path, key: str) -> dict[str, Any] | None:
    """Return ``{"id": …, KEY: {…}}`` of a file that says what a folder was made by, if it is there.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        stored = json.loads(path.read_text())
        return {"id": stored["id"], key: dict(stored[key])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error!r}): move the folder {path.parent} away."
        ) from error


def failure_reason(path: Path) -> str:
    """Say what a ``failed.json`` says."""
    try:
        failure = json.loads(path.read_text())
        return f"{failure['verb']} ended with {failure['code']}: {failure['line']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "failed"


def mean_score(path: Path) -> float | None:
    """Mean normalised score of an evaluation's record, or return where there are no references."""
    try:
        record = json.loads(path.read_text())
        values = record.get("scores") or record["returns"]
        return sum(values) / len(values)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def steps_done(log: Path) -> str:
    """How far a fit's log is, ``1200/5500``; "" before its first step."""
    found = _STEPS.findall(tail(log))
    return "/".join(found[-1]) if found else ""


def tail(path: Path) -> str:
    """Return the end of a log, "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(path: Path, offset: int = 0) -> str:
    """Return the last line of a log after ``offset`` bytes that is not blank."""
    if not path.exists() or path.stat().st_size <= offset:
        return "(no output)"
    lines = [line.strip() for line in re.split(r"[\r\n]", tail(path))]
    return next((line[:300] for line in reversed(lines) if line), "(no output)")
