"""d3rlpy beside the views: it needs an old gym, so it runs in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_offrl.datasets.schema import OfflineDataset
from lit_offrl.errors import ConfigError

_SCRIPT = Path(__file__).with_name("peer_d3rlpy.py")
_LONGEST = 600  # seconds for all of it: d3rlpy takes half a minute to begin
HOW_TO = (
    "python3 -m venv ENV && ENV/bin/pip install torch d3rlpy, then --peer-python ENV/bin/python"
)


def d3rlpy_speeds(
    python: Path,
    dataset: OfflineDataset,
    jobs: Sequence[tuple[int, int]],
    *,
    budget: float,
    script: Path = _SCRIPT,
) -> list[float]:
    """Return the rows a second that d3rlpy samples from a dataset, on the CPU.

    Args:
        python: of an environment that has d3rlpy.
        dataset: rows to sample from, handed over in a temporary file.
        jobs: (steps of a window, rows of a batch) each; 0 steps for plain transitions.
        budget: seconds of each job.
        script: what to run there.

    Raises:
        ConfigError: if it does not run there.
    """
    with tempfile.TemporaryDirectory() as folder:
        columns, out = Path(folder, "columns.npz"), Path(folder, "out.json")
        names = ("observations", "actions", "rewards", "terminals", "timeouts")
        with columns.open("wb") as file:
            np.savez(file, **{name: dataset.columns[name] for name in names})  # type: ignore[arg-type]
        words = [str(part) for part in (script, columns, out, budget)]
        words += [f"{window},{batch}" for window, batch in jobs]
        try:
            done = subprocess.run(
                [str(python), *words], capture_output=True, text=True, timeout=_LONGEST
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"--peer-python {python}: {error}. Make it by: {HOW_TO}.") from None
        if done.returncode != 0 or not out.exists():
            last = (done.stderr.strip().splitlines() or ["it wrote no numbers"])[-1]
            raise ConfigError(f"--peer-python {python}: {last}. Make it by: {HOW_TO}.")
        return [float(speed) for speed in json.loads(out.read_text())]
