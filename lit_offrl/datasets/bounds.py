"""The bounds that policies act within: given, stated by the file, the environment's, or the data's.

A policy squashes or clips its actions to them, so bounds that nobody knows must come from
somewhere: a motor that takes ±2 N m never learns its data within ±1.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import gymnasium
import numpy as np

from lit_offrl.common.errors import ConfigError, reason
from lit_offrl.datasets.schema import DatasetSpec

Bound = float | Sequence[float]
"""One number for all action dimensions, or one each."""

_CONSTANT = 1e-3  # half width, relative or absolute, around an action that never changes
_UNBOUNDED = 1e18  # as large as this is no bound: some write a type's largest number
_SHOWN = 6  # dimensions in a line


def settle_bounds(
    spec: DatasetSpec,
    actions: Callable[[], np.ndarray],
    low: Bound | None = None,
    high: Bound | None = None,
) -> DatasetSpec:
    """Return the spec with finite bounds of every action dimension.

    Each is the one given, else the file's, else that of the named environment's action space, else
    the data's least or largest action, which a notice of the spec then says. An action that never
    changes gets a narrow range around it.

    Args:
        spec: Spec of the data. Without actions it is returned unchanged.
        actions: Returns the data's actions (N, a); it is called if their range is needed.
        low: Lower bound given by the user.
        high: Upper bound given by the user.

    Raises:
        ConfigError: a bound given is not finite, has another number of dimensions, or is not below
            the upper one.
    """
    size, where = spec.action_dim, spec.origin
    given = {"action_low": low, "action_high": high}
    if size == 0:
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name} is {value}, but {where} has no actions: leave it out.")
        return spec
    own = (_vector("action_low", low, size, where), _vector("action_high", high, size, where))
    bounds = [
        np.full(size, math.nan) if known is None else np.array(known, dtype=np.float64)
        for known in (own[0] or spec.action_low, own[1] or spec.action_high)
    ]
    for bound in bounds:
        bound[~(np.abs(bound) < _UNBOUNDED)] = math.nan
    notices, from_data = spec.notices, np.zeros(size, dtype=np.bool_)
    if any(np.isnan(bound).any() for bound in bounds):
        space, why_not = _space_of(spec.env_id, size)
        if space is not None:
            for bound, limit in zip(bounds, (space.low, space.high), strict=True):
                taken = np.isnan(bound) & (np.abs(limit) < _UNBOUNDED)
                bound[taken] = limit[taken]
    if any(np.isnan(bound).any() for bound in bounds):
        from_data = np.isnan(bounds[0]) | np.isnan(bounds[1])
        notices = (*notices, _from_data(bounds, actions(), why_not))
    for dimension, (least, most) in enumerate(zip(*bounds, strict=True)):
        if not least < most:
            at = f" in dimension {dimension}" * (size > 1)
            at += ", one of which is the data's" * bool(from_data[dimension])
            raise ConfigError(
                f"{where}: action_low is {least:g} and action_high {most:g}{at}: give a smaller "
                "and a larger number, by data.init_args.action_low and action_high."
            )
    lower, upper = (tuple(map(float, bound)) for bound in bounds)
    return replace(spec, action_low=lower, action_high=upper, notices=notices)


def outside_bounds(columns: Mapping[str, np.ndarray], spec: DatasetSpec) -> str | None:
    """Return in a line how many of the data's actions leave their bounds; None if none does."""
    if "actions" not in columns or spec.action_low is None or spec.action_high is None:
        return None
    actions = columns["actions"]
    low = np.array(spec.action_low, dtype=np.float32)
    high = np.array(spec.action_high, dtype=np.float32)
    if (actions.min(0) >= low).all() and (actions.max(0) <= high).all():
        return None
    outside = ((actions < low) | (actions > high)).any(axis=1)
    return (
        f"column 'actions' leaves its bounds in {int(outside.sum()):,} rows, first in row "
        f"{int(np.argmax(outside)):,}: policies act within the bounds, "
        f"{ranges(spec.action_low, spec.action_high)}, where these go from "
        f"{_numbers(actions.min(0))} to {_numbers(actions.max(0))}"
    )


