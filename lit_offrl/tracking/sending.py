"""Sending to an MLflow run what it has yet to get, from a thread or at once, and nothing twice."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_offrl.common import signals
from lit_offrl.common.errors import reason, root
from lit_offrl.common.quiet import say
from lit_offrl.tracking.outbox import CONTEXT, Input, LoggedModel, Outbox, Point
from lit_offrl.tracking.runs import MODEL_TAG, TAG, artifact_repository
from lit_offrl.tracking.store import redacted

_MOST_POINTS = 1000  # MLflow's limits for a call
_MOST_PARAMS = 100
_END = "how it ended"
_NAMES = {"params": "parameters", "tags": "tags"}
_LARGEST = 1.7976931348623157e308  # what MLflow's databases keep of infinity
_NOTE = "mlflow.note.content"
_NOTE_MARK = f"{TAG}note"
_LONGEST_NOTE = 5000  # letters of a tag that every server takes; the latest take 8,000
_CUT = "\n\n… The rest is cut: MLflow's descriptions have a limit."
_EVERY_SECONDS = 5.0
_SHARE = 100  # of processor time, of which the thread takes one part in so many
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries of a store that fails
_LEAST_SPEED = 1e6  # bytes a second of a file, before the store counts as stalled
STOPPED_SECONDS = 3.0
"""For a store that does not answer once a signal has ended the fit."""


class Delivery:
    """Sends an outbox, to which others may add meanwhile, to a run; what was sent leaves it.

    With ``ask`` the run may have some of it already (a resumed run, or a call whose answer was
    lost): it is asked first, and what it has is not sent again.
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
        """Send what there is, and if it is the end the run's status as the last.

        Args:
            began: Called as a call begins, with the number of bytes of a file.
            end: Whether it is the end.

        Raises:
            Exception: Whatever MLflow, or its store's driver, throws; what was not sent is kept.
        """
        from mlflow.entities import Param, RunTag  # seconds to import

        outbox = self.outbox
        if outbox and self._ask and self._run is None:
            began(0)
            self._run = self.client.get_run(self.run_id)
            self._params |= set(self._run.data.params)
        self._send_facts(outbox.params, Param, "params", began)
        self._send_facts(outbox.tags, RunTag, "tags", began)
        while outbox.inputs:
            self._send_input(outbox.inputs[0], began)
            del outbox.inputs[0]
        if (note := outbox.note) is not None:
            self._send_note(note, began)
            outbox.note = None if outbox.note == note else outbox.note
        waiting = len(outbox.points)  # those that come during a call are left to the next sending
        while waiting > 0:
            points = outbox.points[: min(waiting, _MOST_POINTS)]
            self._send_points(points, began)
            del outbox.points[: len(points)]
            waiting -= len(points)
        while outbox.artifacts:
            first = outbox.artifacts[0]
            self._send_files(Path(first.path), first.folder or None, began)
            del outbox.artifacts[0]
        while outbox.models:
            self._send_model(outbox.models[0], began)
            del outbox.models[0]
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

    def _send_input(self, data: Input, began: Callable[[int], None]) -> None:
        """Send a dataset; one that the run has by name and digest stays as it is."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        had = self._run.inputs.dataset_inputs if self._ask else ()
        if any((one.dataset.name, one.dataset.digest) == data[:2] for one in had):
            return
        began(0)
        *facts, context = data
        made = DatasetInput(Dataset(*facts), [InputTag(CONTEXT, context)])
        with self._unless_unknown("datasets"):
            self.client.log_inputs(self.run_id, [made])
            self.sent["datasets"] += 1

    @contextmanager
    def _unless_unknown(self, what: str) -> Iterator[None]:
        """Say in a line that a server of an earlier version has no place for something."""
        try:
            yield
        except Exception as error:
            if getattr(error, "error_code", None) != "ENDPOINT_NOT_FOUND":
                raise
            say(f"MLflow at {self._uri} is of a version without {what}: they are not logged there.")

    def _send_note(self, note: str, began: Callable[[int], None]) -> None:
        """Send the description, but over none that is not of this library's making."""
        from mlflow.entities import RunTag

        note = _cut(note)  # MLflow's own cut would be taken for a reader's change of it
        began(0)
        tags = self.client.get_run(self.run_id).data.tags
        if (before := tags.get(_NOTE)) == note:
            return
        if before is None or _mark(before) == tags.get(_NOTE_MARK):
            began(0)
            made = [RunTag(_NOTE_MARK, _mark(note)), RunTag(_NOTE, note)]
            self.client.log_batch(self.run_id, tags=made)
            self.sent["descriptions"] += 1

    def _send_points(self, points: list[Point], began: Callable[[int], None]) -> None:
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
        below = [each for each in (path, *path.rglob("*")) if each.is_file()]
        began(sum(map(os.path.getsize, below)))
        files = self._repository
        (files.log_artifacts if path.is_dir() else files.log_artifact)(str(path), folder)
        self.sent["files"] += 1

    def _send_model(self, model: LoggedModel, began: Callable[[int], None]) -> None:
        """Send a model and its metrics; one that the run has gets what it lacks."""
        from mlflow.entities import LoggedModelOutput

        if not Path(model.folder).is_dir():  # removed since by its owner
            return
        with self._unless_unknown("logged models"):
            began(0)
            run = self.client.get_run(self.run_id)
            found = self._find_model(model, run.info.experiment_id, began)
            if str(found.status) != "READY":
                files = [each for each in Path(model.folder).rglob("*") if each.is_file()]
                began(sum(map(os.path.getsize, files)))
                place = artifact_repository(self._uri, found.artifact_location)
                place.log_artifacts(model.folder)
                began(0)
                self.client.finalize_logged_model(found.model_id, "READY")
            had = () if run.outputs is None else run.outputs.model_outputs
            if found.model_id not in [each.model_id for each in had]:
                began(0)
                made = LoggedModelOutput(found.model_id, model.step)
                self.client.log_outputs(self.run_id, [made])
            self._send_model_metrics(model, found.model_id, began)
            self.sent["models"] += 1

    def _find_model(self, model: LoggedModel, experiment: str, began: Callable[[int], None]) -> Any:
        """Return the model by its key, made if there is none yet."""
        where = f"source_run_id = '{self.run_id}' AND tags.`{MODEL_TAG}` = '{model.key}'"
        began(0)
        found = self.client.search_logged_models([experiment], where)
        if found:
            return found[0]
        began(0)
        return self.client.create_logged_model(
            experiment,
            name=model.name,
            source_run_id=self.run_id,
            tags={**model.tags, MODEL_TAG: model.key},
            params=model.params,
            model_type=model.kind,
        )

    def _send_model_metrics(
        self, model: LoggedModel, id: str, began: Callable[[int], None]
    ) -> None:
        """Send metrics that are linked to a model and to the dataset that it has learned from."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, model.stamp, model.step, id, model.dataset, model.digest)
            for name, value in model.metrics.items()
        ]
        if metrics:
            began(0)
            self.client.log_batch(self.run_id, metrics=metrics)

    @cached_property
    def _repository(self) -> Any:
        run = self._run or self.client.get_run(self.run_id)
        return artifact_repository(self._uri, run.info.artifact_uri)


def _cut(note: str) -> str:
    """Return a description that MLflow takes, whose end, from a line on, may be missing."""
    if len(note) <= _LONGEST_NOTE:
        return note
    kept = note[: _LONGEST_NOTE - len(_CUT)]
    return (kept.rpartition("\n")[0] or kept).rstrip() + _CUT


def _mark(note: str) -> str:
    """Return what tells a description that this library has written from its readers' own."""
    return hashlib.sha256(note.encode()).hexdigest()[:8]


