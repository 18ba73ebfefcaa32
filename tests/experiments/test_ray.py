"""Jobs as Ray actors, and their files without a shared folder."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lit_offrl.__main__ import main
from lit_offrl.evaluation.runs import runs_from_mlflow
from lit_offrl.experiments.executors import local
from lit_offrl.experiments.executors.transfer import open_transfer
from lit_offrl.experiments.job import Job, State, Tracking
from lit_offrl.experiments.sweep import read_sweep

FIT = {
    "data.init_args.batch_size": 64,
    "trainer.max_steps": 100,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
    "evaluation.episodes": 0,
    "checkpoint.every_n_train_steps": 5,
}


def write_sweep(d4rl_file, seeds, **options):
    Path("bc.yaml").write_text("model: BCModule\ndata: PyBulletDataModule\n")
    content = {
        "methods": {"bc": {"config": "bc.yaml"}},
        "datasets": {"tiny": str(d4rl_file)},
        "seeds": [*range(seeds)],
        "evaluate": False,
        "options": {
            **FIT,
            "model.init_args.learning_rate": [0.001, 0.0003],
            "size": {"small": {"model.init_args.hidden": [8]}},
            **options,
        },
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(content))


def fits(output):
    """The cells' folders, by name."""
    folders = [path.parent for path in Path(output).glob("**/fit/last.ckpt")]
    return {str(path.parent.relative_to(output)): path for path in folders}


def kill_a_worker(output, killed):
    """Kill the Ray worker whose fit has a checkpoint first, by its process id."""
    while not killed:
        for run in fits(output).values():
            for path in Path("/proc").glob("[0-9]*"):
                try:
                    if str(run) not in (path / "cmdline").read_text():
                        continue
                    parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                    if "ray::" in Path(f"/proc/{parent}/cmdline").read_text():
                        os.kill(parent, signal.SIGKILL)
                        killed.append(run.parent)
                        return
                except OSError:
                    continue
        time.sleep(0.01)


@pytest.mark.slow
def test_four_cells_on_two_workers_of_which_one_is_killed(
    folder, d4rl_file, here, monkeypatch, same_state, capsys
):
    ray = pytest.importorskip("ray")
    write_sweep(d4rl_file, seeds=2)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    killed: list[Path] = []
    output = folder / "on-ray"
    killer = threading.Thread(target=kill_a_worker, args=(output, killed), daemon=True)
    killer.start()
    argv = ["sweep", "--config", "tiny.yaml"]
    try:
        options = ["--executor", "ray", "--workers", "2", "--output", str(output)]
        assert main([*argv, *options]) == 0
    finally:
        ray.shutdown()
    assert {number: signal.getsignal(number) for number in before} == before
    assert "4 of 4 cells done" in capsys.readouterr().out
    log = (killed[0] / "fit.log").read_text()
    assert log.count("\n$ ") == 1 and "--ckpt_path" in log  # it went on from its checkpoint
    assert "stopped by SIGTERM after step" in log  # as its parent died

    monkeypatch.setattr(local, "Children", lambda: here)
    assert main([*argv, "--output", "here"]) == 0
    on_ray, alone = fits(output), fits("here")
    assert on_ray.keys() == alone.keys() and len(alone) == 4
    for name, run in alone.items():
        same_state(run / "last.ckpt", on_ray[name] / "last.ckpt")


