"""Figures: data in, a matplotlib ``Figure`` out; nothing is shown, ``save_figure`` saves."""

from lit_offrl.figures.advantages import advantage_histogram
from lit_offrl.figures.bars import Bar, score_bars
from lit_offrl.figures.curves import training_curves
from lit_offrl.figures.online import improvement_curve
from lit_offrl.figures.ope import estimates_against_truth
from lit_offrl.figures.palette import COLOURS, STYLE
from lit_offrl.figures.profiles import Profile, performance_profiles
from lit_offrl.figures.saving import save_figure
from lit_offrl.figures.values import value_against_return

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
