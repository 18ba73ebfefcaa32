"""Pipelines from nothing to their scores, with a stand-in for fit and evaluate."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lit_offrl.commands.experiments import check_jobs  # the real one
from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.job import Cell, Tracking
from lit_offrl.experiments.pipeline import read_pipeline
from lit_offrl.experiments.process import folder_lock

ROOT = Path("pipelines/two/seed0")


def value(words, option):
    return words[words.index(option) + 1]


def verbs(calls):
    """Return fit or evaluate and the folder's name, for each call."""
    return [
        (words[0], Path(words[words.index(option) + 1]).parts[-depth])
        for words, _ in calls
        for option, depth in [("--checkpoint.dirpath", 2) if words[0] == "fit" else ("--output", 3)]
    ]


ALL = [("fit", "first"), ("fit", "second"), ("evaluate", "one"), ("evaluate", "other")]


def test_it_runs_once_and_then_not_again(pipeline, stub, capsys):
    assert pipeline(seed=3) == 0
    root = Path("pipelines/two/seed3").resolve()
    calls = stub()
    assert verbs(calls) == ALL
    second, one = calls[1][0], calls[2][0]
    assert value(second, "--model.before") == str(root / "first/fit/last.ckpt")
    assert value(second, "--data.init_args.dataset") == "minari:data"
    assert value(second, "--seed_everything") == "3"
    assert value(second, "--trainer.logger.init_args.experiment_name") == "two"
    tags = json.loads(value(second, "--trainer.logger.init_args.tags"))
    assert len(tags.pop("lit_offrl.cell")) == 32
    assert tags == {"lit_offrl.pipeline": "two", "lit_offrl.stage": "second"}
    assert value(one, "--policy.x") == "1" and value(one, "--episodes") == "3"
    assert value(one, "--run_name") == "one-seed3" and "--mlflow" in one
    tags = json.loads(value(one, "--run_tags"))
    assert tags["lit_offrl.method"] == "one" and "lit_offrl.stage" not in tags
    assert {"lit_offrl.seconds.first", "lit_offrl.seconds.second"} <= tags.keys()
    out = capsys.readouterr().out
    assert "10.5" in out and "5.5" in out  # the second stage's checkpoint is 10, the first's 5

    assert pipeline(seed=3) == 0
    assert stub() == []
    assert "10.5" in capsys.readouterr().out


def test_what_has_changed_is_run_again_with_all_that_follows(pipeline, stub, capsys, folder):
    assert pipeline() == 0
    stub()
    assert pipeline("--set", "second.model.width=2") == 0
    assert verbs(stub()) == [("fit", "second")]  # the checkpoint is the same, as are the scores
    out = capsys.readouterr().out
    assert "second: again, since config.model.width: 1 → 2; what was there is in" in out
    assert (ROOT / "second.before-1/fit/last.ckpt").is_file()

    # Where an option stands does not matter, nor a comment.
    (folder / "c.yaml").write_text("# wider\nmodel: {width: 2}\n")
    stages = {"first": {"config": "a.yaml"}, "second": {"config": ["a.yaml", "c.yaml"]}}
    stages["second"]["checkpoints"] = {"model.before": "first"}
    assert pipeline(stages=stages) == 0
    assert verbs(stub()) == []

    assert pipeline("--set", "evaluate.episodes=5", stages=stages) == 0
    assert verbs(stub()) == ALL[2:]

    # A first stage with other weights is another input of what follows.
    checkpoint = ROOT / "first/fit/last.ckpt"
    checkpoint.write_text("7")
    capsys.readouterr()
    assert pipeline("--set", "evaluate.episodes=5", stages=stages) == 0
    assert verbs(stub()) == ALL[1:]
    assert "second: again, since checkpoints.model.before: " in capsys.readouterr().out


def test_other_data_are_another_input(pipeline, stub, capsys, d4rl_file, folder):
    data = folder / "data.hdf5"
    data.write_bytes(d4rl_file.read_bytes())
    assert pipeline(dataset="data.hdf5") == 0
    assert len(stub()) == 4
    with data.open("ab") as file:
        file.write(b"0")
    assert pipeline(dataset="data.hdf5") == 0
    assert verbs(stub())[:2] == ALL[:2]
    assert "first: again, since data_sha256: " in capsys.readouterr().out
    data.unlink()
    assert pipeline("--dataset", "maze2d-umaze-v1") == 2
    assert stub() == []
    assert "lit-offrl datasets download maze2d-umaze-v1" in capsys.readouterr().err


def test_other_bytes_of_a_checkpoint_that_an_option_names_are_another_input(pipeline, stub, capsys):
    critic = Path("critic.ckpt").resolve()
    critic.write_bytes(b"one")
    second = {"config": "a.yaml", "options": {"model.critic": str(critic)}}
    stages = {"first": {"config": "a.yaml"}, "second": second}
    assert pipeline(stages=stages) == 0
    stub()
    critic.write_bytes(b"another")
    assert pipeline(stages=stages) == 0
    assert [verb for verb in verbs(stub()) if verb[0] == "fit"] == [("fit", "second")]
    assert "again, since checkpoints.model.critic: " in capsys.readouterr().out


