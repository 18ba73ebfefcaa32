"""d3rlpy beside this library: it needs an old gym, so it runs in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_offrl.common.errors import ConfigError
from lit_offrl.datasets.schema import OfflineDataset

_SCRIPT = Path(__file__).with_name("peer_d3rlpy.py")
_STEPS = Path(__file__).with_name("peer_d3rlpy_steps.py")
_LONGEST = 600  # seconds for all of it: d3rlpy takes half a minute to begin


def how_to(option: str) -> str:
    """Say how to make the environment that an option takes."""
    return f"python3 -m venv ENV && ENV/bin/pip install torch d3rlpy, then {option} ENV/bin/python"


HOW_TO = how_to("--peer-python")


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
        jobs: (steps of a snippet, rows of a batch) each; 0 steps for plain transitions.
        budget: seconds of each job.
        script: what to run there.

    Raises:
        ConfigError: if it does not run there.
    """
    with tempfile.TemporaryDirectory() as folder:
        columns, out = _hand_over(dataset, folder), Path(folder, "out.json")
        argv = [str(part) for part in (script, columns, out, budget)]
        argv += [f"{window},{batch}" for window, batch in jobs]
        try:
            done = subprocess.run(
                [str(python), *argv], capture_output=True, text=True, timeout=_LONGEST
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failure("--peer-python", python, error) from None
        if done.returncode != 0 or not out.exists():
            last = (done.stderr.strip().splitlines() or ["it wrote no numbers"])[-1]
            raise _failure("--peer-python", python, last)
        return [float(speed) for speed in json.loads(out.read_text())]


class PeerSteps(NamedTuple):
    """Seconds of so many steps of d3rlpy's by the wall's and by the processor's clock."""

    sampling: float
    sampling_cpu: float
    updates: float
    updates_cpu: float


class PeerAlgorithm:
    """An algorithm of d3rlpy's in a process of its own, which steps when it is told to."""

    def __init__(
        self, process: subprocess.Popen[str], option: str, python: Path, said: Path
    ) -> None:
        self._process, self._option, self._python, self._said = process, option, python, said

    def step(self, number: int) -> PeerSteps:
        """Take so many steps.

        Raises:
            ConfigError: it has ended.
        """
        return PeerSteps(*self._ask(str(number)))

    def work(self) -> tuple[float, int]:
        """Take one step, and return its FLOPs and the number of trained parameters.

        Raises:
            ConfigError: it has ended.
        """
        flops, parameters = self._ask("work")
        return flops, int(parameters)

    def _ask(self, what: str) -> list[float]:
        assert self._process.stdin is not None
        try:
            print(what, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self.failure() from None
        answer: list[float] = json.loads(self.answer())
        return answer

    def answer(self) -> str:
        """Wait for a line.

        Raises:
            ConfigError: it has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self.failure()
        return line

    def failure(self) -> ConfigError:
        """Say what went wrong there."""
        self._process.wait(timeout=10)
        last = (self._said.read_text().strip().splitlines() or ["it ended without a word"])[-1]
        return _failure(self._option, self._python, last)


@contextmanager
def d3rlpy_algorithm(
    python: Path,
    dataset: OfflineDataset,
    *,
    batch_size: int,
    hidden: Sequence[int],
    learning_rate: float,
    threads: int,
    algorithm: str = "IQL",
    option: str = "--peer-python",
    script: Path | None = None,
) -> Iterator[PeerAlgorithm]:
    """An algorithm of d3rlpy's on the CPU, ready to step.

    Args:
        python: of an environment that has d3rlpy.
        dataset: rows to sample from, handed over in a temporary file.
        batch_size: rows of a step.
        hidden: widths of all its networks.
        learning_rate: of all its optimisers.
        threads: of PyTorch there.
        algorithm: IQL or CQL.
        option: which gave the Python, for messages.
        script: what to run there; ``peer_d3rlpy_steps.py`` if None.

    Raises:
        ConfigError: if it does not run there.
    """
    with tempfile.TemporaryDirectory() as folder:
        columns, said = _hand_over(dataset, folder), Path(folder, "said.txt")
        argv = [str(part) for part in (python, script or _STEPS, columns, threads, batch_size)]
        argv += [",".join(map(str, hidden)), str(learning_rate), algorithm]
        with said.open("w") as file:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
                )
            except OSError as error:
                raise _failure(option, python, error) from None
        with process:
            try:
                peer = PeerAlgorithm(process, option, python, said)
                peer.answer()
                yield peer
            finally:
                process.kill()


def _failure(option: str, python: Path, reason: object) -> ConfigError:
    return ConfigError(f"{option} {python}: {reason}. Make it by: {how_to(option)}.")


def _hand_over(dataset: OfflineDataset, folder: str) -> Path:
    path = Path(folder, "columns.npz")
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    with path.open("wb") as file:
        np.savez(file, **{name: dataset.columns[name] for name in names})  # type: ignore[arg-type]
    return path
