"""What of a dataset's spec a format has no place for, kept in a note beside the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.environments import ENVIRONMENTS, REFERENCES, scored_quantity
from lit_offrl.datasets.schema import DatasetSpec

_BOUNDS = ("action_low", "action_high")
KEYS = ("env_id", "max_episode_steps", *_BOUNDS, *REFERENCES)
"""Fields of a spec that are noted; JSON takes their values."""


def note_of(spec: DatasetSpec) -> dict[str, Any]:
    """Return the fields that are known, as plain types."""
    found = {key: getattr(spec, key) for key in KEYS}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items() if v is not None}


def noted(
    note: Mapping[str, Any], env_id: str | None, sizes: Mapping[str, int], where: str
) -> dict[str, Any]:
    """Return fields of a spec: from the note, else what is known of the environment.

    Args:
        note: As ``note_of`` made it; whatever else is in it is not looked at.
        env_id: The environment that the user names in place of the note's.
        sizes: Dimensions of ``observations`` and ``actions``.
        where: The dataset, for messages.

    Raises:
        DatasetError: The environment has other dimensions.
    """
    given: dict[str, Any] = {key: note.get(key) for key in KEYS}
    if env_id is not None and env_id != given["env_id"]:
        given |= dict.fromkeys(("max_episode_steps", *REFERENCES)) | {"env_id": env_id}
    named = given["env_id"]
    facts = ENVIRONMENTS.get(named) if isinstance(named, str) else None
    if facts is not None:
        for column, expected in facts.sizes.items():
            if sizes.get(column) not in (0, None, expected):
                raise DatasetError(
                    f"{where}: column '{column}' has {sizes[column]} dimensions but {named} has "
                    f"{expected}: give the env_id that the data are from, or its observations."
                )
        given["max_episode_steps"] = given["max_episode_steps"] or facts.max_episode_steps
        if given["ref_min_score"] is None and given["ref_max_score"] is None:
            given |= facts.references
        for key, bound in zip(_BOUNDS, (-1.0, 1.0), strict=True):
            if given[key] is None and sizes.get("actions"):
                given[key] = [bound] * sizes["actions"]
    scores = given["ref_min_score"], given["ref_max_score"]
    given["score_of"] = scored_quantity(given["score_of"], scores, facts, where)
    for key in _BOUNDS:
        if isinstance(given[key], list) and len(given[key]) != sizes.get("actions"):
            given[key] = None  # of other actions than are read
    return given
