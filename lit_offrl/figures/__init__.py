"""Figures: data in, a matplotlib ``Figure`` out; nothing is shown or saved here."""

from lit_offrl.figures.advantages import advantage_histogram
from lit_offrl.figures.curves import training_curves
from lit_offrl.figures.values import value_against_return

__all__ = ["advantage_histogram", "training_curves", "value_against_return"]
