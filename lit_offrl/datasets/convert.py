"""Logs in CSV or Parquet become HDF5 files that everything here reads; datasets other formats.

``convert_dataset`` reads a dataset whole, writes it beside its place, reads that again, and moves
it there only if the very same rows are trained on, in the types they were stored in.
"""

from __future__ import annotations

import datetime
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lit_offrl.common.errors import ConfigError, DatasetError, LitOffRLError, reason
from lit_offrl.common.files import file_sha256, make_folder, part_path, refusals, require_writable
from lit_offrl.common.ranges import require_fields
from lit_offrl.datasets.catalog import FileSource
from lit_offrl.datasets.environments import ENVIRONMENTS, OWN
from lit_offrl.datasets.hdf5 import write_hdf5
from lit_offrl.datasets.lerobot import LeRobotSource
from lit_offrl.datasets.log_columns import choose_columns
from lit_offrl.datasets.log_values import episode_ends, flags, numbers, require_rising
from lit_offrl.datasets.logs import Log, open_log
from lit_offrl.datasets.minari import MinariSource
from lit_offrl.datasets.minari_opening import minari_root
from lit_offrl.datasets.ogbench import OGBenchSource
from lit_offrl.datasets.ogbench_entries import validation_name
from lit_offrl.datasets.reading import Reading
from lit_offrl.datasets.recording_formats import TARGETS
from lit_offrl.datasets.recordings import Recording, read_recording
from lit_offrl.datasets.robomimic import RobomimicSource
from lit_offrl.datasets.sources import Source
from lit_offrl.datasets.values import remarks

SUFFIXES = (".hdf5", ".h5")
_VECTORS = ("observations", "actions", "next_observations")
_SINGLE = ("reward", "episode", "terminal", "timeout", "time")
_LONGEST = 30_000  # letters of an attribute; HDF5 takes 64 KiB


def read_numbers(text: str) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    return tuple(float(part) for part in text.split(","))


read_numbers.__name__ = "numbers"  # argparse names the type in its message


@dataclass(frozen=True)
class LogOptions:
    """What the columns of a log are, as the user writes it; see ``choose_columns``.

    Args:
        observations: Columns that make the observation, in this order; a log needs them. Of a
            dataset the features or keys that do.
        actions: Columns that make the action, in this order.
        reward: Column of rewards.
        episode: Column whose value tells episodes apart. Without it, ``terminal`` and ``timeout``
            say where episodes end.
        next_observations: Columns of the observation after the step; without them, those of the
            next row.
        terminal: Column of 0 or 1 that says whether the task ended with the row.
        timeout: Column of 0 or 1 that says whether only the recording ended with the row.
        time: Column that must rise within each episode; it is checked and not written.
        env: Gymnasium id of the environment.
        action_low: Lowest action: one number, or one for each dimension with commas between them.
        action_high: Highest action: one number, or one for each dimension with commas between them.
        max_episode_steps: Step limit of an episode, at least 1.
    """

    observations: str | None = None
    actions: str | None = None
    reward: str | None = None
    episode: str | None = None
    next_observations: str | None = None
    terminal: str | None = None
    timeout: str | None = None
    time: str | None = None
    env: str | None = None
    action_low: Annotated[Sequence[float] | None, read_numbers] = None
    action_high: Annotated[Sequence[float] | None, read_numbers] = None
    max_episode_steps: Annotated[int | None, "[1, inf)"] = None

    def __post_init__(self) -> None:
        require_fields(self)


