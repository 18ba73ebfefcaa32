"""Figures: data in, a matplotlib ``Figure`` out; nothing is shown or saved here."""

from lit_offrl.figures.curves import training_curves
from lit_offrl.figures.online import improvement_curve
from lit_offrl.figures.values import value_against_return

__all__ = ["improvement_curve", "training_curves", "value_against_return"]
