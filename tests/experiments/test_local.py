"""Which jobs run beside each other on one machine, and in which order."""

import threading
from pathlib import Path

import pytest

from lit_offrl.experiments.executors import local
from lit_offrl.experiments.executors.local import LocalExecutor
from lit_offrl.experiments.job import Cell, Job, Tracking
from lit_offrl.experiments.run import Choices, Schedule


def job(name, takes=(), **needs):
    return Job(
        verb="fit",
        name=name,
        folder=Path(name).resolve(),
        tracking=Tracking(None, "x"),
        takes={f"model.{each.name}": each for each in takes},
        needs=needs,
    )


@pytest.fixture
def begin(folder, monkeypatch):
    """Make an executor whose jobs run until they are told to end, with a machine of 10 GB."""
    ends = {}

    def run(runner, job):
        ends[job.name].wait(60)
        return ""

    monkeypatch.setattr(local.Runner, "run", run)

    def build(gpus=(), workers=8, gpu_memory=None):
        executor = LocalExecutor(Choices(), None, workers=workers, gpus=gpus)
        executor._memory, executor._gpu_memory = 10.0, gpu_memory or {}

        def submit(*jobs):
            for each in jobs:
                ends.setdefault(each.name, threading.Event())
            return [each.name for each in executor.submit(jobs)]

        def end(name):
            ends[name].set()
            executor._running[f"fit {Path(name).resolve()}"][2].result(60)
            return [(each.name, why) for each, why in executor.ended()]

        return executor, submit, end

    yield build
    for event in ends.values():
        event.set()


def test_no_more_jobs_at_once_than_there_are_workers(begin):
    executor, submit, end = begin(workers=2)
    jobs = [job(name) for name in "abc"]
    assert submit(*jobs) == ["a", "b"] and submit(jobs[2]) == []
    assert end("a") == [("a", "")] and submit(jobs[2]) == ["c"]
    end("b"), end("c")
    assert executor.idle()


def test_no_more_jobs_at_once_than_memory_holds(begin):
    _, submit, end = begin()
    a, b, c = job("a", memory_gb=6), job("b", memory_gb=5), job("c", memory_gb=4)
    assert submit(a, b, c) == ["a", "c"]  # a smaller one does not wait for a larger one
    assert submit(b) == []
    end("a")
    assert submit(b) == ["b"]


def test_jobs_share_gpus_as_far_as_their_memory_goes(begin):
    executor, submit, end = begin(gpus=["0", "1"], gpu_memory={"0": 10.0, "1": 20.0})
    a, b, c, d = (job(name, gpu_memory_gb=8) for name in "abcd")
    assert submit(a, b, c, d) == ["a", "b", "c"]
    gpus = {name: executor._running[each.key][1] for name, each in {"a": a, "b": b, "c": c}.items()}
    assert sorted(gpus.values()) == ["0", "1", "1"]
    on_one = next(name for name, gpu in gpus.items() if gpu == "1")
    end(on_one)
    assert submit(d) == ["d"] and executor._running[d.key][1] == "1"


def test_what_no_machine_holds_is_said_and_stops_nobody(begin):
    executor, submit, _ = begin()
    assert submit(job("a", memory_gb=11), job("b")) == ["a", "b"]
    ((refused, why),) = executor.ended()
    assert refused.name == "a" and why == "needs memory_gb: 11, which is more than this machine has"
    assert not executor.idle()


def test_where_no_gpu_is_known_its_memory_is_not_counted(begin):
    _, submit, _ = begin()
    assert submit(job("a", gpu_memory_gb=500)) == ["a"]


def test_a_job_is_ready_once_what_it_takes_is_done_and_never_if_that_has_failed(folder):
    base = job("base")
    left, right, alone = job("left", [base]), job("right", [base]), job("alone")
    last = job("last", [left])
    schedule = Schedule()
    schedule.add(Cell(each.name, {"seed": "0"}, (each,)) for each in (last, right, alone))

    def ready():
        return [each.name for each in schedule.ready()]

    assert [each.name for each in schedule.jobs] == ["base", "left", "last", "right", "alone"]
    assert ready() == ["base", "alone"]
    schedule.begun([base])
    assert ready() == ["alone"]
    schedule.end(base, "")
    assert ready() == ["left", "right", "alone"]
    schedule.begun([left])
    schedule.end(left, "no such thing")
    assert [(each.name, why) for each, why in schedule.blocked()] == [("last", "left is not done")]
    assert ready() == ["right", "alone"]
    schedule.add([Cell("more", {"seed": "0"}, (job("more"),))])  # while it runs
    assert ready() == ["right", "alone", "more"]


def test_an_executor_that_takes_all_that_a_target_needs_gets_targets(folder):
    base = job("base")
    schedule = Schedule(whole=True)
    schedule.add([Cell("last", {"seed": "0"}, (job("last", [base]),))])
    assert [each.name for each in schedule.ready()] == ["last"]
