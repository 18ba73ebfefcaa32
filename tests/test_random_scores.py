import pytest

from benchmarks import random_scores

pytest.importorskip("mujoco")


def test_random_returns_repeat_and_are_printed_beside_the_references(capsys):
    returns, lengths = random_scores.random_returns("lit_offrl/hopper-v2", 3)
    assert (returns == random_scores.random_returns("lit_offrl/hopper-v2", 3)[0]).all()
    assert (lengths >= 5).all() and (lengths < 100).all()
    random_scores.main(["--episodes", "3", "lit_offrl/hopper-v2"])
    shown = capsys.readouterr().out
    assert f"{returns.mean():.2f}" in shown and "-20.27" in shown and "3 episodes" in shown