class Sender:
    """Takes what a run logs and sends it in a thread of its own, every few seconds.

    A store that does not take it is tried again after 1, 2, 4, … and at most 30 seconds; a line
    says when it fails first, and one when it is back. A run that is ``resumed`` has something
    already, which is not sent twice.
    """

    def __init__(self, client: Any, tracking_uri: str, run_id: str, *, resumed: bool) -> None:
        self._where = tracking_uri
        self._outbox = Outbox()
        self._delivery = Delivery(client, tracking_uri, run_id, self._outbox, ask=resumed)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._ending = False
        self._over = False
        self._failures = 0
        self._taken = 0.0  # seconds of processor time of the last sending
        self._limit = 0.0
        self._deadline = 0.0  # of the call at hand, once the run has ended

    @property
    def outbox(self) -> Outbox:
        """What waits to be sent, to be added to; the first use starts the thread."""
        if self._thread.ident is None:
            self._thread.start()
        return self._outbox

    def end(self, status: str, limit: float) -> Outbox:
        """Send what is left and the run's status; return what could not be sent.

        A store that fails gets one more try. One that works gets all the time that it takes, as
        long as each call comes back within ``limit`` seconds, or a file at a megabyte a second. No
        more can be logged afterwards.
        """
        self._limit = limit
        self._deadline = time.monotonic() + limit
        self.outbox.status, self.outbox.ended = status, int(time.time() * 1000)
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        try:
            while self._thread.is_alive() and time.monotonic() < self._deadline:
                self._thread.join(0.05)
                if signals.received() and self._limit > STOPPED_SECONDS:
                    self._limit = STOPPED_SECONDS
                    self._deadline = min(self._deadline, time.monotonic() + STOPPED_SECONDS)
        finally:
            self._over = True  # a thread that is still in a call ends with it
        return self._outbox.copy()

    def left(self) -> Outbox:
        """Return what has yet to be sent."""
        return self._outbox.copy()

    # ---- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while not self._over:
            with self._changed:
                self._changed.wait_for(lambda: self._ending, pause)
                ending = self._ending
            self._try(ending)
            if ending:
                return
            pause = max(_EVERY_SECONDS, _SHARE * self._taken)
            if self._failures:
                pause = min(_FIRST_PAUSE * 2.0 ** (self._failures - 1), _LONGEST_PAUSE)

    def _try(self, ending: bool) -> None:
        begun = time.thread_time()
        try:
            self._delivery.send(self._begin_call, end=ending)
        except Exception as error:  # whatever a store's driver throws: training is worth more
            self._delivery.doubt()
            self._failures = min(self._failures + 1, 20)
            if self._failures == 1 and not (ending or self._over):
                say(
                    f"MLflow at {self._where} does not take what is logged"
                    f" ({redacted(reason(root(error)))}); training goes on, and it is sent later."
                )
            return
        self._taken = time.thread_time() - begun
        if self._failures:
            self._failures = 0
            say(f"MLflow at {self._where} is back, and has got all that was logged meanwhile.")

    def _begin_call(self, size: int) -> None:
        if self._over:
            raise TimeoutError("the run is over")
        self._deadline = time.monotonic() + self._limit + size / _LEAST_SPEED