def ranges(low: Sequence[float], high: Sequence[float]) -> str:
    """Return bounds as text, once where all dimensions share them."""
    pairs = [f"{least:.4g} to {most:.4g}" for least, most in zip(low, high, strict=True)]
    if len(set(pairs)) == 1:
        return pairs[0] + (f" in all {len(pairs)} dimensions" if len(pairs) > 1 else "")
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return ", ".join(pairs[:_SHOWN]) + more


def _numbers(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:_SHOWN])
    return f"({shown}{', …' * (len(values) > _SHOWN)})" if len(values) > 1 else shown


def _vector(name: str, value: Bound | None, size: int, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    numbers = (value,) * size if isinstance(value, int | float) else tuple(value)
    if len(numbers) != size:
        raise ConfigError(
            f"{name} is {list(numbers)}, but {where} has {size} action dimensions: give one number "
            "for all, or one each."
        )
    if not all(math.isfinite(number) for number in numbers):
        raise ConfigError(f"{name} is {value}: give finite numbers, or leave it out.")
    return tuple(map(float, numbers))


def _from_data(bounds: list[np.ndarray], actions: np.ndarray, why_not: str) -> str:
    """Fill what is not known with the data's range, and return what to say of it."""
    least, most = actions.min(0).astype(np.float64), actions.max(0).astype(np.float64)
    low, high = bounds
    unknown = np.isnan(low) | np.isnan(high)
    side = "upper " if not np.isnan(low).any() else "lower " if not np.isnan(high).any() else ""
    constant = (least == most) & np.isnan(low) & np.isnan(high)
    width = np.where(constant, _CONSTANT * np.maximum(np.abs(least), 1.0), 0.0)
    for bound, end in ((low, least - width), (high, most + width)):
        bound[np.isnan(bound)] = end[np.isnan(bound)]
    which = ""
    if not unknown.all():
        several = "s" * (int(unknown.sum()) > 1)
        which = f" of dimension{several} {', '.join(map(str, np.flatnonzero(unknown)[:_SHOWN]))}"
        which += ", …" * (int(unknown.sum()) > _SHOWN)
    still = np.flatnonzero(constant)
    always = ", ".join(f"{dimension} is always {least[dimension]:.4g}" for dimension in still)
    return (
        f"{side}action bounds{which} are unknown{why_not}: policies act within the range of the "
        f"data's actions, {ranges(low[unknown], high[unknown])}"
        + (f" (dimension {always})" if len(still) else "")
        + ": if the robot's bounds are others, give data.init_args.action_low and action_high"
    )


def _space_of(env_id: str | None, size: int) -> tuple[gymnasium.spaces.Box | None, str]:
    """Return the action space of an environment that is known here, or in brackets why not.

    Of ``module:id``, which any file may name, the module is never imported: ids of modules that the
    user named are registered by then.
    """
    if env_id is None:
        return None, ""
    name = env_id.rpartition(":")[2]
    if name not in gymnasium.registry and "Bullet" in name and ":" not in env_id:
        with contextlib.suppress(ImportError):  # it only registers ids
            importlib.import_module("pybullet_envs_gymnasium")
    found = gymnasium.registry.get(name)
    if found is None:
        return None, f" ({env_id} is not installed or not imported)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is a newer version of it
            environment = gymnasium.make(found, disable_env_checker=True)
        space = environment.action_space
        environment.close()
    except Exception as error:  # of any package: a simulator that is missing, a broken model
        return None, f" ({env_id} cannot be made: {reason(error, 100)})"
    if not isinstance(space, gymnasium.spaces.Box) or space.shape != (size,):
        return None, f" ({env_id} has the action space {space})"
    return space, f" ({env_id} has none)"
