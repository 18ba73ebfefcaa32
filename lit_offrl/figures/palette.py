"""Colours that stay the same from figure to figure, and apart for colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence

_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F"),
)  # Okabe and Ito (2008), with grey in black's place: black is for the data


def colours(names: Sequence[str]) -> dict[str, str]:
    """Give each name a colour, by its place in the list; the ninth begins again."""
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
