"""What a sender does while a store works, fails, stalls and comes back; the store is made up."""

import threading
import time
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from lit_offrl.common.errors import FileError
from lit_offrl.tracking import sending
from lit_offrl.tracking.outbox import (
    Artifact,
    Input,
    Outbox,
    Point,
    load_outbox,
    unsent_file,
    unsent_runs,
)
from lit_offrl.tracking.sending import Delivery, Sender


class Store:
    """A run in memory, behind the part of MLflow's client that is used; ``broken`` says how."""

    def __init__(self, tmp_path):
        self.metrics, self.params, self.tags, self.files = [], {}, {}, []
        self.status, self.broken, self.calls = "RUNNING", "", 0
        self.go_on = threading.Event()
        self.lose_answers, self.inputs, self.refuses_inputs = False, [], False
        self.uri = f"sqlite:///{tmp_path}/mlflow.db"

    def _call(self):
        self.calls += 1
        if self.broken == "stalled":
            self.go_on.wait(60)
        if self.broken:
            raise OSError(self.broken)

    def get_run(self, run_id):
        self._call()
        latest = {metric.key: metric.value for metric in self.metrics}
        data = SimpleNamespace(metrics=latest, params=dict(self.params), tags=self.tags)
        inputs = SimpleNamespace(dataset_inputs=self.inputs)
        return SimpleNamespace(
            data=data, inputs=inputs, info=SimpleNamespace(artifact_uri="/nowhere")
        )

    def get_metric_history(self, run_id, name):
        self._call()
        return [metric for metric in self.metrics if metric.key == name]

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        assert len(metrics) <= 1000 and len(params) <= 100 and len(tags) <= 100
        self._call()
        self.metrics += metrics
        self.params |= {param.key: param.value for param in params}
        self.tags |= {tag.key: tag.value for tag in tags}
        if self.lose_answers:
            self.lose_answers = False
            raise OSError("connection reset")

    def log_inputs(self, run_id, datasets):
        self._call()
        if self.refuses_inputs:
            raise MlflowException("404", error_code=ENDPOINT_NOT_FOUND)
        self.inputs += datasets

    def log_artifact(self, path, folder):
        self._call()
        self.files.append((path, folder))

    def set_terminated(self, run_id, status, ended):
        self._call()
        self.status = status

    def curve(self, name):
        return [(metric.step, metric.value) for metric in self.metrics if metric.key == name]


