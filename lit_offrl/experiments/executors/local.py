"""Jobs on this machine: N workers, and no more at a time than its memory and its GPUs hold."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from lit_offrl.experiments.job import Job
from lit_offrl.experiments.process import Children
from lit_offrl.experiments.run import Choices, Listener, Runner


class LocalExecutor:
    """Works on jobs in threads that wait for processes.

    Args:
        choices: What to do with failed and changed jobs.
        listener: Hears how jobs begin.
        workers: Jobs at a time.
        gpus: Values of ``CUDA_VISIBLE_DEVICES``, for the workers in turn; none leaves it as it is.
    """

    whole = False
    way_on = "the same command goes on"

    def __init__(
        self, choices: Choices, listener: Listener, *, workers: int = 1, gpus: Sequence[str] = ()
    ) -> None:
        self._choices, self._listener = choices, listener
        self._children = Children()
        self._pool = ThreadPoolExecutor(workers)
        self._free = Counter(gpus[number % len(gpus)] if gpus else "" for number in range(workers))
        self._running: dict[str, tuple[Job, str, Future[str]]] = {}
        self._refused: list[tuple[Job, str]] = []

    def submit(self, jobs: Sequence[Job]) -> list[Job]:
        """Take the jobs for which there is a worker, memory, and memory on its GPU."""
        taken: list[Job] = []
        for job in jobs:
            if not any(self._fits(job, gpu, ()) for gpu in self._free):
                given = job.needs or self._needs(job)
                needs = ", ".join(f"{kind}: {need:g}" for kind, need in given.items())
                self._refused.append((job, f"needs {needs}, which is more than this machine has"))
                taken.append(job)
                continue
            running = [(other, gpu) for other, gpu, _ in self._running.values()]
            gpus = [gpu for gpu, free in self._free.most_common() if free]
            gpu = next((gpu for gpu in gpus if self._fits(job, gpu, running)), None)
            if gpu is None:
                continue
            self._free[gpu] -= 1
            self._running[job.key] = (job, gpu, self._pool.submit(self._work, job, gpu))
            taken.append(job)
        return taken

    def _work(self, job: Job, gpu: str) -> str:
        environment = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        return Runner(self._choices, self._children, environment, self._listener).run(job)

    def _needs(self, job: Job) -> Mapping[str, float]:
        return job.needs

    def _fits(self, job: Job, gpu: str, running: Sequence[tuple[Job, str]]) -> bool:
        for kind, need in job.needs.items():
            on_host = kind == "memory_gb"
            total = self._memory if on_host else self._gpu_memory.get(gpu, math.inf)
            used = (other.needs.get(kind, 0) for other, its in running if on_host or its == gpu)
            if need + sum(used) > total:
                return False
        return True

    @cached_property
    def _memory(self) -> float:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9

    @cached_property
    def _gpu_memory(self) -> dict[str, float]:
        """Memory of each GPU in GB by its number, and under "" that of the first visible one."""
        if not shutil.which("nvidia-smi"):
            return {}
        query = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
        lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
        sizes = {line.split(",")[0]: float(line.split(",")[1]) * 2**20 / 1e9 for line in lines}
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return {**sizes, "": sizes.get(first, math.inf)}

    def ended(self) -> list[tuple[Job, str]]:
        """Return the jobs that have ended since the last call, each with why it is not done.

        Raises:
            Exception: A fault of this library in a worker.
        """
        ended, self._refused = self._refused, []
        for job, gpu, future in [each for each in self._running.values() if each[2].done()]:
            del self._running[job.key]
            self._free[gpu] += 1
            ended.append((job, future.result()))
        return ended

    def idle(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self._running and not self._refused

    def stop(self) -> str:
        """Ask every fit to save and leave; return what to say."""
        self._send(signal.SIGTERM)
        return "stopping: fits save and leave; a second signal kills them"

    def kill(self) -> None:
        """End every job's process at once."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        self._children.stop(number)
