"""Values of plain types, as JSON has them, held against the annotations of a dataclass's fields.

What is read from a file may be anything at any place: text for a number, null for a mapping, NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

_WORDS: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number of at least 0", "whole numbers of at least 0"),
    float: ("a finite number", "finite numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Mapping: ("a mapping", "mappings"),
    NoneType: ("null", "null"),
}


def is_of(value: object, hint: Any, *, most: int = 2**63, unbounded: bool = False) -> bool:
    """Whether a value is of a field's type, and one that the field can have.

    Args:
        value: Value from JSON, with tuples for lists.
        hint: ``int``, ``float``, ``bool``, ``str``, ``None``, ``Any``, ``tuple[X, ...]``,
            ``Mapping[str, X]``, or a union of them.
        most: What whole numbers must be below; they are at least 0.
        unbounded: Whether numbers in tuples may be infinite.
    """
    origin, below = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(is_of(value, each, most=most, unbounded=unbounded) for each in below)
    if origin is tuple:
        return isinstance(value, tuple) and all(
            is_of(each, below[0], most=most) or (unbounded and each in (-math.inf, math.inf))
            for each in value
        )
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            is_of(name, below[0]) and is_of(each, below[1], most=most)
            for name, each in value.items()
        )
    if hint is Any:
        return _is_json(value)
    if hint is float:
        whole = type(value) is int and abs(value) < 2**63
        return whole or (type(value) is float and math.isfinite(value))
    if hint is int:
        return type(value) is int and 0 <= value < most
    return type(value) is hint and not (isinstance(value, str) and "\0" in value)


def _is_json(value: object) -> bool:
    """Whether JSON has a value: it has neither NaN nor infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def described(hint: Any) -> str:
    """Say what a value of a field has to be, as the part of a line."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return " or ".join(
        f"a list of {_WORDS[get_args(kind)[0]][1]}"
        if get_origin(kind) is tuple
        else _WORDS[get_origin(kind) or kind][0]
        for kind in kinds
    )
