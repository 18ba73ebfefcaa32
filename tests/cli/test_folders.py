"""One fit at a time in a folder, and from a checkpoint."""

import errno
import fcntl
import os
import pickle
from contextlib import closing
from pathlib import Path

import pytest

from lit_offrl.__main__ import main
from lit_offrl.cli.folders import LOCK, Folders
from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.process import folder_lock


@pytest.fixture
def second(lit, capsys, monkeypatch):
    """Try another fit within the first step of one; return its exit code and what it says."""
    from lit_offrl.modules import BCModule

    step, outcome = BCModule.after_step, []

    def meanwhile(self):
        step(self)
        if not outcome:
            outcome.append(None)  # the other fit takes steps, too, if it may
            outcome.append(second.command())
            outcome.append(capsys.readouterr().err)

    def second(command, *first):
        second.command = command
        with monkeypatch.context() as patch:
            patch.setattr(BCModule, "after_step", meanwhile)
            assert lit(*first) == 0
        return outcome[1:]

    return second


def test_a_second_fit_in_a_folder_is_refused(lit, second):
    code, said = second(lambda: lit("--checkpoint.dirpath", "run"), "--checkpoint.dirpath", "run")
    assert code == 2 and said.count("\n") == 1
    assert "run: another fit is at work in this folder" in said


@pytest.mark.parametrize("more", [(), ("--checkpoint.dirpath", "elsewhere")])
def test_a_second_fit_from_a_checkpoint_is_refused(lit, second, more):
    assert lit("--trainer.max_steps", "2") == 0
    path = "checkpoints/BCModule-pendulum-seed0/last.ckpt"
    go_on = ("--ckpt_path", path, "--trainer.max_steps", "4")
    code, said = second(lambda: main(["fit", *go_on, *more]), *go_on)
    assert code == 2 and "seed0: another fit is at work in this folder" in said
    assert main(["fit", *go_on, "--trainer.max_steps", "5", *more]) == 0  # once it has ended


def test_a_run_of_which_the_folder_is_new_holds_it_too(lit, second):
    def other():
        Path("checkpoints/BCModule-pendulum-seed0/last.ckpt").write_bytes(before)
        return main(["fit", "--ckpt_path", "checkpoints/BCModule-pendulum-seed0/last.ckpt"])

    assert lit("--checkpoint.dirpath", "earlier") == 0
    before = Path("earlier/last.ckpt").read_bytes()
    code, said = second(other)
    assert code == 2 and "another fit is at work" in said


def test_a_sweeps_lock_on_its_cell_is_another_one(lit, tmp_path):
    with folder_lock(tmp_path / "run") as lock:
        assert lock is not None
        assert lit("--checkpoint.dirpath", "run") == 0


def test_locks_and_processes(tmp_path):
    with closing(Folders()) as one, closing(Folders()) as other:
        one.hold(tmp_path)
        one.hold(tmp_path / ".")
        with pytest.raises(ConfigError, match="another fit"):
            other.hold(tmp_path)
        copy = pickle.loads(pickle.dumps(one))  # for a process that is started anew
        copy.hold(tmp_path)
    with closing(Folders()) as later:
        later.hold(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks_let_everyone_in(tmp_path, monkeypatch, number):
    def none(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with closing(Folders()) as one, closing(Folders()) as other:
        one.hold(tmp_path)
        other.hold(tmp_path)