@pytest.fixture
def store(tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr(sending, "artifact_repository", lambda *_: store)
    monkeypatch.setattr(sending, "_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(sending, "_SHARE", 0)
    monkeypatch.setattr(sending, "_FIRST_PAUSE", 0.02)
    yield store
    store.go_on.set()


def start(store, resumed=False):
    return Sender(store, store.uri, "run", resumed=resumed)


def points(first, last, name="loss"):
    return [Point(name, 1.0 / step, step, 1000 + step) for step in range(first, last)]


def steps(first, last):
    return [(step, 1.0 / step) for step in range(first, last)]


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_everything_arrives_in_order_and_in_calls_that_mlflow_takes(store, tmp_path):
    sender = start(store)
    sender.outbox.params.update({f"p{n}": str(n) for n in range(250)})
    sender.outbox.tags.update({"method": "BC"})
    sender.outbox.points.extend(points(1, 2500))
    (tmp_path / "config.yaml").touch()
    sender.outbox.artifacts.append(Artifact(str(tmp_path / "config.yaml"), ""))
    sender.outbox.artifacts.append(Artifact(str(tmp_path / "removed"), "figures"))
    assert not sender.end("FINISHED", 60)
    assert store.curve("loss") == steps(1, 2500) and len(store.params) == 250
    assert store.tags == {"method": "BC"} and store.status == "FINISHED"
    assert store.files == [(str(tmp_path / "config.yaml"), None)]


def test_a_store_that_fails_and_returns_costs_a_line_each_and_no_point(store, capsys):
    sender = start(store)
    sender.outbox.points.extend(points(1, 5))
    until(lambda: store.metrics)
    store.broken = "(OperationalError) database or disk is full"
    sender.outbox.points.extend(points(5, 10))
    calls = store.calls
    until(lambda: store.calls >= calls + 4)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "disk is full" in out and "training goes on" in out
    store.broken, store.lose_answers = "", True  # the first batch comes through, its answer not
    until(lambda: "is back" in (seen := capsys.readouterr().out) or seen != "")
    sender.outbox.points.extend(points(10, 12))
    assert not sender.end("FINISHED", 60)
    assert store.curve("loss") == steps(1, 12)


def test_a_dead_store_is_tried_ever_more_seldom(store, monkeypatch):
    pauses = []
    sender = start(store)
    store.broken = "no route"

    def wait_for(condition, pause):
        pauses.append(pause)
        return sender._ending

    monkeypatch.setattr(sender._changed, "wait_for", wait_for)
    monkeypatch.setattr(sending, "_FIRST_PAUSE", 1.0)
    sender._outbox.points.extend(points(1, 2))
    assert sender.outbox  # from here on the thread works
    until(lambda: len(pauses) > 9)
    sender.end("FINISHED", 60)
    assert pauses[:9] == [1, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_stalled_store_does_not_hold_up_the_run_or_its_end(store, capsys):
    sender = start(store)
    store.broken = "stalled"
    sender.outbox.points.extend(points(1, 3))
    until(lambda: store.calls)
    sender.outbox.points.extend(points(3, 5))  # comes back at once, while the call hangs
    left = sender.end("KILLED", 0.05)
    assert [point.step for point in left.points] == [1, 2, 3, 4]
    assert left.status == "KILLED" and left.ended > 1e12
    calls = store.calls
    store.go_on.set()
    sender._thread.join(60)
    assert store.calls == calls and capsys.readouterr().out == ""  # given up: a file has it now


def test_a_resumed_run_gets_what_it_lacks_and_nothing_twice(store):
    first = start(store)
    first.outbox.params.update({"seed": "0"})
    first.outbox.tags.update({"max_steps": "20"})
    first.outbox.points.extend([*points(1, 4), Point("loss", float("inf"), 4, 1)])
    assert not first.end("KILLED", 60)
    store.metrics[-1] = SimpleNamespace(key="loss", value=sending._LARGEST, step=4)  # as SQL has it
    again = start(store, resumed=True)
    again.outbox.params.update({"seed": "1", "new": "2"})
    again.outbox.tags.update({"max_steps": "40"})
    again.outbox.points.extend([*points(1, 4), Point("loss", float("inf"), 4, 9), *points(5, 8)])
    again.outbox.points.extend(points(5, 8))  # steps that are trained a second time
    assert not again.end("FINISHED", 60)
    assert store.curve("loss") == [*steps(1, 4), (4, sending._LARGEST), *steps(5, 8)]
    assert store.params == {"seed": "0", "new": "2"} and store.tags == {"max_steps": "40"}


def test_a_dataset_and_a_description_arrive_once_and_a_readers_own_stays(store, capsys):
    data = Input("pendulum", "ab12", "local", "{}", "{}", "{}", "training")
    for resumed, note in ((False, "begun"), (True, "scored"), (True, "scored")):
        sender = start(store, resumed)
        sender.outbox.inputs.append(data)
        sender.outbox.note = note
        assert not sender.end("FINISHED", 60)
        assert store.tags["mlflow.note.content"] == note
        assert [one.dataset.name for one in store.inputs] == ["pendulum"]
    store.tags["mlflow.note.content"] = "the best so far"
    store.inputs.clear()
    store.refuses_inputs = True  # as a server of an earlier version
    sender = start(store, resumed=True)
    sender.outbox.inputs.append(data)
    sender.outbox.note = "scored again"
    assert not sender.end("FINISHED", 60)
    assert store.tags["mlflow.note.content"] == "the best so far"
    assert "without datasets: they are not logged there" in capsys.readouterr().out


def test_a_long_description_is_cut_at_a_line_and_replaced_by_the_next(store):
    rows = [f"| method {row} | hopper | {row / 7} |" for row in range(400)]
    for resumed, last in ((False, "| first |"), (True, "| second |")):
        sender = start(store, resumed)
        sender.outbox.note = "\n".join([last, *rows])
        assert not sender.end("FINISHED", 60)
        *table, empty, cut = store.tags["mlflow.note.content"].split("\n")
        assert table == [last, *rows][: len(table)] and len(table) > 100
        assert empty == "" and cut.startswith("… The rest is cut")
        assert 4900 < len(store.tags["mlflow.note.content"]) <= 5000
    sender = start(store, resumed=True)
    sender.outbox.note = "x" * 5000 + "y"  # a single line
    assert not sender.end("FINISHED", 60)
    note = store.tags["mlflow.note.content"]
    assert len(note) == 5000 and set(note[:4900]) == {"x"}


def test_what_is_left_is_kept_in_a_file_and_sent_from_it(store, tmp_path):
    (tmp_path / "run").mkdir()
    inside, outside = tmp_path / "run" / "config.yaml", tmp_path / "secret"
    inside.touch(), outside.touch()
    box = Outbox(points(1, 4), {"seed": "0"}, {"method": "BC"}, status="FINISHED", ended=5)
    box.inputs, box.note = [Input("d", "ab", "local", "{}", "{}", "{}", "training")], "note"
    box.artifacts = [Artifact(str(inside), ""), Artifact(str(outside), "")]
    box.save(tmp_path / "run", "ab-1")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert unsent_runs(tmp_path / "moved") == ["ab-1"]
    found = load_outbox(tmp_path / "moved", "ab-1")
    assert (found.points, found.params, found.status) == (box.points, box.params, "FINISHED")
    # of files, those of the run's folder wherever it is now, and no others
    assert found.artifacts == [Artifact(str(tmp_path / "moved" / "config.yaml"), "")]
    delivery = Delivery(store, store.uri, "ab-1", found, ask=True)
    delivery.send(lambda size: None, end=True)
    assert delivery.summary() == (
        "1 parameters, 1 tags, 1 datasets, 1 descriptions, 3 metric values, 1 files, how it ended"
    )
    assert not found and store.status == "FINISHED"
    assert not load_outbox(tmp_path, "none")
    unsent_file(tmp_path, "torn").write_text('{"points": [[')
    with pytest.raises(FileError, match=r"mlflow-unsent-torn\.json: .* remove the file"):
        load_outbox(tmp_path, "torn")


def test_values_that_come_during_a_call_wait_for_the_next_sending(store):
    outbox = Outbox(points(1, 2501))
    logged = iter(points(3000, 3100))

    def training_goes_on(size):  # a far store, whose every call lasts longer than a few steps
        outbox.points.append(next(logged))

    delivery = Delivery(store, store.uri, "run", outbox, ask=False)
    delivery.send(training_goes_on, end=False)
    assert store.calls == 3 and store.curve("loss") == steps(1, 2501)
    delivery.send(training_goes_on, end=False)
    assert store.calls == 4 and store.curve("loss")[2500:] == steps(3000, 3003)
    assert outbox.points == points(3003, 3004)
