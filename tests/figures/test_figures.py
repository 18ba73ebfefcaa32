"""Figures hold the points they were given, and survive data that do not vary."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from lit_offrl.figures import improvement_curve, training_curves, value_against_return


def render(figure) -> None:
    """Draw a figure for real: some mistakes show only then."""
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), dpi=30)


def shown(figure) -> dict:
    """Axes that are drawn, by title."""
    return {axis.get_title(): axis for axis in figure.axes if axis.axison}


def points(line) -> list[tuple[float, float]]:
    return list(zip(*(np.asarray(part).tolist() for part in line.get_data()), strict=True))


def test_a_metrics_training_and_validation_share_a_panel():
    history = {
        "train/loss/q": [(10, 2.0), (20, 1.0)],
        "val/loss/q": [(20, 1.5)],
        "train/q/mean": [(10, -1.0), (20, 3.0)],
        "lr": [(10, 0.1)],
        "score/mean": [(20, 50.0)],
    }
    figure = training_curves(history)
    panels = shown(figure)
    assert set(panels) == {"loss/q", "q/mean", "lr", "score/mean"}
    shared = panels["loss/q"]
    lines = {line.get_label(): points(line) for line in shared.get_lines()}
    assert lines == {"train": history["train/loss/q"], "val": history["val/loss/q"]}
    assert [text.get_text() for text in shared.get_legend().get_texts()] == ["train", "val"]
    assert panels["lr"].get_legend() is None
    assert {axis.get_xlabel() for axis in panels.values()} == {"optimiser step"}
    scales = {name: axis.get_yscale() for name, axis in panels.items()}
    assert scales.pop("loss/q") == "log" and set(scales.values()) == {"linear"}
    render(figure)


def test_a_loss_that_is_not_positive_keeps_a_linear_scale():
    figure = training_curves({"train/loss/actor": [(1, 2.0), (2, 0.0), (3, -1.0)]})
    assert shown(figure)["loss/actor"].get_yscale() == "linear"
    render(figure)


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"train/loss/q": []},
        {"train/loss/q": [(1, 0.5), (2, 0.5), (3, 0.5)]},
        {"train/loss/q": [(1, 0.0)]},
        {"train/loss/q": [(1, float("nan")), (2, 1.0)]},
    ],
)
def test_curves_survive_data_that_say_little(history):
    render(training_curves(history))


def test_values_stand_over_returns_with_their_correlation():
    returns = np.array([1.0, 2.0, 3.0, 4.0])
    values = np.array([1.0, 3.0, 2.0, 5.0])
    figure = value_against_return(values, returns, 0.95)
    (axis,) = figure.axes
    drawn = axis.collections[0].get_offsets()
    np.testing.assert_array_equal(drawn, np.stack([returns, values], axis=1))
    correlation = np.corrcoef(values, returns)[0, 1]
    assert axis.get_title() == f"4 held-out states, correlation {correlation:.2f}"
    assert "γ = 0.95" in axis.get_xlabel() and axis.get_ylabel() == "DVF value"
    diagonal = axis.get_lines()[0]
    assert diagonal.get_slope() == 1.0 and diagonal.get_xy1() == (1.0, 1.0)
    render(figure)


@pytest.mark.parametrize("both", [(np.ones(5), np.arange(5)), (np.zeros(3), np.zeros(3))])
def test_values_that_do_not_vary_have_no_correlation(both, recwarn):
    figure = value_against_return(*both, gamma=0.99)
    assert "correlation nan" in figure.axes[0].get_title()
    render(figure)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_the_improvement_curve_shows_policy_and_data_by_environment_steps():
    rounds = [
        {
            "environment_steps": 100 * (number + 1),
            "return_mean": 10.0 * number,
            "return_standard_error": 1.0,
            "collected_return_mean": 5.0 * number,
        }
        for number in range(3)
    ]
    figure = improvement_curve(rounds, "car")
    render(figure)
    policy, data = shown(figure)["car"].lines
    assert points(policy) == [(100.0, 0.0), (200.0, 10.0), (300.0, 20.0)]
    assert points(data) == [(100.0, 0.0), (200.0, 5.0), (300.0, 10.0)]