def test_a_failing_stage_names_its_log_and_stops_only_what_needs_it(pipeline, stub, capsys):
    fails = ("--set", "second.model.mode=fails")
    assert pipeline(*fails) == 1
    assert verbs(stub()) == [("fit", "first"), ("fit", "second"), ("evaluate", "other")]
    err = capsys.readouterr().err
    assert "second: fit ended with 1: lit-offrl: error: no such thing. (see " in err
    assert str(ROOT / "second/fit.log") in err and "one: second is not done" in err
    # It had a checkpoint, so the same command goes on from that.
    assert pipeline(*fails) == 0
    calls = stub()
    assert verbs(calls) == [("fit", "second"), ("evaluate", "one")]
    assert calls[0][0][1:3] == ["--ckpt_path", str((ROOT / "second/fit/last.ckpt").resolve())]
    assert len(json.loads((ROOT / "second/parts.json").read_text())) == 2


def test_a_stage_killed_before_its_first_checkpoint_begins_anew(pipeline, stub, capsys):
    dies = ("--set", "first.model.mode=dies", "--only", "first")
    for _ in range(2):
        assert pipeline(*dies) == 1
        assert "first: fit was killed by SIGKILL" in capsys.readouterr().err
        ((words, _),) = stub()
        assert "--ckpt_path" not in words
    assert pipeline("--only", "first") == 0
    assert not ROOT.with_name("first.before-1").exists()  # nothing of worth had been made


def test_a_checkpoint_of_unknown_inputs_is_not_gone_on_from(pipeline, stub):
    assert pipeline() == 0
    stub()
    for name in ("inputs.json", "done.json"):
        (ROOT / "first" / name).unlink()
    assert pipeline() == 0
    assert "--ckpt_path" not in stub()[0][0]


def test_a_fit_without_a_checkpoint_is_no_stage(pipeline, stub, capsys):
    assert pipeline("--set", "first.model.mode=keeps nothing", "--only", "one") == 1
    assert "leave trainer.enable_checkpointing and trainer.fast_dev_run" in capsys.readouterr().err
    assert verbs(stub()) == ALL[:1]


def test_sigterm_lets_the_fit_save_and_the_same_command_goes_on(pipeline, stub, capsys):
    def send():
        while not Path("waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    waits = ("--set", "second.model.mode=waits")
    assert pipeline(*waits) == 143
    thread.join()
    assert "stopped by SIGTERM; the same command goes on" in capsys.readouterr().err
    assert verbs(stub()) == ALL[:2]
    assert pipeline("--dry_run", *waits) == 0
    out = capsys.readouterr().out
    assert "# first: done" in out and "# second: interrupted at its beginning, goes on" in out
    assert pipeline(*waits) == 0
    assert verbs(stub()) == ALL[1:]


def test_dry_run_says_what_would_be_done_and_does_nothing(pipeline, stub, capsys):
    assert pipeline("--dry_run", "--no-mlflow") == 0
    out = capsys.readouterr().out
    assert out.startswith("# first: not begun\nlit-offrl fit --config ")
    assert "--trainer.logger false" in out and "--no-mlflow" in out
    assert stub() == [] and not Path("pipelines").exists()
    assert pipeline() == 0
    stub()
    capsys.readouterr()
    assert pipeline("--dry_run", "--set", "first.model.width=5") == 0
    out = capsys.readouterr().out
    assert "# first: runs again, since config.model.width: 1 → 5" in out
    assert "--ckpt_path" not in out.partition("# one:")[0]  # anew, not from where it had ended
    assert "# second: runs again after first" in out and "# one: runs again after second" in out
    assert stub() == []


def test_a_checkpoint_cut_short_is_said_before_anything_is_put_aside(pipeline, stub, write):
    assert pipeline() == 0
    path = write()
    (ROOT / "first/fit/last.ckpt").write_bytes(b"PK")
    jobs = read_pipeline([path]).jobs(ROOT.resolve(), Tracking(None, "two"), 0)
    assert [job.state() for job in jobs] == ["done", "changed", "changed", "changed"]
    with pytest.raises(ConfigError, match=r"^first: .*not a readable .*Delete it to train the"):
        check_jobs([Cell(job.name, {}, (job,)) for job in jobs[1:]], "", make=True)


def test_it_waits_for_another_process_that_works_on_a_stage(pipeline, stub, capsys):
    held, free = threading.Event(), threading.Event()

    def hold():
        with folder_lock((ROOT / "first").resolve()) as lock:
            assert lock is not None
            held.set()
            free.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    threading.Timer(0.3, free.set).start()
    assert pipeline("--only", "first") == 0
    thread.join()
    assert "first: waits for another process that works on it" in capsys.readouterr().out
    assert verbs(stub()) == ALL[:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "first.x"), "--set first.x: give KEY=VALUE"),
        (("--set", "first.x=2024-13-45"), "'2024-13-45' is no YAML"),
        (("--set", "frst.x=1"), "Did you mean 'first'?"),
        (("--only", "frst"), "there is no such stage or evaluation. Did you mean 'first'?"),
        (("--seed", "-1"), "invalid seed in [0, 4294967295] value: '-1'"),
        (("--ouput", "x"), "Did you mean '--output'?"),
        (["--tracking_uri", "http://127.0.0.1:9"], "or --no-mlflow."),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(pipeline, stub, capsys, options, message):
    assert pipeline(*options) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert stub() == []
