"""The one handler, in processes that import nothing else."""

import signal
import subprocess
import sys

import pytest

from lit_offrl.common import signals

BEGIN = """
import sys, time
from lit_offrl.common import signals
from lit_offrl.common.signals import *
signals._ONE_WISH_SECONDS = 0.0  # so that a second signal is not taken for the first
def wait():
    print("ready", flush=True)
    while not signals.received(): time.sleep(0.01)
def main():
    with listening(process=True):
        try:
            run()
            code = 0
        except Interrupted as stop:
            print(stop, flush=True)
            code = 128 + stop.number
        return signals.settle(code)
"""


def ended(code, *numbers):
    """Run code, send a signal each time it says that it is ready; return exit code and output."""
    words = [sys.executable, "-c", BEGIN + code + "\nsys.exit(main())"]
    with subprocess.Popen(words, stdout=-1, stderr=subprocess.STDOUT, text=True) as process:
        for number in numbers:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
        rest = process.stdout.read()
    return process.returncode, rest


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_the_exit_code_is_128_and_the_number(number):
    assert ended("def run(): wait()", number) == (128 + number, f"stopped by {number.name}.\n")


def test_a_signal_waits_for_the_end_of_what_holds_it():
    code = "def run():\n with held():\n  wait(); print('written')\n print('never')"
    assert ended(code, signal.SIGUSR1) == (138, "written\nstopped by SIGUSR1.\n")


def test_a_signal_that_waits_for_long_says_so():
    code = "signals._PATIENCE_SECONDS = 0.01\ndef run():\n with held():\n  wait()\n"
    code += "  for each in threading.enumerate():\n   if each.daemon: each.join()"
    status, said = ended("import threading\n" + code, signal.SIGINT)
    assert status == 130 and said.splitlines() == [
        "lit-offrl: SIGINT is heard, and what is under way, such as a training step, is ended"
        " first; a second signal ends the process at once.",
        "stopped by SIGINT.",
    ]


def test_a_second_signal_ends_the_process_at_once():
    code = "def run():\n with held():\n  wait(); print('ready', flush=True); time.sleep(100)"
    said = "lit-offrl: ended at once by a second signal, SIGTERM.\n"
    assert ended(code, signal.SIGINT, signal.SIGTERM) == (143, said)


def test_a_signal_among_imports_ends_the_process_without_an_exception():
    code = "def run():\n with abruptly():\n  try: wait()\n  except BaseException: print('lost')"
    assert ended(code, signal.SIGTERM) == (143, "lit-offrl: stopped by SIGTERM.\n")


def test_an_outcome_stands_once_it_is_settled():
    code = "import atexit\ndef run(): atexit.register(wait)"
    assert ended(code, signal.SIGTERM) == (0, "")


def test_what_starts_jobs_collects_signals_and_takes_one_wish_for_one():
    with signals.listening():
        with signals.collected() as found:
            for _ in range(2):
                signal.raise_signal(signal.SIGUSR1)
        assert found == [signal.SIGUSR1] and not signals.received()
        with pytest.raises(signals.Interrupted, match=r"stopped by SIGTERM\."):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(signals.Interrupted), signals.at_once():
            pass