def convert_log(
    log: Path, output: Path, options: LogOptions, *, force: bool = False
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write the rows of a log, see ``logs``, as an HDF5 file in D4RL's layout, whole or not at all.

    ``force`` replaces a file that is there.

    Returns:
        What was written, for people, and what may be wrong with it: see ``values.remarks``.

    Raises:
        ConfigError: an option names a column that is not there, or does not go with the others.
        DatasetError: naming the column and row of the first thing wrong in the log.
        FileError: the file cannot be written.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{output}: the file to write is HDF5: name it {output.stem}.hdf5.")
    if output.exists() and not force:
        raise ConfigError(f"{output}: is there already: name another file, or say --force.")
    if options.observations is None:
        raise ConfigError(f"{log}: say with --observations which columns make the observation.")
    if options.episode is None and options.terminal is None and options.timeout is None:
        raise ConfigError(
            f"{log}: nothing says where its episodes end: give --episode, the column that tells "
            "them apart, or --terminal and --timeout."
        )
    opened = open_log(log)
    roles = _roles(opened, options)
    bounds = _bounds(options)
    require_writable(output)
    frame = opened.read([name for names in roles.values() for name in names])
    columns = _columns(frame, roles, str(log))
    sizes = {name: values.shape[1] for name, values in columns.items() if values.ndim == 2}
    _check_sizes(sizes, bounds, options.env, str(log))
    attributes: dict[str, Any] = {
        "source": "lit-offrl datasets convert",
        "log": log.name,
        "log_sha256": file_sha256(log),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "env_id": options.env,
        "max_episode_steps": options.max_episode_steps,
        **{f"log_{role.lstrip('-')}": ",".join(names)[:_LONGEST] for role, names in roles.items()},
        **{key: np.resize(value, sizes["actions"]) for key, value in bounds.items()},
    }
    write_hdf5(output, columns, attributes)
    return _summary(columns, roles), remarks(columns)


def convert_dataset(source: Source, target: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write a dataset in another format, whole or not at all.

    Args:
        source: Where it comes from.
        target: ``FILE.hdf5`` in D4RL's layout, ``NAME.npz`` of OGBench's, ``lerobot:FOLDER``,
            ``robomimic:FILE.hdf5`` or ``minari:ID``.

    Returns:
        What was written, for people, and what the format has no place for or else is to be known.

    Raises:
        ConfigError: The target is no such text, or is there already.
        DatasetError: The source cannot be read, or what is written would train other rows.
        FileError: The target cannot be written.
    """
    kind, final, name = find_target(target)
    outputs = [final, final.with_name(validation_name(final.stem) + final.suffix)]
    for path in outputs[: 1 + (kind == "ogbench")]:
        if path.exists():
            raise ConfigError(f"{path}: is there already: name another place.")
    recording = read_recording(source)
    make_folder(final.parent)
    staging = part_path(final)
    with refusals(final):
        staging.mkdir()
    try:
        try:
            said = TARGETS[kind].write(recording, staging, name)
        except (ValueError, TypeError) as error:  # Minari's, of ids
            if isinstance(error, LitOffRLError):
                raise
            raise ConfigError(f"{target}: cannot be written ({reason(error, 120)}).") from None
        written = _reader(kind, staging / name, recording)
        recording.refuse_difference(read_recording(written), target)
        with refusals(final):
            for path in reversed(outputs):
                place = staging / (name if path == final else path.name)
                if place.exists():
                    place.rename(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    ends = recording.columns["terminals"]
    summary = {
        "rows": f"{len(ends):,}",
        "episodes": f"{len(recording.lengths):,}: {int(ends.sum()):,} end in a terminal",
        "columns": ", ".join(f"{k} ({v.dtype})" for k, v in recording.columns.items()),
    }
    return summary, (*recording.left_out, *said)


def find_target(text: str) -> tuple[str, Path, str]:
    """Return the format that a target is of, its path, and its name below the path's root.

    Raises:
        ConfigError: It is none.
    """
    kinds = [k for k, target in TARGETS.items() if target.prefix and text.startswith(target.prefix)]
    place = text.removeprefix(TARGETS[kinds[0]].prefix) if kinds else text
    suffix = Path(place).suffix.lower()
    if not kinds:
        kinds = [k for k, each in TARGETS.items() if not each.prefix and suffix in each.suffixes]
    suffixes = TARGETS[kinds[0]].suffixes if kinds else ()
    if not kinds or not place or (suffixes and suffix not in suffixes):
        raise ConfigError(
            f"'{text}' names no format to write: give FILE.hdf5, NAME.npz, lerobot:FOLDER, "
            "robomimic:FILE.hdf5 or minari:ID."
        )
    path = Path(place).expanduser()
    if kinds[0] != "minari":
        return kinds[0], path.absolute(), path.name
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{text}: is no id of Minari's: write one as minari:robot/door-v0.")
    return "minari", minari_root() / path, place


def _reader(kind: str, path: Path, recording: Recording) -> Source:
    """Return the source that reads what was written."""
    if kind == "lerobot":
        return LeRobotSource(str(path))
    if kind == "robomimic":
        return RobomimicSource(str(path))
    if kind == "minari":
        return MinariSource(str(path))
    if kind == "ogbench":
        env_id = OWN + str(recording.note["env_id"]).removeprefix(OWN)
        return OGBenchSource(path.stem, path, env_id)
    return FileSource(path.stem, path, reading=Reading(env_id=recording.note.get("env_id")))


def _roles(log: Log, options: LogOptions) -> dict[str, list[str]]:
    """Return the columns of each option that names some; none may stand for two things."""
    where, roles, taken = str(log.path), {}, dict[str, str]()
    for key in (*_VECTORS, *_SINGLE):
        if (text := getattr(options, key)) is None:
            continue
        option = f"--{key}"
        roles[option] = choose_columns(text, log.columns, option, where)
        if key in _SINGLE and len(roles[option]) > 1:
            count = len(roles[option])
            raise ConfigError(f"{where}: {option} is '{text}', {count} columns: name one.")
        for column in roles[option]:  # which a pattern that is too wide takes, too
            if column in taken:
                raise ConfigError(
                    f"{where}: column '{column}' is taken for {taken[column]} and for {option}: "
                    "name it in one of them."
                )
            taken[column] = option
    return roles


def _columns(frame: Any, roles: Mapping[str, list[str]], where: str) -> dict[str, np.ndarray]:
    """Return the columns of the file to be written."""
    columns = {}
    for key in _VECTORS:
        if names := roles.get(f"--{key}"):
            pieces = [numbers(frame[name], where).reshape(len(frame), -1) for name in names]
            columns[key] = np.concatenate(pieces, axis=1)
    if "--reward" in roles:
        columns["rewards"] = numbers(frame[roles["--reward"][0]], where)
        if columns["rewards"].ndim > 1:
            raise DatasetError(f"{where}: column '{roles['--reward'][0]}' holds lists: name one.")
    columns |= _ends(frame, {role: names[0] for role, names in roles.items()}, where)
    return columns


def _ends(frame: Any, roles: Mapping[str, str], where: str) -> dict[str, np.ndarray]:
    """Return ``terminals`` and ``timeouts`` (N,)."""
    claims = {
        role: flags(frame[roles[role]], where)
        for role in ("--terminal", "--timeout")
        if role in roles
    }
    never = np.zeros(len(frame), dtype=np.bool_)
    terminals = claims.get("--terminal", never)
    if "--episode" in roles:
        last = episode_ends(frame[roles["--episode"]], where)
        for role, claim in claims.items():
            early = np.flatnonzero(claim & ~last)
            if len(early):
                row = int(early[0])
                raise DatasetError(
                    f"{where}: column '{roles[role]}' ends an episode in row {row:,}, and by column"
                    f" '{roles['--episode']}' it goes on in row {row + 1:,}: correct the one that "
                    f"is wrong, or leave {role} out."
                )
    else:
        last = terminals | claims.get("--timeout", never)
        last[-1] = True
    if "--time" in roles:
        require_rising(frame[roles["--time"]], last, where)
    if last.all() and "--next_observations" not in roles:
        raise DatasetError(
            f"{where}: each of its rows is an episode of its own, so that no row has a next one: "
            "name the column that is the same in all rows of an episode with --episode."
        )
    return {"terminals": terminals, "timeouts": last & ~terminals}


def _bounds(options: LogOptions) -> dict[str, Sequence[float]]:
    low, high = options.action_low, options.action_high
    if low is None and high is None:
        return {}
    if low is None or high is None:
        raise ConfigError("--action_low and --action_high go together: give both, or neither.")
    if options.actions is None:
        raise ConfigError("--action_low and --action_high go with --actions: give the columns.")
    if not all(map(math.isfinite, (*low, *high))):
        raise ConfigError("--action_low and --action_high: give finite numbers.")
    return {"action_low": low, "action_high": high}


def _check_sizes(
    sizes: Mapping[str, int], bounds: Mapping[str, Sequence[float]], env_id: str | None, where: str
) -> None:
    """Refuse what the file would be refused for as soon as it is read."""
    following = sizes.get("next_observations", sizes["observations"])
    if following != sizes["observations"]:
        raise ConfigError(
            f"{where}: --next_observations are {following} numbers and --observations "
            f"{sizes['observations']}: name the same ones, after the step."
        )
    for key, values in bounds.items():
        if len(values) not in (1, sizes["actions"]):
            raise ConfigError(
                f"--{key} has {len(values)} numbers for {sizes['actions']} action dimensions: give "
                "one for all, or one each."
            )
    if bounds:
        lows, highs = (np.resize(value, sizes["actions"]) for value in bounds.values())
        for dimension, (low, high) in enumerate(zip(lows, highs, strict=True)):
            if low >= high:
                raise ConfigError(
                    f"--action_low is {low:g} and --action_high {high:g} in dimension {dimension}: "
                    "give a smaller and a larger number."
                )
    facts = ENVIRONMENTS.get(env_id or "")
    for key, expected in facts.sizes.items() if facts is not None else ():
        if key in sizes and sizes[key] != expected:
            raise ConfigError(
                f"{where}: --{key} are {sizes[key]} numbers and {env_id} has {expected}: "
                "name its columns, or leave --env out."
            )


def _summary(
    columns: Mapping[str, np.ndarray], roles: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    ends = columns["terminals"] | columns["timeouts"]
    terminated = int(columns["terminals"].sum())
    summary = {
        "rows": f"{len(ends):,}",
        "episodes": f"{int(ends.sum()):,}: {terminated:,} end in a terminal, "
        f"{int(ends.sum()) - terminated:,} in a timeout",
    }
    for key in _VECTORS:
        if key in columns:
            names = roles[f"--{key}"]
            summary[key] = f"{columns[key].shape[1]}: {', '.join(names)}"
    summary["rewards"] = roles["--reward"][0] if "rewards" in columns else "none"
    return summary
