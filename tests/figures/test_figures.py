"""Figures hold the points they were given, and survive data that do not vary."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from lit_offrl.figures import (
    Bar,
    Profile,
    estimates_against_truth,
    improvement_curve,
    performance_profiles,
    score_bars,
    training_curves,
    value_against_return,
)
from lit_offrl.figures.against import from_numbers as scores_against
from lit_offrl.figures.style import in_style, looks


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
    assert axis.get_title() == f"4 states, correlation {correlation:.2f}"
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


NAN = float("nan")


def test_bars_have_the_heights_intervals_runs_and_data_that_were_given():
    bars = {
        ("hopper", "BC"): Bar(20.0, 10.0, 30.0, np.array([15.0, 25.0])),
        ("hopper", "DVF"): Bar(50.0, NAN, NAN, np.array([50.0])),
        ("ant", "BC"): Bar(-5.0, -500.0, 490.0, np.array([-6.0, -4.0])),
    }
    figure = score_bars(bars, ["hopper", "ant"], ["BC", "DVF"], {"hopper": 12.5}, label="score")
    (axis,) = figure.axes
    assert [patch.get_height() for patch in axis.patches] == [20, 50, -5]
    dots = [part for part in axis.collections if isinstance(part, PathCollection)]
    assert sorted(y for part in dots for _, y in part.get_offsets()) == [-6, -4, 15, 25, 50]
    segments = [s for part in axis.collections for s in getattr(part, "get_segments", list)()]
    heights = sorted(tuple(float(y) for _, y in segment) for segment in segments)
    assert heights == [(-500, 490), (10, 30), (12.5, 12.5)]
    low, high = axis.get_ylim()
    assert -50 < low < -6 and 50 < high < 100  # the wide interval is cut, with arrows
    markers = [line.get_marker() for line in axis.get_lines()]
    assert {"^", "v"} <= set(markers) and markers.count("x") == 1  # DVF on ant is missing
    assert [text.get_text() for text in axis.get_xticklabels()] == ["hopper", "ant"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["BC", "DVF", "a run", "95 % interval of the mean", "data"]
    render(figure)


def test_bars_of_many_datasets_take_rows_and_those_of_several_units_axes():
    names = [f"some-long-name-{number}" for number in range(8)]
    bars = {(name, "BC"): Bar(1.0, NAN, NAN, np.ones(1)) for name in names}
    shared = score_bars(bars, names, ["BC"], {}, label="score")
    assert [len(axis.get_xticks()) for axis in shared.axes] == [4, 4]
    apart = score_bars(bars, names, ["BC"], {}, label="return", share=False)
    assert len([axis for axis in apart.axes if axis.axison]) == 8
    render(shared)
    render(apart)


def test_profiles_hold_their_shares():
    thresholds, share = np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.5, 0.0])
    profile = Profile(share, share - 0.1, share + 0.1)
    figure = performance_profiles(thresholds, {"BC": profile}, label="score", data={"hopper": 1.5})
    (axis,) = figure.axes
    lines = {line.get_label(): points(line) for line in axis.get_lines()}
    assert lines["BC"] == [(0, 1), (1, 0.5), (2, 0)] and axis.get_xlabel() == "score τ"
    band, ticks = axis.collections
    assert [x for (x, _), _ in ticks.get_segments()] == [1.5] and band.get_alpha() < 1
    render(figure)


def test_a_method_without_a_profile_takes_no_colour_from_the_others():
    profile = Profile(*[np.array([1.0, 0.0])] * 3)
    names = ["BC", "CQL", "DVF"]
    figure = performance_profiles(np.arange(2.0), {"DVF": profile}, label="score", methods=names)
    assert figure.axes[0].get_lines()[0].get_color() == looks(names)["DVF"].colour


def test_series_can_be_told_apart_without_colour():
    every = looks([str(number) for number in range(12)]).values()
    for part in ("colour", "marker", "hatch"):
        assert len({getattr(look, part) for look in every}) == 12
    names = ["BC", "CQL"]
    bars = {("hopper", name): Bar(1.0, NAN, NAN, np.ones(1)) for name in names}
    drawn = score_bars(bars, ["hopper"], names, {}, label="score").axes[0].patches
    assert [bar.get_hatch() or "" for bar in drawn] == [
        each.hatch for each in looks(names).values()
    ]
    profile = Profile(*[np.array([1.0, 0.0])] * 3)
    lines = performance_profiles(np.arange(2.0), dict.fromkeys(names, profile), label="score")
    first, second, *_ = lines.axes[0].get_lines()
    assert first.get_linestyle() == "-" and second.get_linestyle() == "--"


def test_a_figure_looks_alike_whatever_the_settings_of_its_reader():
    with matplotlib.rc_context({"axes.titlesize": 30, "axes.spines.top": True}):
        (axis,) = value_against_return(np.arange(3.0), np.arange(3.0), gamma=0.9).axes
        assert matplotlib.rcParams["axes.titlesize"] == 30
    assert axis.title.get_fontsize() == 10 and not axis.spines["top"].get_visible()


@pytest.mark.parametrize("kind", ["bars", "profiles", "against"])
def test_long_names_fit_into_the_legend(kind):
    names = [f"Method{n} (policy.act_mode=filtered, policy.num_samples={n})" for n in range(6)]
    if kind == "bars":
        bars = {("hopper", name): Bar(1.0, 0.0, 2.0, np.ones(2)) for name in names}
        figure = score_bars(bars, ["hopper"], names, {}, label="score")
    elif kind == "profiles":
        profile = Profile(*[np.array([1.0, 0.0])] * 3)
        figure = performance_profiles(np.arange(2.0), dict.fromkeys(names, profile), label="score")
    else:  # each method on a dataset of its own
        points = [
            {"dataset": f"d{n}", "method": name, "option": "1", "unit": "score", "runs": [1.0]}
            | {"value": 1.0, "low": NAN, "high": NAN}
            for n, name in enumerate(names)
        ]
        figure = scores_against({"option": "omega", "points": points})
    figure.savefig(io.BytesIO(), format="png")
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    texts = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert texts[: len(names)] == names
    heights = [axis.get_position().height * figure.get_figheight() for axis in figure.axes]
    assert min(height for height in heights) > 1.5


def test_estimates_stand_over_the_truth_and_unknown_truths_are_left_out():
    truth, errors = np.array([1.0, np.nan, 3.0]), np.array([0.1, np.nan, np.nan])
    estimates = {"DVF": np.array([2.0, 5.0, 2.5]), "FQE": np.array([1.0, 1.0, 1.0])}
    figure = estimates_against_truth(["1", "4", "6"], truth, errors, estimates, 0.9)
    render(figure)
    panels = shown(figure)
    assert list(panels) == ["DVF", "FQE"]
    assert points(panels["DVF"].get_lines()[0]) == [(1.0, 2.0), (3.0, 2.5)]
    assert [text.get_text() for text in panels["FQE"].texts] == ["1", "6"]
    nothing = estimates_against_truth(["1"], truth[1:2], errors[1:2], {"DVF": truth[:1]}, 0.9)
    render(nothing)


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


def test_ticks_of_losses_within_a_decade_differ():
    from lit_offrl.figures import training_curves

    figure = training_curves({"loss/a": [(1, 0.2), (2, 0.14)]})
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    labels = [each.get_text() for each in axis.get_ticklabels(which="both") if each.get_text()]
    assert len(labels) == len(set(labels)) > 1


def test_numbers_of_texts_have_minus_signs():
    @in_style
    def draw():
        figure = Figure()
        axis = figure.subplots()
        axis.set_title("hopper-v2, maze2d-umaze: -0.5 to -3e-2")
        axis.set_xlabel("(-1, 2)")
        return figure

    axis = draw().axes[0]
    assert axis.get_title() == "hopper-v2, maze2d-umaze: −0.5 to −3e-2"
    assert axis.get_xlabel() == "(−1, 2)"
