"""Figures: data in, a matplotlib ``Figure`` out; nothing is shown, ``save_figure`` saves."""

from lit_offrl.figures.bars import Bar, score_bars
from lit_offrl.figures.curves import improvement_curve, training_curves
from lit_offrl.figures.profiles import Profile, performance_profiles
from lit_offrl.figures.style import COLOURS, STYLE, save_figure
from lit_offrl.figures.values import (
    advantage_histogram,
    estimates_against_truth,
    value_against_return,
)

__all__ = [
    "COLOURS",
    "STYLE",
    "Bar",
    "Profile",
    "advantage_histogram",
    "estimates_against_truth",
    "improvement_curve",
    "performance_profiles",
    "save_figure",
    "score_bars",
    "training_curves",
    "value_against_return",
]
