"""What options may be: numbers of intervals written as in mathematics, words of a few choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lit_offrl.common.errors import ConfigError, nearest

SEEDS = f"[0, {2**32 - 1}]"
"""What a seed may be: what NumPy's generators take, and so Lightning."""


def require_in(interval: str, **numbers: float | None) -> None:
    """Refuse numbers outside an interval, NaN among them; None is a number that is not given.

    Args:
        interval: Interval such as ``[0, 1)``. If it ends with ``inf)``, numbers must be finite.
        **numbers: Numbers by the option's name.

    Raises:
        ConfigError: A number is outside; the message names the option.
    """
    for name, number in numbers.items():
        if number is not None and not lies_in(interval, number):
            raise ConfigError(f"{name} is {number}: give {_wanted(interval, number)}.")


def require_hints(hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse values that are none of a ``Literal``'s choices or outside an annotated interval.

    Args:
        hints: Types by name, such as ``Literal["q", "v"]`` and ``Annotated[int, "[1, inf)"]``.
        values: Values by name; what is not there is not checked.

    Raises:
        ConfigError: The first value that may not be, by its name.
    """
    for name, hint in hints.items():
        if name not in values:
            continue
        value = values[name]
        if type(None) in get_args(hint) and value is not None:
            hint = Union[tuple(each for each in get_args(hint) if each is not type(None))]  # noqa: UP007
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        if choices and value not in choices:
            words = [str(each).lower() if each in (True, False) else each for each in choices]
            listed = f"{', '.join(words[:-1])} or {words[-1]}"
            raise ConfigError(f"{name} is '{value}'; choose {listed}.{nearest(str(value), words)}")
        for interval in getattr(hint, "__metadata__", ()):
            if isinstance(interval, str):
                require_in(interval, **{name: value})


def require_fields(options: Any) -> None:
    """Refuse a dataclass with a field that its annotation does not allow, see ``require_hints``.

    Raises:
        ConfigError: The first such field, by its name.
    """
    require_hints(get_type_hints(type(options), include_extras=True), vars(options))


def require_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a function's annotations do not allow, see ``require_hints``.

    Raises:
        ConfigError: The first such argument, by its name.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # a name that is there for type checkers alone, for one
        return
    require_hints(hints, arguments)


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
