"""Whether a fit that has ended with 0 counts as finished; what it writes, test_ending.py has."""

import json
import signal
from pathlib import Path

from lit_offrl.common.finished import why_unfinished
from lit_offrl.modules import BCModule


def test_a_fit_that_a_signal_has_stopped_is_not_finished_until_it_has_gone_on(lit, monkeypatch):
    run = Path("run")
    assert lit("--checkpoint.dirpath", "run") == 0 and why_unfinished(run) == ""
    go_on = ("--ckpt_path", "run/last.ckpt", "--trainer.max_steps", "9")
    with monkeypatch.context() as patched:
        patched.setattr(BCModule, "after_step", lambda self: signal.raise_signal(signal.SIGTERM))
        assert lit(*go_on) == 143
    assert "(there is no run/finished.json): the same command goes on" in why_unfinished(run)
    assert lit(*go_on) == 0 and why_unfinished(run) == ""


def test_a_step_short_of_the_last_is_no_end(tmp_path):
    (tmp_path / "last.ckpt").touch()
    file = tmp_path / "finished.json"
    file.write_text(json.dumps({"step": 400, "max_steps": 3000, "reason": "max_steps"}))
    assert why_unfinished(tmp_path) == "fit ended with 0 at step 400 of 3,000"
    file.write_text(json.dumps({"step": 400, "max_steps": None, "reason": "max_time"}))
    assert why_unfinished(tmp_path) == ""
    file.write_text("{")
    assert "cannot be read" in why_unfinished(tmp_path)
