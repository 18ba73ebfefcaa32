"""Cells from nothing to their records, with a stand-in for fit and evaluate."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_offrl.experiments.executors import slurm
from lit_offrl.experiments.job import State
from lit_offrl.experiments.process import HELD, Children, folder_lock
from lit_offrl.experiments.run import Choices, Runner
from lit_offrl.experiments.sweep import read_sweep

CELLS = Path("sweeps/grid/m")


def test_a_grid_runs_once_and_then_not_again(sweep, stub, capsys):
    assert sweep("--workers", "2", evaluate={"episodes": 3}) == 0
    words = [words for words, _ in stub()]
    assert sorted(w[0] for w in words) == ["evaluate", "evaluate", "fit", "fit"]
    fit = next(w for w in words if w[0] == "fit" and w[w.index("--seed_everything") + 1] == "1")
    tags = json.loads(fit[fit.index("--trainer.logger.init_args.tags") + 1])
    assert len(tags.pop("lit_offrl.cell")) == 32
    assert tags == {
        "lit_offrl.sweep": "grid",
        "lit_offrl.method": "m",
        "lit_offrl.dataset": "plain",
    }
    evaluation = next(w for w in words if w[0] == "evaluate")
    assert evaluation[-5:-2] == ["--episodes", "3", "--tracking_uri"]
    assert evaluation[-1] == "--mlflow"
    out = capsys.readouterr().out
    assert "2 of 2 cells done" in out and "5.5" in out  # the mean of 5 and 6

    assert sweep(evaluate={"episodes": 3}) == 0
    assert stub() == []
    assert "5.5" in capsys.readouterr().out


def test_dry_run_prints_the_commands_and_does_nothing(sweep, stub, capsys, folder):
    assert sweep("--dry_run", "--only", "seed=1", options={"size": {"s": {"a.b": [1, "x y"]}}}) == 0
    out = capsys.readouterr().out
    assert out.startswith("# m/plain/size=s/seed1: not begun\nlit-offrl fit --config ")
    assert "--a.b '[1, x y]'" in out and '"lit_offrl.option.size": "s"' in out
    assert stub() == [] and not (folder / "sweeps").exists()


def test_a_failing_cell_says_why_and_stops_no_other(sweep, stub, capsys):
    datasets = ["fails", "plain"]
    assert sweep(datasets=datasets, seeds=[0]) == 1
    printed = capsys.readouterr()
    assert "m/fails/seed0: fit ended with 1: lit-offrl: error: no such thing." in printed.err
    assert "1 failed: --retry_failed" in printed.err and "1 of 2 cells done" in printed.out
    stub()
    assert sweep(datasets=datasets, seeds=[0]) == 1
    assert stub() == []
    assert "no such thing" in capsys.readouterr().err
    # It had a checkpoint, so it goes on from that.
    assert sweep("--retry_failed", datasets=datasets, seeds=[0]) == 0
    verbs = [words[:2] for words, _ in stub()]
    assert verbs == [["fit", "--ckpt_path"], ["evaluate", "--ckpt_path"]]


def test_a_killed_cell_is_begun_anew_where_there_is_no_checkpoint(sweep, stub, capsys):
    for _ in range(2):  # nobody's known mistake: it is tried again each time
        assert sweep(datasets=["dies"], seeds=[0]) == 1
        assert "fit was killed by SIGKILL" in capsys.readouterr().err
        ((words, _),) = stub()
        assert "--ckpt_path" not in words


def test_a_fit_that_ends_early_without_a_reason_is_not_trained_whatever_its_code(
    sweep, stub, capsys
):
    assert sweep(datasets=["ends early"], seeds=[0]) == 1
    error = capsys.readouterr().err
    assert "m/ends_early/seed0: fit ended with 0 without having finished" in error
    assert [words[0] for words, _ in stub()] == ["fit"]  # nothing is scored
    assert not list(CELLS.rglob("trained"))
    assert sweep(datasets=["ends early"], seeds=[0]) == 0  # and it goes on
    assert next(words[:2] for words, _ in stub()) == ["fit", "--ckpt_path"]


def test_a_cell_whose_checkpoint_has_gone_is_trained_again(sweep, stub, capsys):
    assert sweep(seeds=[0]) == 0
    stub()
    (CELLS / "plain/seed0/fit/last.ckpt").unlink()
    assert sweep(seeds=[0]) == 0  # its record is all that counts
    assert stub() == []
    assert sweep("--rerun_changed", seeds=[0], evaluate={"episodes": 3}) == 0
    verbs = [words[0] for words, _ in stub()]
    assert verbs == ["fit", "evaluate"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_fits_save_and_the_same_command_goes_on(sweep, stub, capsys, number):
    def send():
        while not Path("waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert sweep(datasets=["waits", "plain"], seeds=[0]) == 128 + number
    thread.join()
    assert f"stopped by {number.name}; the same command goes on" in capsys.readouterr().err
    assert len(stub()) == 1  # nothing began after the signal
    assert (CELLS / "waits/seed0/fit/last.ckpt").exists()
    assert sweep(datasets=["waits", "plain"], seeds=[0]) == 0
    assert json.loads((CELLS / "waits/seed0/evaluation.json").read_text())["scores"][0] == 10


def test_a_changed_definition_is_refused_or_run_again_but_never_mixed(sweep, stub, capsys, folder):
    assert sweep(seeds=[0], options={"x": 1}) == 0
    stub()
    assert sweep(seeds=[0], options={"x": 2}) == 1
    assert "changed: config.x: 1 → 2" in capsys.readouterr().err
    assert stub() == []
    assert sweep("--rerun_changed", seeds=[0], options={"x": 2}) == 0
    assert [words[0] for words, _ in stub()] == ["fit", "evaluate"]
    aside = CELLS / "plain/seed0.before-1"
    assert (aside / "evaluation.json").exists() and (aside / "fit/last.ckpt").exists()

    # What is in a config counts, not where it lies.
    (folder / "a.yaml").write_text("model: {width: 2}\n")
    assert sweep(seeds=[0], options={"x": 2}) == 1
    assert "config.model.width: 1 → 2" in capsys.readouterr().err
    (folder / "a.yaml").write_text("# the same\nmodel:\n  width: 1\n")
    assert sweep(seeds=[0], options={"x": 2}) == 0
    # Another evaluation needs no other training.
    other = {"evaluate": {"episodes": 50}, "options": {"x": 2}}
    assert sweep(seeds=[0], **other) == 1
    assert stub() == []
    assert sweep("--rerun_changed", seeds=[0], **other) == 0
    assert [words[0] for words, _ in stub()] == ["evaluate"]


def test_other_bytes_of_the_data_are_a_change_and_data_that_have_gone_are_none(
    sweep, stub, capsys, folder
):
    data = folder / "rows.data"
    data.write_bytes(b"one")
    grid = {"datasets": {"rows": {"dataset": "rows.data"}}, "seeds": [0]}
    assert sweep(**grid) == 0
    data.write_bytes(b"another")
    stub()
    capsys.readouterr()
    assert sweep(**grid) == 1
    assert (
        f"changed: data_sha256: {hashlib.sha256(b'one').hexdigest()} → " in capsys.readouterr().err
    )
    assert stub() == []
    assert sweep("--rerun_changed", **grid) == 0
    assert [words[0] for words, _ in stub()] == ["fit", "evaluate"]
    data.unlink()
    assert sweep(**grid) == 0
    assert sweep("--rerun_changed", **grid, evaluate={"episodes": 3}) == 0
    assert [words[0] for words, _ in stub()] == ["evaluate"]


def one_cell():
    (cell,) = read_sweep(Path("grid.yaml"), output=Path("out"), uri="sqlite:////none.db").cells
    return cell


def test_a_server_that_cannot_be_reached_is_said_before_a_cell_begins(sweep, stub, capsys):
    assert sweep("--tracking_uri", "http://127.0.0.1:9") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "http://127.0.0.1:9 cannot be reached" in said
    assert stub() == []


def test_only_one_process_works_on_a_cell(sweep, stub, capsys):
    with folder_lock((CELLS / "plain/seed0").resolve()) as lock:
        assert lock is not None
        assert sweep(seeds=[0]) == 1
        assert f"m/plain/seed0: {HELD}" in capsys.readouterr().err
    assert stub() == []
    assert sweep(seeds=[0]) == 0


def test_what_another_process_has_finished_meanwhile_is_done(sweep, stub, capsys, monkeypatch):
    from lit_offrl.commands import experiments as command

    assert sweep(seeds=[0]) == 0
    record, aside = CELLS / "plain/seed0/evaluation.json", Path("aside.json")
    record.rename(aside)
    real = command.follow

    def follow_while_another_finishes(*args):
        code = real(*args)
        aside.rename(record)
        return code

    monkeypatch.setattr(command, "follow", follow_while_another_finishes)
    with folder_lock((CELLS / "plain/seed0").resolve()):
        assert sweep(seeds=[0, 1]) == 0
    assert HELD not in capsys.readouterr().err


def test_a_child_keeps_the_lock_of_a_killed_sweep(folder):
    script = (
        "import os, sys; from pathlib import Path; from lit_offrl.experiments.process import *\n"
        "with folder_lock(Path('cell')) as lock:\n"
        "    child = [sys.executable, '-S', '-c', 'import sys; sys.stdin.read()']\n"
        "    process = subprocess.Popen(child, stdin=0, pass_fds=[lock])\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert parent.wait(60) == -signal.SIGKILL
    with folder_lock(Path("cell")) as lock:
        assert lock is None
    parent.stdin.close()  # the child ends
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with folder_lock(Path("cell")) as lock:
            if lock is not None:
                return
        time.sleep(0.01)
    raise AssertionError("the lock is held still")


def test_gpus_go_round(sweep, stub):
    assert sweep("--gpus", "2,5", "--workers", "2", seeds=[0, 1, 2]) == 0
    gpus = [gpu for _, gpu in stub()]
    assert set(gpus) == {"2", "5"} and len(gpus) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--executor", "slurm"), "there is no sbatch here"),
        (("--gpus", "0", "--executor", "slurm"), "--gpus is for --executor local"),
        (("--only", "seed=9"), "no seed fits '9'"),
    ],
)
def test_an_option_that_cannot_work_is_one_line(sweep, stub, capsys, monkeypatch, options, message):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert sweep(*options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line and stub() == []


def test_slurm_without_submitit_says_how_to_get_it(sweep, stub, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep("--executor", "slurm") == 2
    assert "pip install -e .[slurm]" in capsys.readouterr().err


def test_the_slurm_executor_with_jobs_on_this_machine(sweep, stub, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    submit = ("--executor", "slurm", "--tracking_uri", "http://localhost:1")
    assert sweep(*submit, slurm={"mem_gb": 1}) == 2
    assert "slurm: has no timeout_min" in capsys.readouterr().err
    assert sweep(*submit, slurm={"timeout_min": 1, "mem_bg": 1}) == 2
    assert "mem_bg" in capsys.readouterr().err

    keys = {"slurm": {"timeout_min": 1, "slurm_partition": "gpu"}, "datasets": ["plain", "fails"]}
    assert sweep(*submit, "--workers", "1", seeds=[0], **keys) == 1
    printed = capsys.readouterr()
    assert "m/fails/seed0: fit ended with 1: lit-offrl: error: no such thing." in printed.err
    assert "m/plain/seed0: done, score 5.5" in printed.out
    assert sorted(words[0] for words, _ in stub()) == ["evaluate", "fit", "fit"]


def test_a_job_whose_time_is_up_saves_and_is_submitted_again(sweep, stub):
    assert sweep("--dry_run", datasets=["waits"], seeds=[0]) == 0  # writes the file
    job = slurm.SlurmJob(one_cell().target, Choices())
    results = []
    thread = threading.Thread(target=lambda: results.append(job()))
    thread.start()
    while not Path("waiting").exists():
        time.sleep(0.01)
    again = job.checkpoint()
    thread.join()
    assert results == ["interrupted"] and one_cell().state() == State.CUT
    assert again.function() == "" and one_cell().state() == State.DONE


def test_a_folder_that_is_not_ours_is_refused(sweep, stub):
    assert sweep("--dry_run", seeds=[0]) == 0
    fit, _ = one_cell().jobs
    fit.folder.mkdir(parents=True)
    (fit.folder / "inputs.json").write_text("{}")
    assert "move the folder" in Runner(Choices(), Children()).run(fit)


def test_a_sweep_can_train_folder_lock(sweep, stub, capsys):
    assert sweep(evaluate=False) == 0
    assert [words[0] for words, _ in stub()] == ["fit", "fit"]
    assert sweep(evaluate=False) == 0 and stub() == []  # nothing is left to do
    assert sweep("--dry_run", evaluate=False) == 0
    said = capsys.readouterr().out
    assert "# m/plain/seed0: done" in said and "lit-offrl evaluate" not in said
    # evaluated after all, without training again
    assert sweep("--rerun_changed", evaluate={"episodes": 2}) == 0
    assert [words[0] for words, _ in stub()] == ["evaluate", "evaluate"]
