"""A fit leaves signals to whoever had them before, so that they are heard after it."""

import signal

import pytest

NUMBERS = (signal.SIGTERM, signal.SIGINT)


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
    from lit_offrl.modules import BCModule

    step = BCModule.after_step

    def stopped(self):
        step(self)
        signal.raise_signal(signal.SIGTERM)

    before = [signal.getsignal(number) for number in NUMBERS]
    monkeypatch.setattr(BCModule, "after_step", stopped)
    assert lit("--trainer.max_steps", "5") == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert not heard


def test_a_signal_in_the_sanity_check_stops_after_the_first_step(lit, heard, monkeypatch, capsys):
    from lit_offrl.modules import BCModule

    validate = BCModule.validation_step

    def told(self, batch, batch_idx):
        if self.trainer.sanity_checking:
            signal.raise_signal(signal.SIGTERM)
        validate(self, batch, batch_idx)

    monkeypatch.setattr(BCModule, "validation_step", told)
    assert lit("--trainer.num_sanity_val_steps", "1") == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 1; saved" in capsys.readouterr().err and not heard
