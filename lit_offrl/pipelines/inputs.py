"""What a training depends on: its config as files and options together make it, and its data."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import LitOffRLError
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.catalog import Reading, default_cache_dir, resolve
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.datasets.sources import D4RL_PREFIX, find_source, is_minari
from lit_offrl.jobs.plain import leaves


def data_file(config: Mapping[str, Any]) -> Path | None:
    """Return the data's file.

    None where the config names no file: Minari's and d4rl's ids name a version, and the datasets
    that come with the library change with it alone.

    Raises:
        DatasetError: there is no such dataset, or it is not on disk.
    """
    options = _data_options(config)
    name = options.get("dataset")
    if not isinstance(name, str) or name.startswith(D4RL_PREFIX) or is_minari(name):
        return None
    source = resolve(name, options.get("data_dir"))
    source.require_on_disk()
    return source.path


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

    What a config names as ``module:id`` the evaluation has to be told too, since it takes no
    checkpoint's word for what to import.
    """
    env_id = _data_options(config).get("env_id")
    return {"env": env_id} if isinstance(env_id, str) and ":" in env_id else {}


def data_sha256(config: Mapping[str, Any]) -> str | None:
    """Return the sha256 of the data's file, None where there is no file.

    Raises:
        DatasetError: as ``data_file``, or the cache, in which it is kept, cannot be written.
    """
    file, options = data_file(config), _data_options(config)
    if file is None:
        return None
    if options.get("cache") is False:
        return _sha256(file)
    folder = options.get("cache_dir")
    cache = Path(folder).expanduser() if folder else default_cache_dir(options.get("data_dir"))
    return ColumnCache(cache).sha256(file)


def _sha256(file: Path) -> str:
    """Hash a file once, as long as it is as it was: states are asked for again and again."""
    stat = file.stat()
    return _hashed(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache
def _hashed(file: Path, size: int, modified: int) -> str:
    del size, modified
    return file_sha256(file)


def _data_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    data = config.get("data")
    if not isinstance(data, Mapping):
        return {}
    short = {k: v for k, v in data.items() if k not in ("class_path", "init_args")}
    return {**short, **(data.get("init_args") or {})}  # `--data.dataset` is of init_args too


def named_checkpoints(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each checkpoint's file that a config names, by the option's name."""
    named = {name: value for name, value in leaves(config) if str(value).endswith(".ckpt")}
    return {name: _sha256(Path(path)) for name, path in named.items() if Path(path).is_file()}


def digest(plain: Any) -> str:
    """Return eight hexadecimal digits that stand for plain values."""
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
