"""Plain values: numbers, text, lists and mappings, as text and as leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from lit_offrl.common.configs import from_yaml


def yaml_text(value: Any) -> str:
    """Return a value as it is written behind an option: text that YAML reads back as the same."""
    if isinstance(value, str):
        try:
            plain = from_yaml(value) == value and value == value.strip()
        except ValueError:
            plain = False
        if plain:
            return value
    # JSON's 1e-05 is text to YAML 1.1; PyYAML writes 1.0e-05.
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def is_plain(value: Any) -> bool:
    """Whether a value is of numbers, text, lists and mappings with text as keys."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and lists with their paths, ``options.gamma``."""
    if not isinstance(tree, dict | list) or not tree:
        yield prefix, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def difference(before: Any, after: Any) -> str:
    """Say in which leaf two trees differ first, ``options.gamma: 0.9 → 0.99``; "" in none."""
    old, new = dict(leaves(before)), dict(leaves(after))
    for key in [*new, *old]:
        if old.get(key) != new.get(key) or (key in old) != (key in new):
            sides = (str(side.get(key, "not given"))[:80] for side in (old, new))
            return f"{key}: {' → '.join(sides)}"
    return ""
