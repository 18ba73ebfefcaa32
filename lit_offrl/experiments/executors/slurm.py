"""Jobs on a SLURM cluster, through submitit: a target and all that it needs is one of the array."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import ConfigError, install, nearest, reason
from lit_offrl.experiments.job import Job
from lit_offrl.experiments.process import Children
from lit_offrl.experiments.run import Choices, Listener, Runner

CLUSTER = "slurm"


class SlurmJob:
    """What runs on a node: one target, which is submitted again when its time is up.

    Args:
        job: The target.
        choices: What to do with failed and changed jobs.
    """

    def __init__(self, job: Job, choices: Choices) -> None:
        self.job, self.choices = job, choices
        self._children: Children | None = None

    def __call__(self) -> str:
        """Bring it to its end; return "" or why it is not done."""
        self._children = Children()
        try:
            return Runner(self.choices, self._children).run_through(self.job)
        finally:
            self._children = None  # locks cannot be pickled

    def checkpoint(self) -> Any:
        """Save, some time before the job's time is up or it is preempted; submitit calls this."""
        from submitit.helpers import DelayedSubmission

        if self._children is not None:
            self._children.stop()
            self._children.wait()
        # It was begun anew or tried again already: from here on it is only resumed.
        return DelayedSubmission(SlurmJob(self.job, Choices()))


class SlurmExecutor:
    """Submits targets as one array of jobs and follows them.

    Args:
        choices: What to do with failed and changed jobs.
        listener: Hears which jobs begin.
        folder: The folder of submitit's files.
        parameters: Those of submitit, such as ``timeout_min`` and ``slurm_partition``.
        workers: The most jobs at a time; None for as many as the cluster gives.

    Raises:
        ConfigError: Submitit or SLURM is not here, or refuses a parameter.
    """

    whole = True

    def __init__(
        self,
        choices: Choices,
        listener: Listener,
        *,
        folder: Path,
        parameters: Mapping[str, Any],
        workers: int | None = None,
    ) -> None:
        self._choices, self._listener = choices, listener
        parallel = {} if workers is None else {"slurm_array_parallelism": workers}
        self._executor = _executor(folder, {**parameters, **parallel})
        self._waiting: dict[str, tuple[Job, Any]] = {}
        self._begun: set[str] = set()
        self._ids: set[str] = set()

    @property
    def way_on(self) -> str:
        """How to go on with what a stopped sweep has left."""
        ids = " ".join(sorted(self._ids))
        return f"the jobs go on until `scancel {ids}`, then the same command goes on"

    def submit(self, jobs: Sequence[Job]) -> list[Job]:
        """Submit all.

        Raises:
            ConfigError: SLURM refuses them.
        """
        works = [SlurmJob(job, self._choices) for job in jobs]
        try:
            submitted = self._executor.submit_array(works)
        except Exception as error:  # what sbatch says is for the user
            first = (str(error).splitlines() or [type(error).__name__])[-1]
            raise ConfigError(f"sbatch refuses the jobs: {first}") from error
        for job, each in zip(jobs, submitted, strict=True):
            self._waiting[job.key] = (job, each)
            self._ids.add(str(each.job_id).partition("_")[0])
        return list(jobs)

    def ended(self) -> list[tuple[Job, str]]:
        """Return the jobs that have ended since the last call, each with why it is not done."""
        ended = []
        for key, (job, submitted) in list(self._waiting.items()):
            done = submitted.done()
            if key not in self._begun and (done or submitted.state in ("RUNNING", "COMPLETING")):
                self._begun.add(key)
                self._listener.begins(job, "")
            if done:
                del self._waiting[key]
                ended.append((job, _result(submitted)))
        return ended

    def idle(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self._waiting

    def stop(self) -> str:
        """Follow no longer; return what to say."""
        self._waiting.clear()
        return self.way_on

    def kill(self) -> None:
        """Do nothing: the jobs are the cluster's."""


def _result(submitted: Any) -> str:
    error = submitted.exception()
    if error is None:
        return submitted.result()
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    last = lines[-1] if lines else type(error).__name__
    return f"job {submitted.job_id} ended with {submitted.state}: {last}"


def _executor(folder: Path, parameters: dict[str, Any]) -> Any:
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
