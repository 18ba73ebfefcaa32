"""From nothing to the first batch, to the first step of ``fit``, and to each verb's help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from lit_offrl.__main__ import COMMANDS, TRAINER_VERBS
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

# Stops where the first batch is about to be trained on.
_FIRST_STEP = """
import os, sys
from lightning.pytorch import Callback
from lit_offrl.__main__ import main

class FirstStep(Callback):
    def on_train_batch_start(self, *args):
        os._exit(0)

sys.exit(main(sys.argv[1:]))
"""
_FIT = "fit --config dvf_pybullet --config quick --trainer.callbacks+ __main__.FirstStep".split()
_SHORT = """fit --config bc --config data/pybullet --trainer.max_steps 1 --trainer.logger false
--evaluation.episodes 0 --checkpoint.dirpath run""".split()
_EVALUATE = """evaluate --ckpt_path run/last.ckpt --episodes 1 --num_envs 1 --max_episode_steps 1
--no-mlflow""".split()
_BARE = ("torch", "lightning.pytorch", "mlflow")
_OURS = ("-m", "lit_offrl")


@dataclass(frozen=True)
class ProcessorResult:
    """Processor seconds of a process of its own, the interpreter's start included.

    Attributes:
        name: of what it ran.
        seconds: the fewest of some runs, of user and system together.
    """

    name: str
    seconds: float


def run_processor(*, repeats: int = 2) -> Iterator[ProcessorResult]:
    """Measure bare imports, then ``fit`` to its first step, a step of ``evaluate``, and all helps.

    Byte code, caches of the bundled data and MLflow's store are there from the second run on.
    """
    with tempfile.TemporaryDirectory() as folder:

        def fewest(*arguments: str) -> float:
            return min(processor_seconds(folder, *arguments) for _ in range(repeats))

        for name in _BARE:
            yield ProcessorResult(f"import {name}", fewest("-c", f"import {name}"))
        yield ProcessorResult("fit to its first step", fewest("-c", _FIRST_STEP, *_FIT))
        bare = ("--trainer.logger", "false")
        seconds = fewest("-c", _FIRST_STEP, *_FIT, *bare)
        yield ProcessorResult("fit to its first step, no logger", seconds)
        processor_seconds(folder, *_OURS, *_SHORT)
        yield ProcessorResult("evaluate, one step", fewest(*_OURS, *_EVALUATE))
        for verb in (*TRAINER_VERBS, *COMMANDS):
            yield ProcessorResult(f"{verb} --help", fewest(*_OURS, verb, "--help"))


def processor_seconds(folder: str, *arguments: str) -> float:
    """Run Python in a folder; return the processor seconds that the process has used.

    Raises:
        RuntimeError: It failed, with the end of what it said.
    """
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(arguments)}: {said.read()[-2000:]}")
    return usage.ru_utime + usage.ru_stime


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
