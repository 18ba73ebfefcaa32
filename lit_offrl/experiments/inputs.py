"""What a training depends on: its config, which files and options make together, and its data."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import DatasetError, LitOffRLError
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.catalog import Reading, default_cache_dir, resolve
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.datasets.sources import D4RL_PREFIX, find_source, is_minari
from lit_offrl.experiments.config import leaves

_CACHE_LOCK = threading.Lock()  # the cache's files are written whole by one thread of a process


def require_data(config: Mapping[str, Any]) -> Path | None:
    """Return the file of the data that a config names, which must be on disk.

    None where it names no file: Minari's and d4rl's ids name a version, and the datasets that come
    with the library change with it alone.

    Raises:
        DatasetError: There is no such dataset, or it is not on disk.
    """
    options = _data_options(config)
    name = options.get("dataset")
    if not isinstance(name, str) or name.startswith(D4RL_PREFIX) or is_minari(name):
        return None
    source = resolve(name, options.get("data_dir"))
    source.require_on_disk()
    return source.path


def data_sha256(config: Mapping[str, Any]) -> str | None:
    """Return the sha256 of the data's file; None where there is no file, or it is not here.

    Raises:
        DatasetError: The cache, in which it is kept, cannot be written.
    """
    try:
        file = require_data(config)
    except DatasetError:
        return None
    options = _data_options(config)
    if file is None or options.get("cache") is False:
        return None if file is None else sha256(file)
    folder = options.get("cache_dir")
    cache = Path(folder).expanduser() if folder else default_cache_dir(options.get("data_dir"))
    with _CACHE_LOCK:
        return ColumnCache(cache).sha256(file)


def data_spec(config: Mapping[str, Any]) -> DatasetSpec | None:
    """Return what is known of the data without their rows, with the environment that is named.

    None where that cannot be told yet: the data are not on disk, or are read by a package.
    """
    options = _data_options(config)
    name, env_id = options.get("dataset"), options.get("env_id")
    if not isinstance(name, str) or name.startswith(D4RL_PREFIX):
        return None
    try:
        if is_minari(name):
            parts = options.get("minari_observations")
            return find_source(name, minari_observations=parts).header()
        return resolve(name, options.get("data_dir"), Reading(env_id=env_id)).header()
    except LitOffRLError:
        return None


def own_environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the option of evaluate that names an environment of the user's own module.

    Evaluate must be given what a config names as ``module:id``, since it takes no checkpoint's word
    for what to import.
    """
    env_id = _data_options(config).get("env_id")
    return {"env": env_id} if isinstance(env_id, str) and ":" in env_id else {}


def named_checkpoints(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each checkpoint's file that a config names, by the option's name."""
    named = {name: value for name, value in leaves(config) if str(value).endswith(".ckpt")}
    return {name: sha256(Path(path)) for name, path in named.items() if Path(path).is_file()}


def digest(plain: Any) -> str:
    """Return eight hexadecimal digits that stand for plain values."""
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def sha256(file: Path) -> str:
    """Return a file's sha256, computed once a process unless the file changes."""
    stat = file.stat()
    return _sha256(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache
def _sha256(file: Path, size: int, modified: int) -> str:
    del size, modified
    return file_sha256(file)


def _data_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    data = config.get("data")
    if not isinstance(data, Mapping):
        return {}
    direct = {k: v for k, v in data.items() if k not in ("class_path", "init_args")}
    return {**direct, **(data.get("init_args") or {})}  # `--data.dataset` is of init_args too