@pytest.mark.slow
def test_workers_that_share_no_folder_and_a_signal_at_the_driver(
    folder, d4rl_file, lit, same_state
):
    ray = pytest.importorskip("ray")
    write_sweep(d4rl_file, seeds=1, **{"trainer.max_steps": 1500})
    options = ["--executor", "ray", "--workers", "2", "--output", "driver"]
    options += ["--ray", f"{{worker_root: {folder}/worker}}"]

    def interrupt():
        while len(fits(folder / "worker")) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        assert main(["sweep", "--config", "tiny.yaml", *options]) == 128 + signal.SIGTERM
        cells = read_sweep(Path("tiny.yaml"), output=folder / "driver").cells
        assert len(fits("driver")) == 2  # saved on the workers, and brought here
        # Another host's folder: what is there goes on.
        (folder / "worker").rename(folder / "gone")
        assert main(["sweep", "--config", "tiny.yaml", *options]) == 0
    finally:
        ray.shutdown()
    del cells
    for name, run in fits("driver").items():
        log = (run.parent / "fit.log").read_text()
        assert "stopped by SIGTERM" in log and "--ckpt_path" in log
        same_state(run / "last.ckpt", folder / "worker" / "tiny" / name / "fit" / "last.ckpt")
    whole = ["--trainer.max_steps", "1500", "--model.init_args.learning_rate", "0.001"]
    whole += ["--checkpoint.every_n_train_steps", "5", "--checkpoint.dirpath", "whole"]
    assert lit(*whole, "--seed_everything", "0") == 0
    name = "bc/tiny/learning_rate=0.001/size=small/seed0"
    same_state("whole/last.ckpt", fits("driver")[name] / "last.ckpt")


def test_versions_of_a_folder_pass_through_mlflow(folder, mlflow_tables):
    root = folder / "driver"
    root.mkdir()
    one = open_transfer(f"sqlite:///{folder}/mlflow.db", "made", root, folder / "a")
    assert open_transfer(f"sqlite:///{folder}/mlflow.db", "made", root, folder / "a") == one
    other = replace(one, worker_root=folder / "b" / "made")  # a second host
    tracking = Tracking(None, "made")
    fit = Job(verb="fit", name="j", folder=root / "m" / "x=1", tracking=tracking)
    here, there = one.on_worker(fit), other.on_worker(fit)
    one.send(fit)
    one.fetch(here)  # nothing yet
    here.run.mkdir(parents=True)
    here.checkpoint.write_text("5")
    (here.folder / ".lock").touch()
    one.upload(here.folder)
    one.fetch(fit)
    assert fit.checkpoint.read_text() == "5" and not (fit.folder / ".lock").exists()
    # After a killed worker its host has the newer files: they stay.
    here.checkpoint.write_text("6")
    one.fetch(here)
    assert here.checkpoint.read_text() == "6"
    # What another host has finished since wins, and what is no longer there goes.
    other.fetch(there)
    assert there.checkpoint.read_text() == "5"
    there.checkpoint.write_text("9")
    (here.folder / "failed.json").touch()
    other.upload(there.folder)
    one.fetch(here)
    one.fetch(fit)
    assert here.checkpoint.read_text() == fit.checkpoint.read_text() == "9"
    assert not (here.folder / "failed.json").exists() and here.state() == State.NEW
    # Who compares the sweep's runs is told that this is none.
    [line] = runs_from_mlflow(one.tracking_uri).left_out
    assert "(made-files): keeps the files of a sweep's machines" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray_address", "127.0.0.1:1"], "--ray_address 127.0.0.1:1: no Ray answers there"),
        (
            ["--ray_address", "nowhere"],
            "--ray_address nowhere: no Ray answers there (no HOST:PORT)",
        ),
        (["--gpus", "0"], "--gpus is for --executor local: give ray: {num_gpus: 1} instead."),
        (["--ray", "{num_gpu: 1}"], "--ray: ray: unknown key 'num_gpu'. Did you mean 'num_gpus'?"),
        (
            ["--ray", "{retries: -1}"],
            "--ray: ray.retries: -1 is given; give a number of at least 0",
        ),
        (["--ray", "{worker_root: here}"], "ray.worker_root: 'here' is given; give an absolute"),
    ],
)
def test_what_cannot_be_is_one_line(sweep, stub, capsys, options, said):
    pytest.importorskip("ray")
    assert sweep("--executor", "ray", *options) == 2
    assert said in capsys.readouterr().err
    assert stub() == []


def test_without_ray_a_line_says_how_to_get_it(sweep, stub, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert sweep("--executor", "ray") == 2
    assert "--executor ray needs Ray: run `pip install" in capsys.readouterr().err


def test_a_misspelt_key_of_the_file_is_named(sweep, stub, capsys):
    assert sweep(ray={"retrys": 1}) == 2
    assert (
        "grid.yaml: ray: unknown key 'retrys'. Did you mean 'retries'?" in capsys.readouterr().err
    )
