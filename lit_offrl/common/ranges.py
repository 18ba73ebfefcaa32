"""What numbers may be, in intervals written as in mathematics."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

from lit_offrl.common.errors import ConfigError

SEEDS = f"[0, {2**32 - 1}]"
"""What a seed may be: what NumPy's generators take, and so Lightning."""


def require_in(interval: str, **numbers: float | None) -> None:
    """Refuse numbers outside an interval, NaN among them; None is a number that is not given.

    Args:
        interval: such as ``[0, 1)``; with ``inf)`` as its end numbers must be finite.
        **numbers: by the option's name.

    Raises:
        ConfigError: of the first one outside, naming the option.
    """
    for name, number in numbers.items():
        if number is not None and not lies_in(interval, number):
            raise ConfigError(f"{name} is {number}: give {_wanted(interval, number)}.")


def require_fields(options: Any) -> None:
    """Refuse a dataclass with a number outside the interval that its annotation names.

    Args:
        options: A dataclass with annotations such as ``states: Annotated[int, "[1, inf)"]``.

    Raises:
        ConfigError: The first number outside its interval, naming the field.
    """
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        for interval in getattr(hint, "__metadata__", ()):
            if isinstance(interval, str):
                require_in(interval, **{name: getattr(options, name)})


def lies_in(interval: str, number: float) -> bool:
    """Whether a number lies in an interval such as ``[0, 1)``."""
    low, high = _ends(interval)
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def _wanted(interval: str, number: float) -> str:
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"a number in {interval}"
    if not math.isfinite(number):
        return "a finite number"
    return f"at least {low}" if interval[0] == "[" else f"a number above {low}"


def _ends(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(", ")
    return float(low), float(high)
