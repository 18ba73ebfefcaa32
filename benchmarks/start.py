"""From nothing to the first batch: the first start on a file, and later ones from the cache."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from lit_offrl.datasets.hdf5 import write_hdf5

SHAPES = {"maze2d-large-v1": (4, 2), "hopper-medium-v2": (11, 3)}
"""Catalogue names whose files are made up, with their sizes."""

_LATER = 3
# A process of its own, as a user's is: first the imports, then the rest.
_CODE = """
import json, sys, time
begun = time.perf_counter()
import torch
from lit_offrl.datamodules import D4RLDataModule
torch.set_num_threads(int(sys.argv[3]))
imported = time.perf_counter()
data = D4RLDataModule(sys.argv[1], data_dir=sys.argv[2])
data.setup("fit")
next(iter(data.train_dataloader()))
ready = time.perf_counter()
print(json.dumps([imported - begun, ready - imported]))
"""


@dataclass(frozen=True)
class StartResult:
    """Seconds until a datamodule has made its first batch, medians where there are several.

    Attributes:
        name: of the dataset whose shape it is.
        rows: N.
        first_seconds: the first start, which reads and checks the file; imports not included.
        later_seconds: median seconds of a later start, with its caches there.
        import_seconds: median seconds of the imports of all starts.
    """

    name: str
    rows: int
    first_seconds: float
    later_seconds: float
    import_seconds: float


def run_starts(*, threads: int = 1, seed: int = 0, rows: int = 1_000_000) -> Iterator[StartResult]:
    """Measure each shape in processes of their own."""
    for name, sizes in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder) / f"{name}.hdf5", rows, sizes, seed)
            times = [_start(name, folder, threads) for _ in range(1 + _LATER)]
        yield StartResult(
            name=name,
            rows=rows,
            first_seconds=times[0][1],
            later_seconds=median(ready for _, ready in times[1:]),
            import_seconds=median(imports for imports, _ in times),
        )


def _start(name: str, folder: str, threads: int) -> list[float]:
    command = [sys.executable, "-c", _CODE, name, folder, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def _write(path: Path, rows: int, sizes: tuple[int, int], seed: int) -> None:
    """Episodes of 1,000 rows; what the numbers are does not matter to the time it takes."""
    random = np.random.default_rng(seed)
    columns = {
        "observations": random.standard_normal((rows, sizes[0]), dtype=np.float32),
        "actions": random.uniform(-1, 1, (rows, sizes[1])).astype(np.float32),
        "rewards": random.standard_normal(rows, dtype=np.float32),
        "terminals": np.zeros(rows, np.bool_),
        "timeouts": np.arange(rows) % 1000 == 999,
    }
    if "maze2d" not in path.name:
        columns["next_observations"] = np.roll(columns["observations"], -1, axis=0)
    write_hdf5(path, columns)
