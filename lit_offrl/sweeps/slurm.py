"""Cells as jobs of a SLURM cluster, through submitit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import ConfigError, install, nearest, reason
from lit_offrl.jobs.children import Children
from lit_offrl.sweeps.cell import CellFolder
from lit_offrl.sweeps.table import Board
from lit_offrl.sweeps.work import Choices, work_on

CLUSTER = "slurm"
_RUNNING = ("RUNNING", "COMPLETING")


class CellJob:
    """What runs on a node: one cell, which is submitted again when its time is up.

    Args:
        folder: of the cell.
        choices: what to do with a failed or changed one.
    """

    def __init__(self, folder: CellFolder, choices: Choices) -> None:
        self.folder, self.choices = folder, choices
        self._children: Children | None = None

    def __call__(self) -> str:
        """Work on the cell; return "" or why it is not done."""
        self._children = Children()
        try:
            return work_on(self.folder, self.choices, self._children)
        finally:
            self._children = None  # locks cannot be pickled

    def checkpoint(self) -> Any:
        """Called by submitit some time before the job's time is up, or when it is preempted."""
        from submitit.helpers import DelayedSubmission

        if self._children is not None:
            self._children.stop()
            self._children.wait()
        # Begun anew or tried again it was already: from here on there is only going on.
        return DelayedSubmission(CellJob(self.folder, Choices()))


class SlurmExecutor:
    """Submits cells as one array of jobs and follows them.

    Args:
        folders: of the cells.
        choices: what to do with failed and changed ones.
        board: is told what happens.
        output: the sweep's folder; submitit's files go below it.
        parameters: submitit's, such as ``timeout_min`` and ``slurm_partition``.
        workers: jobs at a time at most; None for as many as the cluster gives.

    Raises:
        ConfigError: submitit or SLURM is not here, or refuses a parameter.
    """

    def __init__(
        self,
        folders: Sequence[CellFolder],
        choices: Choices,
        board: Board,
        *,
        output: Path,
        name: str,
        parameters: Mapping[str, Any],
        workers: int | None = None,
    ) -> None:
        self._board = board
        executor = _executor(output / "slurm", {"name": name, **parameters}, workers)
        jobs = []
        try:
            with executor.batch():
                for folder in folders:
                    jobs.append(executor.submit(CellJob(folder, choices)))
        except Exception as error:  # what sbatch says is for the user
            first = (str(error).splitlines() or [type(error).__name__])[-1]
            raise ConfigError(f"sbatch refuses the jobs: {first}") from error
        self._waiting = list(zip(folders, jobs, strict=True))
        self._begun: set[str] = set()
        self.ids = sorted({str(job.job_id).partition("_")[0] for job in jobs})

    @property
    def way_on(self) -> str:
        """How to go on with what a stopped sweep has left."""
        return f"the jobs go on until `scancel {' '.join(self.ids)}`, then the same command goes on"

    def done(self) -> bool:
        """Look at the jobs; whether none is left to wait for."""
        for folder, job in list(self._waiting):
            name = folder.cell.name
            if name not in self._begun and (job.done() or job.state in _RUNNING):
                self._begun.add(name)
                self._board.begins(folder)
            if job.done():
                self._waiting.remove((folder, job))
                self._board.ends(folder, _result(job))
        return not self._waiting

    def stop(self) -> str:
        """Follow no longer; return what to say."""
        self._waiting = []
        return self.way_on

    def kill(self) -> None:
        """Nothing: the jobs are the cluster's."""


def _result(job: Any) -> str:
    error = job.exception()
    if error is None:
        return job.result()
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return (
        f"job {job.job_id} ended with {job.state}: {lines[-1] if lines else type(error).__name__}"
    )


def _executor(folder: Path, parameters: dict[str, Any], workers: int | None) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(f"--executor slurm needs submitit: run {install('slurm')}.") from error
    if CLUSTER == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "--executor slurm: there is no sbatch here: run on a node that submits jobs, or leave"
            " --executor out."
        )
    if not {"timeout_min", "slurm_time"} & parameters.keys():
        raise ConfigError("slurm: has no timeout_min: give the minutes that a job may take.")
    if workers is not None:
        parameters["slurm_array_parallelism"] = workers
    # How often a job whose time is up goes on in another: submitit's own 3 ends long trainings.
    requeues = parameters.pop("slurm_max_num_timeout", 100)
    options = {"slurm_max_num_timeout": requeues} if CLUSTER == "slurm" else {}
    executor = submitit.AutoExecutor(folder=folder, cluster=CLUSTER, **options)
    try:
        executor.update_parameters(**parameters)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        known = [*executor._typed_parameters()]
        word = next((key for key in parameters if key in str(error) and key not in known), "")
        hint = nearest(word, known) if word else ""
        raise ConfigError(f"slurm: submitit refuses: {reason(error)}{hint}") from error
    return executor
