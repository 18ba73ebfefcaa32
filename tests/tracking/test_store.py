import signal
import subprocess
import sys

import pytest

from lit_offrl.__main__ import main
from lit_offrl.callbacks import MLflowRun
from lit_offrl.cli.layer import take_over
from lit_offrl.common import signals
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.quiet import say
from lit_offrl.experiments.process import Children
from lit_offrl.tracking.store import is_own, redacted, runs_address, store_lock

DATABASE = "postgresql://me:pass%40word@host/db"  # MLflow's stores may be databases, too
BARE = "postgresql://host/db"
SECRETS = ("me:", "pass%40word", "pass@word")


def hides_it(text):
    assert BARE in text and not any(secret in text for secret in SECRETS)


def test_what_a_file_says_of_a_database_is_the_users_own_store_without_its_password(monkeypatch):
    assert not is_own(BARE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DATABASE)
    assert is_own(BARE) and is_own(BARE, DATABASE) and not is_own("postgresql://other/db")
    assert redacted(DATABASE) == BARE


def test_a_resumed_run_contacts_the_users_database_with_the_users_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DATABASE)
    logger = {
        "class_path": f"{MLflowRun.__module__}.{MLflowRun.__name__}",
        "init_args": {"tracking_uri": BARE, "experiment_name": "mine"},
    }
    config = {
        "model": {"class_path": "lit_offrl.modules.bc.BCModule", "init_args": {}},
        "trainer": {"logger": logger},
    }
    layer, left_out = take_over(config, "some.ckpt", fit=True)
    options = layer["trainer"]["logger"]["init_args"]
    assert options == {"tracking_uri": DATABASE, "experiment_name": "mine"}
    assert not left_out


def test_no_line_and_no_log_of_a_job_holds_the_password(monkeypatch, capsys, tmp_path):
    say(f"MLflow at {DATABASE} is back")
    hides_it(capsys.readouterr().out)
    hides_it(runs_address(DATABASE, "1"))

    def refuse(argv):
        raise ConfigError(f"MLflow at {DATABASE} refuses")

    monkeypatch.setattr("lit_offrl.__main__.dispatch", refuse)
    assert main(["fit"]) == 2
    hides_it(capsys.readouterr().err)

    log, lock = tmp_path / "fit.log", tmp_path / "lock"
    with lock.open("w") as held:
        words = [sys.executable, "-c", "pass", "--tracking_uri", DATABASE]
        assert Children().run(words, log, {}, held.fileno()) == 0
    hides_it(log.read_text())


@pytest.mark.parametrize("verb", ["--help", "--version"])
def test_help_imports_nothing_heavy(verb):
    words = [sys.executable, "-X", "importtime", "-m", "lit_offrl", verb]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    assert "torch" not in told and "lit_offrl.tracking.store" not in told


def test_a_signal_waits_while_the_tables_of_a_store_are_made(tmp_path):
    uri, done = f"sqlite:///{tmp_path}/mlflow.db", []
    with signals.listening(), pytest.raises(signals.Interrupted):
        with store_lock(uri):
            signal.raise_signal(signal.SIGTERM)
            done.append("made")
        done.append("nothing more")
    assert done == ["made"]
