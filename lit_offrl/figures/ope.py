"""Estimated values of policies against their true values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

_STYLES = (("o", "#0072b2"), ("s", "#d55e00"), ("^", "#009e73"))


def estimates_against_truth(
    labels: Sequence[str],
    truth: np.ndarray,
    errors: np.ndarray,
    estimates: Mapping[str, np.ndarray],
    gamma: float,
) -> Figure:
    """Scatter each estimator's values over the true ones, a panel an estimator.

    Args:
        labels: names of the policies (K,).
        truth: mean discounted returns (K,); policies with NaN are left out.
        errors: their standard errors (K,), NaN where unknown.
        estimates: values (K,) by the estimator's name.
        gamma: the discount of all, for the label.

    Returns:
        A figure whose panels have one range and the diagonal.
    """
    known = np.isfinite(truth)
    spread = np.nan_to_num(errors)[known]
    panels = max(1, len(estimates))
    figure = Figure(figsize=(4.4 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, sharex=True, sharey=True)[0]
    names = [label for label, one in zip(labels, known, strict=True) if one]
    for axis, (name, values), (marker, colour) in zip(
        axes, estimates.items(), _STYLES, strict=False
    ):
        axis.errorbar(truth[known], values[known], xerr=spread, fmt=marker, color=colour)
        for label, x, y in zip(names, truth[known], values[known], strict=True):
            axis.annotate(label, (x, y), (4, 4), textcoords="offset points", fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(f"true discounted return (γ = {gamma:g})")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("estimated value")
    if known.any():
        start = float(truth[known].min())
        for axis in axes:
            axis.axline((start, start), slope=1.0, color="0.5", linewidth=1, linestyle="--")
    return figure
