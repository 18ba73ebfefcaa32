"""Estimated values against what the data earned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def value_against_return(values: np.ndarray, returns: np.ndarray, gamma: float) -> Figure:
    """Scatter estimated values over discounted returns of the same states.

    Args:
        values: estimates (N,).
        returns: discounted returns to the episode's end (N,), in the same units.
        gamma: the discount of both, for the label.

    Returns:
        A figure with the diagonal and Pearson's correlation.
    """
    values, returns = np.asarray(values, dtype=float), np.asarray(returns, dtype=float)
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.scatter(returns, values, s=10, alpha=0.5, linewidths=0)
    both = np.concatenate([values, returns])
    axis.axline((both.min(), both.min()), slope=1.0, color="0.5", linewidth=1, linestyle="--")
    spread = values.std() * returns.std()
    correlation = np.corrcoef(values, returns)[0, 1] if spread > 0 else float("nan")
    axis.set_title(f"{len(values)} states, correlation {correlation:.2f}", fontsize=10)
    axis.set_xlabel(f"discounted return in the data (γ = {gamma:g})")
    axis.set_ylabel("DVF value")
    axis.grid(alpha=0.3)
    return figure


def from_numbers(numbers: Mapping[str, Any]) -> Figure:
    """Draw the numbers of ``studies.value_against_return``."""
    return value_against_return(
        np.asarray(numbers["values"]), np.asarray(numbers["returns"]), numbers["gamma"]
    )
