"""What a class takes: its own parameters and those that ``**kwargs`` forwards to its bases."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser


@cache
def parameters_of(kind: Any) -> dict[str, inspect.Parameter]:
    """Return a constructor's parameters by name, those that it forwards to its bases included.

    A value that a class gives its base itself, as in ``super().__init__(expectile=0.5, **kwargs)``,
    is no parameter of the class.
    """
    found: dict[str, inspect.Parameter] = {}
    for init in _constructors(kind):
        found |= inspect.signature(init).parameters
    names = ArgumentParser(exit_on_error=False).add_class_arguments(kind, fail_untyped=False)
    return {name: found[name] for name in names if name in found}


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Return a constructor's parameters' types, ``Annotated`` ones and its bases' included."""
    found: dict[str, Any] = {}
    for init in _constructors(kind):
        names = list(inspect.signature(init).parameters)
        try:
            hints = get_type_hints(init, include_extras=True)
        except Exception:  # a name that is there for type checkers alone, for one
            hints = dict.fromkeys(names, object)
        for name in names:
            hint = hints.get(name, Any)
            if getattr(found.get(name), "__origin__", None) != hint:  # else the base's interval
                found[name] = hint
    return found


def _constructors(kind: type) -> list[Any]:
    """Return the constructors of a class and its bases, its own last."""
    inits = (vars(each).get("__init__") for each in reversed(kind.__mro__))
    return [init for init in inits if inspect.isfunction(init)]
