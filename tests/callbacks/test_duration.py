"""What a fit says of its own duration, by a clock that the test moves."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from lit_offrl.callbacks import duration
from lit_offrl.callbacks.duration import Duration, in_words
from lit_offrl.modules import BCModule, DVFModule, LDCQStage1Module


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    still = Clock()
    monkeypatch.setattr(duration, "perf_counter", still)
    return still


def trainer(steps: int, device: str = "cpu", accumulated: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        global_step=0,
        estimated_stepping_batches=steps,
        accumulate_grad_batches=accumulated,
        fast_dev_run=False,
        is_global_zero=True,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )


def run(clock, module, costs, total, **options) -> Duration:
    """Let steps pass that cost so many seconds each."""
    callback, fit = Duration(), trainer(total, **options)
    callback.on_train_start(fit, module)
    for number, cost in enumerate(costs):
        callback.on_train_batch_start(fit, module, None, number)
        clock.now += cost
        fit.global_step = (number + 1) // fit.accumulate_grad_batches
        callback.on_train_batch_end(fit, module, None, None, number)
    callback.on_train_end(fit, module)
    return callback


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3599.9, "1 h"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 7200, "3 days 2 h"),
        (86400 * 500.0, "500 days"),
    ],
)
def test_time_spans_have_two_units(seconds, words):
    assert in_words(seconds) == words


def test_the_estimate_comes_once_and_leaves_the_first_step_out(clock, capsys):
    """30 s for the first step, then 2 s each: 194 steps take 388 s."""
    run(clock, BCModule(3, 1), [30.0] + [2.0] * 20, 200)
    assert lines(capsys) == ["lit-offrl: the 194 steps to come take about 6 min 28 s."]


def test_accumulated_batches_are_one_step(clock, capsys):
    run(clock, BCModule(3, 1), [2.0] * 12, 103, accumulated=2)
    assert lines(capsys) == ["lit-offrl: the 100 steps to come take about 6 min 40 s."]


def test_a_run_shorter_than_the_measurement_says_nothing(clock, capsys):
    run(clock, BCModule(3, 1), [1.0] * 8, 8)
    assert lines(capsys) == []


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda: BCModule(3, 1), "an accelerator, a smaller network or fewer"),
        (lambda: DVFModule(3, 1, width=8, blocks=1, latents=1), "--config configs/quick.yaml"),
        (
            lambda: LDCQStage1Module(3, 1, horizon=2, latent_dim=2, width=8, gru_layers=1),
            "lit-offrl pipeline takes --config configs/ldcq_quick.yaml",
        ),
    ],
)
def test_more_than_a_day_on_a_cpu_is_met_with_advice(clock, capsys, module, says):
    run(clock, module(), [10.0] * 3, 100_000)
    (line,) = lines(capsys)
    assert "about 11 days 14 h. On a CPU that is long:" in line and says in line
    run(clock, module(), [10.0] * 3, 100_000, device="meta")
    (line,) = lines(capsys)
    assert "On a CPU" not in line


def small_dvf(**options) -> DVFModule:
    sizes = {"width": 8, "blocks": 1, "latents": 1, "warmup_steps": 100}
    return DVFModule(3, 1, **sizes, **options)


def test_phases_have_estimates_of_their_own(clock, capsys):
    """One step of the second phase samples a table for 100 s, which no other step does."""
    run(clock, small_dvf(values="cached"), [1.0] * 100 + [100.0] + [0.125] * 250, 400)
    assert lines(capsys) == [
        "lit-offrl: the 89 steps up to step 100 take about 1 min 29 s; from step 100 on a step "
        "costs something else.",
        "lit-offrl: the 219 steps to come take about 27 s.",
    ]


def test_a_phase_too_short_to_measure_is_not_part_of_the_next_one_s(clock, capsys):
    run(clock, small_dvf(values="cached"), [0.05] * 100 + [1.0] * 300, 400)
    assert lines(capsys) == ["lit-offrl: the 289 steps to come take about 4 min 49 s."]


def test_a_phase_that_only_grows_dearer_gives_a_lower_bound(clock, capsys):
    run(clock, small_dvf(), [1.0] * 100 + [20.0] * 3, 10_100)
    assert lines(capsys) == [
        "lit-offrl: the 10,089 steps to come take at least 2 h 48 min; from step 100 on a step "
        "costs more.",
        "lit-offrl: the 9,998 steps to come take about 2 days 8 h. On a CPU that is long: add "
        "--config configs/quick.yaml, which fits two cores; an accelerator, a smaller network or "
        "fewer --trainer.max_steps make it shorter.",
    ]


def test_a_first_step_that_takes_long_is_spoken_of_while_it_runs(monkeypatch, capsys):
    """The timer fires in the first step: 0.01 s in place of 20, so 10⁸ steps take 11 days."""
    monkeypatch.setattr(duration, "PATIENCE", 0.01)
    said = threading.Event()
    spoken = duration.say
    monkeypatch.setattr(duration, "say", lambda line: (spoken(line), said.set()))
    callback, fit = Duration(), trainer(10**8)
    callback.on_train_start(fit, small_dvf())
    assert said.wait(300)
    callback.on_train_end(fit, small_dvf())
    (line,) = lines(capsys)
    assert line.startswith("lit-offrl: the first step takes more than 0 s; at this rate the ")
    assert "more than 11 days 14 h" in line and "--config configs/quick.yaml" in line


def test_a_first_step_in_time_is_not_spoken_of(clock, capsys):
    """Its end cancels the timer, whose thread is then over long before its time."""
    callback, fit = Duration(), trainer(100)
    callback.on_train_start(fit, BCModule(3, 1))
    timer = callback._timer
    assert timer is not None and timer.is_alive()
    callback.on_train_batch_start(fit, BCModule(3, 1), None, 0)
    callback.on_train_batch_end(fit, BCModule(3, 1), None, None, 0)
    timer.join(100)
    assert not timer.is_alive() and lines(capsys) == []


def test_a_fit_has_it_and_trains_alike(lit, same_state, monkeypatch, capsys):
    """Six steps that are all measured end in the weights of six that are not."""
    assert lit("--checkpoint.dirpath", "silent") == 0
    monkeypatch.setattr(duration, "LISTEN", 0.0)
    assert lit("--checkpoint.dirpath", "spoken") == 0
    assert "steps to come take about" in capsys.readouterr().out
    same_state("silent/last.ckpt", "spoken/last.ckpt")
