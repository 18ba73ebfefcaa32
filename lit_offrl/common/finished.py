"""The file by which a fit says that it has ended by itself, and how its starter reads it.

An exit code of 0 says less: sweeps and pipelines look here, and a fit that has ended before its
last step for no reason of its own is not taken for a trained one.
"""

from __future__ import annotations

import json
from pathlib import Path

FINISHED = "finished.json"
"""In the run's folder once a fit has ended by itself; see ``callbacks.SayWhyEnded``."""


def why_unfinished(run: Path) -> str:
    """Say in a line why a fit that has ended with 0 does not count as finished, or ``""``."""
    if not (run / "last.ckpt").is_file():
        return ""  # the reader of the checkpoint says so
    try:
        facts = json.loads((run / FINISHED).read_text())
        step, limit, reason = int(facts["step"]), facts["max_steps"], facts["reason"]
        short = reason == "max_steps" and step < int(limit)
    except FileNotFoundError:
        return (
            f"fit ended with 0 without having finished (there is no {run / FINISHED}): the same"
            " command goes on"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"fit ended with 0, but {run / FINISHED} cannot be read"
    return f"fit ended with 0 at step {step:,} of {int(limit):,}" if short else ""
