"""Estimated values against true ones and against the data, and where advantages lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lit_offrl.figures.style import COLOURS, DASHED, in_style, looks

_MOST_BINS = 200


@in_style
def value_against_return(values: np.ndarray, returns: np.ndarray, gamma: float) -> Figure:
    """Scatter estimated values over discounted returns, with the diagonal and their correlation.

    Args:
        values: Estimates (N,).
        returns: Discounted returns of the same states (N,), in the same units.
        gamma: Discount factor of both, for the label.
    """
    values, returns = np.asarray(values, dtype=float), np.asarray(returns, dtype=float)
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.scatter(returns, values, s=10, alpha=0.5, linewidths=0)
    both = np.concatenate([values, returns])
    axis.axline((both.min(), both.min()), slope=1.0, color="0.4", lw=1, ls=DASHED)
    spread = values.std() * returns.std()
    correlation = np.corrcoef(values, returns)[0, 1] if spread > 0 else float("nan")
    axis.set_title(f"{len(values)} states, correlation {correlation:.2f}")
    axis.set(xlabel=f"discounted return in the data (γ = {gamma:g})", ylabel="DVF value")
    axis.grid()
    return figure


def from_numbers(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.value_against_return``."""
    return value_against_return(
        np.asarray(numbers["values"]), np.asarray(numbers["returns"]), numbers["gamma"]
    )


@in_style
def estimates_against_truth(
    labels: Sequence[str],
    truth: np.ndarray,
    errors: np.ndarray,
    estimates: Mapping[str, np.ndarray],
    gamma: float,
) -> Figure:
    """Scatter each estimator's values over the true ones, a panel an estimator, of one range.

    Args:
        labels: Names of the policies (K,).
        truth: Mean discounted returns (K,). Policies with NaN are left out.
        errors: Standard errors of the returns (K,), NaN if unknown.
        estimates: Values (K,) by the estimator's name.
        gamma: Discount factor of all, for the label.
    """
    known = np.isfinite(truth)
    spread = np.nan_to_num(errors)[known]
    panels = max(1, len(estimates))
    figure = Figure(figsize=(4.4 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, sharex=True, sharey=True)[0]
    names = [label for label, one in zip(labels, known, strict=True) if one]
    for axis, (name, values), look in zip(
        axes, estimates.items(), looks([*estimates]).values(), strict=False
    ):
        style = {"fmt": look.marker, "color": look.colour}
        axis.errorbar(truth[known], values[known], xerr=spread, **style)
        for label, x, y in zip(names, truth[known], values[known], strict=True):
            axis.annotate(label, (x, y), (4, 4), textcoords="offset points", fontsize=8)
        axis.set_title(name)
        axis.set_xlabel(f"true discounted return (γ = {gamma:g})")
        axis.grid()
    axes[0].set_ylabel("estimated value")
    if known.any():
        start = float(truth[known].min())
        for axis in axes:
            axis.axline((start, start), slope=1.0, color="0.4", lw=1, ls=DASHED)
    return figure


@in_style
def advantage_histogram(advantages: np.ndarray, bin_width: float = 0.25) -> Figure:
    """Draw the histogram of advantages with a mark at 0 (ACD, Figure 1).

    Counts are logarithmic, so that the thin coverage above 0 is visible.

    Args:
        advantages: (N,), in the rewards' units.
        bin_width: Width of a bin. If the advantages span more than 200 bins, a multiple of it is
            used.
    """
    values = np.asarray(advantages, dtype=float)
    low, high = values.min(), values.max()
    width = bin_width * max(1.0, np.ceil((high - low) / (bin_width * _MOST_BINS)))
    edges = width * np.arange(np.floor(low / width), np.floor(high / width) + 2)
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.hist(values, bins=edges, color=COLOURS[0], log=True)
    axis.axvline(0.0, color="black", lw=1, ls=DASHED)
    share = 100 * float((values > 0).mean())
    axis.set_title(f"{len(values):,} held-out steps, {share:.1f} % above 0")
    axis.set(xlabel=f"advantage Q(s, a) − V(s) (bins of {width:g})", ylabel="steps")
    axis.grid()
    return figure
