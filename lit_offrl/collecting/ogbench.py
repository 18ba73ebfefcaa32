"""Making OGBench's datasets, files that ``ogbench.make_env_and_datasets`` reads as its own.

    NAME.parts/000000.npz ┐
    NAME.parts/000001.npz ├─▶ NAME.npz, NAME-val.npz, and NAME.json, which says how they came to be
    …                     ┘   then NAME.parts goes

Each episode is made whole, by one of several processes, and kept in a file of its own until all are
there: whoever stops, by whatever signal, loses the episodes under way, and the same command goes on
with the missing ones. The bytes depend on the seed, the kind, the sizes and the versions of
packages, and neither on the number of processes nor on interruptions.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lit_offrl.collecting.base import Recipe, progress_bar
from lit_offrl.collecting.ogbench_episodes import COLUMNS, OFFICIAL, make_parts, part, work
from lit_offrl.common.errors import ConfigError, EvaluationError, LitOffRLError, first_line
from lit_offrl.common.files import file_sha256, part_path, require_writable, whole_file, write_whole
from lit_offrl.common.quiet import say
from lit_offrl.datasets.ogbench_entries import validation_name
from lit_offrl.evaluation.record import package_versions
from lit_offrl.experiments.process import folder_lock

_DECISIVE = ("dm_control", "gymnasium", "mujoco", "numpy", "ogbench", "scipy")  # for the bytes


@dataclass(kw_only=True)
class OGBenchCollection(Recipe):
    """Episodes of OGBench's oracles in its own files: ``--output NAME.npz`` and NAME-val.npz.

    Args:
        kind: ``play`` or ``noisy`` for cube, scene and puzzle; ``navigate`` or ``stitch`` for
            pointmaze.
        steps: Number of rows of the training file at most, which holds whole episodes only.
        episodes: Number of training episodes of OGBench's kinds instead of the official one; for
            validation there is a tenth of that more, and one at least.
        noise: Level of the noise instead of the official one, see ``Official``.
        max_episode_steps: Rows of an episode instead of the official number.
        workers: Number of processes that make OGBench's episodes; without it, one for each core.

    Raises:
        ConfigError: the environment is none of OGBench's, or does not have the kind; ``output`` is
            no .npz; there is not one episode in ``steps``, or ``episodes`` is given too; or there
            are parts of other options or versions.
    """

    kind: str
    steps: Annotated[int | None, "[1, inf)"] = None
    episodes: Annotated[int | None, "[1, inf)"] = None
    noise: Annotated[float | None, "[0, inf)"] = None
    max_episode_steps: Annotated[int | None, "[2, inf)"] = None
    workers: Annotated[int | None, "[1, inf)"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.env not in OFFICIAL:
            fitting = ", ".join(env for env, kinds in OFFICIAL.items() if self.kind in kinds)
            raise ConfigError(
                f"--kind {self.kind}: does not know the environment '{self.env}': choose {fitting}."
            )
        if self.kind not in OFFICIAL[self.env]:
            kinds = " or ".join(OFFICIAL[self.env])
            raise ConfigError(f"--kind {self.kind}: '{self.env}' does not have it: choose {kinds}.")
        if self.output.suffix != ".npz":
            raise ConfigError(
                f"--output {self.output}: OGBench's files are .npz: call it so, as"
                f" {self.env.removesuffix('-v0')}-{self.kind}-v0.npz."
            )
        official = OFFICIAL[self.env][self.kind]
        self._rows = self.max_episode_steps or official.rows
        self._noise = official.noise if self.noise is None else self.noise
        whole = self.episodes or official.episodes
        if self.steps is not None:
            if self.episodes is not None:
                raise ConfigError("--steps and --episodes both say how much is made: give one.")
            whole = self.steps // self._rows
            if not whole:
                raise ConfigError(
                    f"--steps {self.steps}: an episode has {self._rows:,} rows: give as many at"
                    " least, or --max_episode_steps."
                )
        self._train, self._total = whole, whole + max(1, whole // 10)
        self._folder = _parts(self.output)
        self._require_own_parts()

    @classmethod
    def taken(cls, output: Path) -> Path | None:
        """Return a file that would be replaced and is not of the same unfinished run, if any."""
        files = () if _begun(_parts(output)) else (output, _validation(output), _facts(output))
        return next((file for file in files if file.exists()), None)

    def _recipe(self) -> dict[str, Any]:
        """Return what the episodes' bytes depend on."""
        versions = {}
        for package in _DECISIVE:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        return {
            "format": "ogbench",
            "env_id": self.env,
            "kind": self.kind,
            "seed": self.seed,
            "episodes": self._train,
            "validation_episodes": self._total - self._train,
            "max_episode_steps": self._rows,
            "noise": self._noise,
            "versions": versions,
        }

    def run(self) -> None:
        """Make the missing episodes, then the two files.

        Raises:
            ConfigError: another process is at work on the same files.
            EvaluationError: the package ogbench is not installed, an environment failed, or a
                process was killed.
        """
        require_writable(_validation(self.output))
        with folder_lock(self._folder) as lock:
            if lock is None:
                raise ConfigError(
                    f"{self._folder}: another process works on it: wait for it, or choose another"
                    " --output."
                )
            try:
                self._run()
            finally:
                if not _begun(self._folder):  # nothing to go on with
                    shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        write_whole(self._folder / "recipe.json", json.dumps(self._recipe(), indent=1) + "\n")
        for file in sorted(self._folder.glob("*.npz")):
            if not zipfile.is_zipfile(file):  # such as one that a full disk or a power cut has left
                say(f"{file} is broken: its episode is made again.")
                file.unlink()
        missing = [one for one in range(self._total) if not part(self._folder, one).exists()]
        made = self._total - len(missing)
        if made:
            say(f"{self._folder} has {made:,} of {self._total:,} episodes: going on.")
        with progress_bar(self._total * self._rows, "collecting") as bar:
            bar.update(made * self._rows)
            for _ in self._made(missing):
                bar.update(self._rows)
        parts = [part(self._folder, number) for number in range(self._total)]
        _join(parts[self._train :], _validation(self.output))
        _join(parts[: self._train], self.output)

    def _require_own_parts(self) -> None:
        path, recipe = self._folder / "recipe.json", self._recipe()
        if not _begun(self._folder):
            return
        try:
            there = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: does not say of which run the episodes beside it are"
                f" ({first_line(error)}): choose another --output, or remove that folder."
            ) from error
        other = [f"{name} {there.get(name)}" for name in recipe if there.get(name) != recipe[name]]
        if other:
            raise ConfigError(
                f"{self._folder}: has episodes of another run ({', '.join(other)}): give the same"
                " options, choose another --output, or remove that folder."
            )

    def _made(self, missing: Sequence[int]) -> Iterator[int]:
        """Make episodes, in this process or in several; yield the number of each."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(self.workers or cores or 1, len(missing))
        recipe = (self._folder, self.env, self.kind, self._rows, self._noise, self.seed)
        if workers == 1:
            yield from make_parts(*recipe, missing)
        elif workers:
            shares = [missing[first::workers] for first in range(workers)]
            with _processes([(*recipe, share) for share in shares]) as numbers:
                yield from numbers

    def save(self, command: str, *, complete: bool) -> str:
        """Say how the two files came to be, in NAME.json, and say what there is so far."""
        made = sum(part(self._folder, number).exists() for number in range(self._total))
        if not complete:
            again = f"{made:,} of {self._total:,} episodes in {self._folder}, with which the same"
            return f"{again} command goes on" if made else ""
        files = {path.name: path for path in (self.output, _validation(self.output))}
        sums = {name: file_sha256(path) for name, path in files.items()}
        tasks = np.zeros(2, np.int64)
        for number in range(self._train):
            with np.load(part(self._folder, number)) as arrays:
                tasks += arrays["tasks"]
        rows = self._train * self._rows
        facts = {
            **self._recipe(),
            "rows": rows,
            "validation_rows": self._total * self._rows - rows,
            "tasks": int(tasks[0]),
            "tasks_solved": int(tasks[1]),
            "sha256": sums,
            "versions": package_versions() | self._recipe()["versions"],
            "command": command,
        }
        write_whole(_facts(self.output), json.dumps(facts, indent=1) + "\n")
        gone = self._folder.rename(part_path(self._folder))  # at once, and swept if this is killed
        shutil.rmtree(gone, ignore_errors=True)
        for name, path in files.items():
            say(f"sha256 {sums[name]}  {path}")
        return f"{rows:,} rows in {self.output} and {self._total * self._rows - rows:,} in its -val"


def _validation(output: Path) -> Path:
    return output.with_name(f"{validation_name(output.stem)}.npz")


def _facts(output: Path) -> Path:
    return output.with_suffix(".json")


def _parts(output: Path) -> Path:
    return output.with_suffix(".parts")


def _begun(folder: Path) -> bool:
    """Whether there is an episode among the parts."""
    return any(folder.glob("*.npz"))


@contextmanager
def _processes(recipes: Sequence[tuple[Any, ...]]) -> Iterator[Iterator[int]]:
    """Make each recipe's episodes in a process of its own; give the numbers of those made.

    A worker whose parent is killed ends with its next episode, whose report reaches nobody.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads' locks
    workers: dict[Connection, BaseProcess] = {}
    try:
        for recipe in recipes:
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=work, args=(sender, *recipe), daemon=True)
            process.start()
            sender.close()  # else the worker's end would not be noticed
            workers[receiver] = process
        yield _reports(workers)
    finally:
        for one in workers.values():
            one.terminate()
        for one in workers.values():
            one.join()


