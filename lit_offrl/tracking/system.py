"""The load of the machine beside a run's metrics, under the names of MLflow's "System metrics"."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from lit_offrl.common.errors import ConfigError
from lit_offrl.tracking.outbox import Point

_PREFIX = "system/"
_EVERY_SECONDS = 10.0


class SystemMetrics:
    """Samples the processors, memory, disk, network and GPUs by MLflow's own monitors.

    MLflow's thread would send its samples itself; here they wait among a run's other points, so
    that a server that does not answer holds up nothing, and a resumed run goes on with them.

    Args:
        log: Takes the points of a sample.
        step: Says which step of the optimiser is the latest.
        every: Seconds between two samples.

    Raises:
        ConfigError: psutil is not installed.
    """

    def __init__(
        self,
        log: Callable[[list[Point]], None],
        step: Callable[[], int],
        every: float = _EVERY_SECONDS,
    ) -> None:
        self._monitors = _monitors()
        self._log, self._step, self._every = log, step, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Sample no more."""
        self._over.set()
        self._thread.join(1.0)

    def _work(self) -> None:
        while not self._over.wait(self._every):
            self._log(self.sample())

    def sample(self) -> list[Point]:
        """Return the figures of this moment."""
        stamp, step = int(time.time() * 1000), self._step()
        figures: dict[str, float] = {}
        for monitor in self._monitors:
            with contextlib.suppress(Exception):  # a device that is gone costs its figures alone
                monitor.collect_metrics()
                figures |= monitor.aggregate_metrics()
                monitor.clear_metrics()
        return [Point(_PREFIX + name, float(value), step, stamp) for name, value in figures.items()]


def _monitors() -> list[Any]:
    try:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    except ImportError as error:
        raise ConfigError(
            f"trainer.logger: log_system_metrics needs {error.name}: `pip install psutil`, or leave"
            " it out."
        ) from error
    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(Exception):  # no GPU of NVIDIA's, or nothing that can read it
        found.append(GPUMonitor())
    return found
