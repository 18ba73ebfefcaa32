"""A fit leaves signals to whoever had them before, so that they are heard after it."""

import contextlib
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from mlflow.tracking import MlflowClient

from lit_offrl.__main__ import main
from lit_offrl.callbacks import GracefulStop, MLflowRun, RunRecord, evaluation
from lit_offrl.callbacks.interruption import leave_signals_to_us
from lit_offrl.datamodules import OfflineDataModule
from lit_offrl.evaluation import rollouts
from lit_offrl.modules import BCModule
from lit_offrl.tracking.store import absolute_uri

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture
def heard():
    """Signals that handlers of our own have got; the process's own handlers come back after."""
    seen: list[int] = []
    before = [signal.getsignal(number) for number in NUMBERS]
    for number in NUMBERS:
        signal.signal(number, lambda got, frame: seen.append(got))
    yield seen
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


def test_after_a_fit_signals_go_where_they_went_before(lit, heard):
    before = [signal.getsignal(number) for number in NUMBERS]
    assert lit("--trainer.max_steps", "1") == 0
    assert [signal.getsignal(number) for number in NUMBERS] == before
    for number in NUMBERS:
        signal.raise_signal(number)
    assert heard == list(NUMBERS)


def test_after_a_stopped_fit_too(lit, heard, monkeypatch):
    step = BCModule.after_step

    def stopped(self):
        step(self)
        signal.raise_signal(signal.SIGTERM)

    before = [signal.getsignal(number) for number in NUMBERS]
    monkeypatch.setattr(BCModule, "after_step", stopped)
    assert lit("--trainer.max_steps", "5") == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert not heard


def signalled(monkeypatch, owner, name, number):
    """Let a signal come as a function is called for the first time."""
    called, before = getattr(owner, name), []

    def told(*arguments, **options):
        if not before:
            before.append(number)
            signal.raise_signal(number)
        return called(*arguments, **options)

    monkeypatch.setattr(owner, name, told)


@pytest.fixture
def logged(command, empty_store, folder):
    """Run a fit of four steps with MLflow and roll-outs; return the exit code."""

    def run(*options):
        words = command("--trainer.max_steps", "4", "--checkpoint.dirpath", "run", *options)
        words[words.index("--trainer.logger") + 1] = "MLflowRun"
        return main([*words, "--evaluation.episodes", "1"])

    shutil.copy(empty_store, folder / "mlflow.db")
    return run


def status():
    client = MlflowClient(absolute_uri("sqlite:///mlflow.db"))
    (run,) = client.search_runs([client.get_experiment_by_name("lit-offrl").experiment_id])
    return run.info.status


# Where a signal comes, and the step that a checkpoint is of then; None for no checkpoint.
MOMENTS = {
    "the data": ((OfflineDataModule, "setup"), None),
    "the loaders": ((OfflineDataModule, "train_dataloader"), None),
    "making the environment": ((evaluation, "make_env"), None),
    "a validation": ((BCModule, "validation_step"), 2),
    "the end of training": ((GracefulStop, "on_train_end"), 4),
    "a roll-out": ((rollouts, "run_episodes"), 4),
    "drawing the figures": ((RunRecord, "_draw"), 4),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_a_signal_comes_nothing_is_lost(logged, heard, monkeypatch, capsys, moment):
    number = NUMBERS[list(MOMENTS).index(moment) % len(NUMBERS)]
    place, step = MOMENTS[moment]
    signalled(monkeypatch, *place, number)
    assert logged("--trainer.val_check_interval", "2") == 128 + number
    last = Path("run/last.ckpt")
    kept = f"after step {step}; saved {last.resolve()}" if step else "step 0; no new step to save"
    said = capsys.readouterr().err
    assert f"stopped by {number.name} " in said and said.endswith(f"{kept}.\n")
    assert last.exists() == (step is not None) and not Path("run/finished.json").exists()
    assert step is None or torch.load(last, weights_only=True)["global_step"] == step
    assert status() == "KILLED" and not heard


def test_a_signal_as_the_run_is_closed_comes_after_a_finished_fit(logged, heard, monkeypatch):
    signalled(monkeypatch, MLflowRun, "finalize", signal.SIGTERM)
    assert logged() == 128 + signal.SIGTERM
    assert status() == "KILLED" and not heard
    facts = json.loads(Path("run/finished.json").read_text())
    assert (facts["step"], facts["reason"]) == (4, "max_steps")


def test_a_run_that_was_closed_as_a_success_stays_one(empty_store, folder):
    shutil.copy(empty_store, folder / "mlflow.db")
    run = MLflowRun()
    run.log_metrics({"loss": 1.0}, 1)
    run.finalize("success")
    run.finalize("failed")
    assert status() == "FINISHED"


def test_a_roll_out_that_a_signal_has_cut_short_is_made_up_for(lit, monkeypatch, same_state):
    often = ("--evaluation.episodes", "1", "--evaluation.every_n_steps", "2")
    often += ("--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1")
    assert lit(*often, "--checkpoint.dirpath", "whole") == 0
    with monkeypatch.context() as patched:
        signalled(patched, rollouts, "run_episodes", signal.SIGUSR1)
        assert lit(*often, "--checkpoint.dirpath", "cut") == 128 + signal.SIGUSR1
    assert torch.load("cut/last.ckpt", weights_only=True)["global_step"] == 2
    assert lit(*often, "--ckpt_path", "cut/last.ckpt") == 0
    same_state("whole/last.ckpt", "cut/last.ckpt")
    assert Path("cut/evaluation-step-2.json").is_file() and Path("cut/finished.json").is_file()


def test_a_signal_that_somebody_swallows_is_heard_at_the_next_step(lit, monkeypatch):
    loaders = OfflineDataModule.train_dataloader

    def swallowing(self):
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        return loaders(self)

    monkeypatch.setattr(OfflineDataModule, "train_dataloader", swallowing)
    assert lit("--checkpoint.dirpath", "run") == 128 + signal.SIGTERM
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 1


def test_processes_that_no_signal_would_reach_are_refused(lit, capsys):
    words = ("--trainer.strategy", "ddp_fork", "--trainer.devices", "2")
    assert lit(*words) == 2
    assert "trainer.strategy: with 'ddp_fork' no process could save" in capsys.readouterr().err


def test_lightning_requeues_a_job_of_slurm_only_where_it_is_asked_to(monkeypatch, folder):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    named = [SLURMEnvironment(requeue_signal=signal.SIGUSR2)]
    for plugins, changes in ((None, False), (named, True)):
        trainer = Trainer(accelerator="cpu", devices=1, plugins=plugins, logger=False)
        assert isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)
        leave_signals_to_us(trainer)
        before = [signal.getsignal(number) for number in (*NUMBERS, signal.SIGUSR2)]
        trainer._signal_connector.register_signal_handlers()
        after = [signal.getsignal(number) for number in (*NUMBERS, signal.SIGUSR2)]
        assert before[:3] == after[:3] and (before[3] != after[3]) == changes
        trainer._signal_connector.teardown()
        assert signal.getsignal(signal.SIGUSR2) == before[3]
