"""A small JSON file beside a downloaded one: what it was when it was verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.files import replacing


def sidecar_path(path: Path) -> Path:
    """Return ``FILE.hdf5.json`` for ``FILE.hdf5``."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return what is recorded of a file; empty where nothing readable is."""
    try:
        found = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def refuse_changed(path: Path, digest: str | None, name: str) -> None:
    """Raise DatasetError where a file is not the one that was downloaded as a dataset."""
    recorded = read_sidecar(path).get("sha256")
    if recorded not in (None, digest):
        raise DatasetError(
            f"{path}: has changed since it was downloaded (sha256 {digest} now, "
            f"{recorded} then): run `lit-offrl datasets download {name} --force`."
        )


def write_sidecar(path: Path, values: Mapping[str, Any]) -> None:
    """Record ``values``, with the file's size and time of change, in one step."""
    stat = path.stat()
    record = {**values, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    with replacing(sidecar_path(path)) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
