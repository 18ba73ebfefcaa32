"""Sending to an MLflow run what it has yet to get, so that nothing is there twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lit_offrl.tracking.outbox import Outbox, Point
from lit_offrl.tracking.runs import artifact_repository

_MOST_POINTS = 1000  # MLflow's limits for a call
_MOST_PARAMS = 100
_END = "how it ended"
_NAMES = {"params": "parameters", "tags": "tags"}
_LARGEST = 1.7976931348623157e308  # what MLflow's databases keep of infinity


class Delivery:
    """Sends an outbox to a run, call by call; what was sent leaves it.

    Where the run may have some of it already (a resumed run, or a call whose answer was lost), it
    is asked first, and what it has is not sent again.

    Args:
        client: MLflow's.
        tracking_uri: of the store.
        run_id: of the run.
        outbox: what there is to send; others may add to it meanwhile.
        ask: whether the run may have some of it already.
    """

    def __init__(
        self, client: Any, tracking_uri: str, run_id: str, outbox: Outbox, *, ask: bool
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.outbox = outbox
        self.sent: Counter[str] = Counter()
        """How many values of metrics, parameters and so on the run has got."""
        self._uri = tracking_uri
        self._ask = ask
        self._run: Any = None
        self._repository: Any = None
        self._known: dict[str, set[tuple[int, float]]] = {}
        self._params: set[str] = set()

    def summary(self) -> str:
        """Say what the run has got; "" where that is nothing."""
        parts = [name if name == _END else f"{n} {name}" for name, n in self.sent.items()]
        return ", ".join(parts)

    def doubt(self) -> None:
        """From here on ask the run what it has: a call has failed, and may have come through."""
        self._ask, self._run = True, None
        self._known = {}

    def send(self, began: Callable[[int], None], *, end: bool) -> None:
        """Send what there is.

        Args:
            began: is called as a call begins, with the number of bytes of a file.
            end: whether the run's status is to be sent too, as the last.

        Raises:
            Exception: whatever MLflow, or its store's driver, throws; what was not sent is kept.
        """
        from mlflow.entities import Param, RunTag  # seconds to import

        outbox = self.outbox
        if outbox and self._ask and self._run is None:
            began(0)
            self._run = self.client.get_run(self.run_id)
            self._params |= set(self._run.data.params)
        self._send_facts(outbox.params, Param, "params", began)
        self._send_facts(outbox.tags, RunTag, "tags", began)
        while outbox.points:
            points = outbox.points[:_MOST_POINTS]
            self._send_points(points, began)
            del outbox.points[: len(points)]
        while outbox.artifacts:
            first = outbox.artifacts[0]
            self._send_files(Path(first.path), first.folder or None, began)
            del outbox.artifacts[0]
        if end and outbox.status is not None:
            began(0)
            self.client.set_terminated(self.run_id, outbox.status, outbox.ended)
            self.sent[_END] += 1
            outbox.status = None

    def _send_facts(
        self, facts: dict[str, str], kind: Any, word: str, began: Callable[[int], None]
    ) -> None:
        """Send parameters or tags; a parameter that the run has keeps its value."""
        while facts:
            part = dict(list(facts.items())[:_MOST_PARAMS])
            known = self._params if word == "params" else set()
            new = {name: value for name, value in part.items() if name not in known}
            if new:
                began(0)
                entities = [kind(name, value) for name, value in new.items()]
                self.client.log_batch(self.run_id, **{word: entities})
                known |= set(new)
                self.sent[_NAMES[word]] += len(new)
            for name, value in part.items():  # but what has another value by now
                if facts.get(name) == value:
                    del facts[name]

    def _send_points(self, points: Iterable[Point], began: Callable[[int], None]) -> None:
        from mlflow.entities import Metric

        new = [point for point in points if not self._has(point, began)]
        if not new:
            return
        began(0)
        entities = [Metric(name, value, stamp, step) for name, value, step, stamp in new]
        self.client.log_batch(self.run_id, metrics=entities)
        self.sent["metric values"] += len(new)

    def _has(self, point: Point, began: Callable[[int], None]) -> bool:
        """Whether the run has a point, or has got it in this very outbox."""
        if not self._ask:
            return False
        known = self._known.get(point.name)
        if known is None:
            known = self._known[point.name] = set()
            if point.name in self._run.data.metrics:
                began(0)
                history = self.client.get_metric_history(self.run_id, point.name)
                known.update((one.step, one.value) for one in history)
        mark = (point.step, min(max(point.value, -_LARGEST), _LARGEST))
        if mark in known:
            return True
        known.add(mark)
        return False

    def _send_files(self, path: Path, folder: str | None, began: Callable[[int], None]) -> None:
        if not path.exists():  # removed since by its owner
            return
        began(_size(path))
        repository = self._artifacts()
        send = repository.log_artifacts if path.is_dir() else repository.log_artifact
        send(str(path), folder)
        self.sent["files"] += 1

    def _artifacts(self) -> Any:
        if self._repository is None:
            run = self._run or self.client.get_run(self.run_id)
            self._repository = artifact_repository(self._uri, run.info.artifact_uri)
        return self._repository


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(os.path.getsize(file) for file in path.rglob("*") if file.is_file())
