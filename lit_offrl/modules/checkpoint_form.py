"""The form that a checkpoint's parts must have, looked at once, before any of them is used.

A file that ``torch.load`` takes may hold anything at any place: text for a number, a list for a
mapping. What reads a checkpoint may rely on what is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from lit_offrl.common.errors import ConfigError, DatasetError, reason
from lit_offrl.datasets.schema import DatasetSpec

CURVES = "Curves"
"""Key of the state of the callback that keeps the curves."""
CHECKPOINTS = "Checkpoints"
"""Key of the state of the callback that chooses the best step."""
_MOST = 2**53  # whole numbers up to here are exact in whatever reads them


def require_form(checkpoint: Mapping[str, Any], path: object, key: str) -> None:
    """Refuse a checkpoint of which a part has another form than ``fit`` writes.

    Args:
        checkpoint: Content of the file.
        path: Path of the file, for messages.
        key: Key of the library's own part, which is a mapping.

    Raises:
        ConfigError: naming the part, and what stands there.
    """
    for place, parts in (("", checkpoint), (f"{key}.", checkpoint[key])):
        for name, (wanted, fits) in (_OURS if place else _PARTS).items():
            if name in _NEEDED and name not in parts:
                raise ConfigError(f"{path}: is no whole checkpoint: it has no {place}{name}.")
            if name in parts and not fits(parts[name]):
                found = reason(ValueError(repr(parts[name])), 60)
                raise ConfigError(f"{path}: its {place}{name} is no {wanted}: {found}.")
    spec = checkpoint[key].get("spec")
    try:
        _ = None if spec is None else DatasetSpec.from_dict(spec)
    except DatasetError as error:
        raise ConfigError(f"{path}: {error}") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in value.items()
    )


def _is_states(value: Any) -> bool:
    """Whether callbacks' states are mappings, and the curves and the best step what they can be."""
    if not (_is_named(value) and all(isinstance(state, Mapping) for state in value.values())):
        return False
    best = value.get(CHECKPOINTS, {}).get("best") or {}
    return (
        _is_history(value.get(CURVES, {}).get("history", {}))
        and _is_named(best)
        and isinstance(best.get("value") or 0.0, Real)
        and _is_count(best.get("step") or 0)
    )


def _is_history(value: Any) -> bool:
    """Whether curves are [[step, value], ...] by name."""
    return _is_named(value) and all(
        isinstance(line, list | tuple)
        and all(
            isinstance(point, list | tuple)
            and len(point) == 2
            and _is_count(point[0])
            and isinstance(point[1], Real)
            for point in line
        )
        for line in value.values()
    )


def _is_progress(value: Any) -> bool:
    """Whether whatever counts steps, batches and epochs in the loops does count."""
    if not _is_named(value):
        return False
    for name, below in value.items():
        if name.endswith("progress") and not _counts(below):
            return False
        if not name.endswith(("progress", "state_dict")) and not _is_progress(below):
            return False
    return True


def _counts(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_counts, value.values()))
    return isinstance(value, bool) or _is_count(value)


_Check = tuple[str, Callable[[Any], bool]]
_NEEDED = ("state_dict", "class_path")
_PARTS: dict[str, _Check] = {
    "state_dict": ("mapping of tensors", _is_weights),
    "global_step": ("number of steps", _is_count),
    "epoch": ("number of epochs", _is_count),
    "hyper_parameters": ("mapping of options", _is_named),
    "callbacks": ("mapping of callbacks' states", _is_states),
    "loops": ("mapping of the loops' counts", _is_progress),
}
_OURS: dict[str, _Check] = {
    "class_path": ("name of a class", _is_text),
    "config": ("text", lambda value: value is None or isinstance(value, str)),
    "spec": ("mapping of facts", lambda value: value is None or _is_named(value)),
}
