"""The data of the online mode: a file a round, and one that grows by a round at a time.

    round-0.hdf5   random actions           policy = 0 ┐
    round-1.hdf5   policy of round 0's fit  policy = 1 ├─▶ NAME.hdf5, rounds 0 … k one after another
    round-2.hdf5   policy of round 1's fit  policy = 2 ┘

The column ``policy`` is the round's number, which is φ(π): DVF's value improvement path (Mazoure et
al., section 3.1).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_offrl.collecting.policies import PolicyCollection
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.files import write_whole
from lit_offrl.common.seeds import mix
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.hdf5_file import Hdf5File

_OF_ENVIRONMENT = ("env_id", "max_episode_steps", "action_low", "action_high", "hold", "seed")

FIT = "fit"
"""The key of fit's own options among a folder's: ``["--config dvf.yaml (sha256 …)", …]``."""

STATE = "online.json"
"""The file of a folder that says which rounds are finished, and with which options."""


def read_state(folder: Path, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the finished rounds of a folder, which is made where there is none.

    A folder without any rows holds nothing to agree with: options that were refused are forgotten,
    and fit's own are until the first round's fit has a checkpoint.

    Raises:
        ConfigError: the folder cannot be used, or was begun with other ``options``.
    """
    path = folder / STATE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_state(folder, options, [])
        state = json.loads(path.read_text())
        before, rounds = dict(state["options"]), list(state["rounds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: cannot be used ({first}): give another --output.") from error
    if not rounds and not round_file(folder, 0).is_file():
        write_state(folder, options, [])
        return []
    if not rounds and not (folder / "round-0" / "last.ckpt").is_file():
        before[FIT] = options[FIT]  # the first rows are random actions': any fit may have them
    require_same(folder, before, options)
    write_state(folder, options, rounds)
    return rounds


def require_same(folder: Path, before: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options other than those that a folder was begun with.

    Raises:
        ConfigError: naming the first one, or which of fit's differ.
    """
    for name, value in options.items():
        if name != FIT and before.get(name) != value:
            raise ConfigError(
                f"{folder} was begun with {name} {before.get(name)}, not {value}: give that, or"
                " another --output."
            )
    fits = before.get(FIT, []), options[FIT]
    if fits[0] != fits[1]:
        gone, new = (
            ", ".join(word for word in one if word not in other) or "nothing"
            for one, other in itertools.permutations(fits)
        )
        raise ConfigError(
            f"{folder} was begun with {gone} where there is {new} now: give the same options of fit"
            " in the same order, or another --output."
        )


def write_state(
    folder: Path, options: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> None:
    """Write the state, whole or not at all."""
    write_whole(folder / STATE, json.dumps({"options": options, "rounds": rounds}, indent=2) + "\n")


def round_file(folder: Path, number: int) -> Path:
    """Return the file of a round's own rows."""
    return folder / f"round-{number}.hdf5"


def collect_round(
    folder: Path, number: int, command: str, *, seed: int, **options: Any
) -> dict[str, Any]:
    """Collect a round's rows, unless its file is there, and return what the file says of them.

    Its number is its rows' ``policy``; the options, and the errors, are those of
    ``PolicyCollection``, but that the seed is of all rounds.
    """
    path = round_file(folder, number)
    if not path.is_file():
        own = mix(seed, number) % 2**31
        collection = PolicyCollection(output=path, seed=own, **options)
        try:
            collection.run()
        except EvaluationError as error:
            raise EvaluationError(f"round {number}: {error}") from error
        columns, cut = collection.recorded()
        facts = {**collection.facts(columns, cut), **collection.origin(command)}
        columns["policy"] = np.full(len(columns["rewards"]), number, np.float32)
        write_hdf5(path, columns, {"round": number, **facts})
    with Hdf5File(path) as file:
        return {**file.attributes, "rows": len(file.columns["observations"])}


def grow(folder: Path, rounds: int) -> Path:
    """Write the rows of rounds 0 … ``rounds`` − 1 one after another as one dataset.

    A round's last row ends an episode, so none reaches from one round into the next. The file is a
    function of the rounds' files, so one that was lost or is behind is made again, the same.
    """
    parts, facts = [], []
    for number in range(rounds):
        with Hdf5File(round_file(folder, number)) as file:
            parts.append({name: file.read(name) for name in file.columns})
            facts.append(file.attributes)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    attributes = {
        **{name: facts[0].get(name) for name in _OF_ENVIRONMENT},
        "kind": "online",
        "rounds": rounds,
        "policy_rows": np.array([len(part["rewards"]) for part in parts]),
        "policy_return_mean": np.array([float(one["return_mean"]) for one in facts]),
    }
    name = folder.resolve().name  # by which the dataset goes, too
    return write_hdf5(folder / f"{name}.hdf5", columns, attributes)