def _reports(workers: dict[Connection, BaseProcess]) -> Iterator[int]:
    """Yield the numbers that workers report until each has ended.

    Raises:
        LitOffRLError: what a worker says.
        EvaluationError: one failed, or was killed.
    """
    open_ends = set(workers)
    while open_ends:
        for end in open_ends.intersection(wait(open_ends)):
            try:
                told = end.recv()
            except EOFError:
                open_ends.discard(end)
                workers[end].join()
                if code := workers[end].exitcode:
                    raise EvaluationError(
                        f"a worker process ended with exit code {code}: see what killed it (too"
                        " little memory?), and give the same command again."
                    ) from None
                continue
            if isinstance(told, LitOffRLError):
                raise told
            if isinstance(told, str):
                raise EvaluationError(f"a worker process failed: {told}.")
            yield told


def _join(parts: Sequence[Path], path: Path) -> None:
    """Write the columns of episodes, one after another, as ``numpy.savez_compressed`` would.

    One episode at a time is in memory.
    """
    with np.load(parts[0]) as first:
        layout = {name: first[name] for name in COLUMNS if name in first}
    with whole_file(path) as place, zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, column in layout.items():
            shape = (len(parts) * len(column), *column.shape[1:])
            header = np.lib.format.header_data_from_array_1_0(column) | {"shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for one in parts:
                    with np.load(one) as arrays:
                        stream.write(arrays[name].tobytes())
