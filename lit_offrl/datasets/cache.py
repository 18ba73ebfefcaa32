"""Columns on disk as memory-mapped arrays: read and checked once a file, shared by all processes.

FOLDER/index/PATH-HASH.json       size, times and sha256 of a file: it is hashed once
FOLDER/SHA256-OPTIONS/*.npy       one file a column, and the episodes' bounds
FOLDER/SHA256-OPTIONS/entry.json  spec, provenance, and size and time of each .npy; written last
FOLDER/SHA256-OPTIONS.lock        held while an entry is made, so that a second process waits

An entry is made under another name and moved into place, so it is whole or absent. One whose files
are not as its ``entry.json`` says is made again. What a file is refused for leaves no entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.files import file_sha256, free_bytes, part_path, replacing, sweep
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset

READER_VERSION = 2
"""Raised when the same file would be read into other columns than before."""

_ENTRY, _EPISODES = "entry.json", "_episodes"


class ColumnCache:
    """The cached columns in one folder, which is made when it is first written to."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def sha256(self, path: Path, *, compute: bool = True) -> str | None:
        """Return a file's hash, from the index where the file is as it was when it was hashed.

        Where the index does not know it, the file is hashed, or None returned without ``compute``.

        Raises:
            DatasetError: if the file cannot be read, or the index not be written.
        """
        try:
            identity = _identity(path)
            note = self._note(path)
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads(note.read_text(encoding="utf-8"))
                if known["identity"] == identity:
                    return str(known["sha256"])
            if not compute:
                return None
            digest = file_sha256(path)
            if _identity(path) != identity:
                raise DatasetError(f"{path}: changed while it was read: try again.")
        except OSError as error:
            raise DatasetError(
                f"{path}: cannot be read ({error.strerror or error}): check the file."
            ) from None
        record = {"path": str(path.absolute()), "identity": identity, "sha256": digest}
        with self._writing(), replacing(note) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")
        return digest

    def find(self, sha256: str, options: Mapping[str, Any]) -> OfflineDataset | None:
        """Return an entry's dataset with its columns memory-mapped; None if there is none."""
        return _load(self._entry(sha256, options))

    def fetch(
        self, sha256: str, options: Mapping[str, Any], make: Callable[[], OfflineDataset]
    ) -> OfflineDataset:
        """Return an entry's dataset, which ``make`` reads where it is missing or damaged.

        Args:
            sha256: Hash of the file.
            options: Options of the reader that change columns or spec, as plain types.
            make: Reads the dataset. Its errors are passed on, and no entry is written then.

        Raises:
            DatasetError: if the folder cannot be written.
        """
        entry = self._entry(sha256, options)
        sweep(self.folder)
        found = _load(entry)
        if found is not None:
            return found
        with contextlib.ExitStack() as held:
            with self._writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(f"{entry}.lock"))
            found = _load(entry)  # another process may have made it meanwhile
            if found is not None:
                return found
            dataset = make()
            if dataset.spec.sha256 != sha256:
                raise DatasetError(f"{dataset.spec.origin}: changed while it was read: try again.")
            with self._writing():
                _save(dataset, entry)
            found = _load(entry)
        if found is None:
            raise DatasetError(f"{entry}: was removed or damaged while it was made: try again.")
        return found

    def entries(self) -> list[dict[str, Any]]:
        """Return of each entry its ``name``, ``origin``, ``rows``, ``bytes`` and ``path``."""
        listed = []
        for path in sorted(self.folder.glob(f"[!.]*/{_ENTRY}")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # made again
                record = json.loads(path.read_text(encoding="utf-8"))
                facts = {key: record["spec"][key] for key in ("name", "origin")}
                size = sum(size for size, _ in record["files"].values())
                listed.append({**facts, "rows": record["rows"], "bytes": size, "path": path.parent})
        return listed

    def clear(self) -> int:
        """Remove what this class put there, and return how many entries there were.

        Running processes keep what they have.
        """
        entries = list(self.folder.glob(f"[!.]*/{_ENTRY}"))
        with self._writing():
            for path in entries:
                shutil.rmtree(path.parent)
            sweep(self.folder)
            for lock in self.folder.glob("*.lock"):
                lock.unlink()
            for part in ("index", "latents", "frames"):  # the latter two are of any dataset
                shutil.rmtree(self.folder / part, ignore_errors=True)
        return len(entries)

    def _entry(self, sha256: str, options: Mapping[str, Any]) -> Path:
        text = json.dumps({"reader": READER_VERSION, **options}, sort_keys=True)
        return self.folder / f"{sha256}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _note(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        return self.folder / "index" / f"{name}.json"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DatasetError(
                f"{self.folder}: the column cache cannot be written ({error.strerror or error}): "
                "name another folder with cache_dir, or set cache to false."
            ) from None


def folder_sha256(root: Path, files: Iterable[Path], cache: ColumnCache | None) -> str:
    """Return one hash of files and of their places below a folder, by the cache's index if any."""
    digest = hashlib.sha256()
    for file in files:
        found = cache.sha256(file) if cache else file_sha256(file)
        digest.update(f"{file.relative_to(root)}\0{found}\n".encode())
    return digest.hexdigest()


def _identity(path: Path) -> list[int]:
    # The time of the inode's change too, which no program can set back.
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _save(dataset: OfflineDataset, entry: Path) -> None:
    temporary = part_path(entry)
    arrays = {**dataset.columns, _EPISODES: dataset.episodes}
    _require_room(entry.parent, arrays)
    try:
        temporary.mkdir()
        for name, values in arrays.items():
            with (temporary / f"{name}.npy").open("wb") as stream:
                np.save(stream, values)
                stream.flush()
                os.fsync(stream.fileno())  # before the rename, lest a crash leave empty files
        record = {
            "spec": dataset.spec.to_dict(),
            "provenance": dict(dataset.provenance),
            "cut_off": dataset.cut_off,
            "rows": len(dataset),
            "columns": list(dataset.columns),
            "files": {name: _state(temporary / f"{name}.npy") for name in arrays},
        }
        (temporary / _ENTRY).write_text(json.dumps(record, indent=1), encoding="utf-8")
        if entry.exists():  # damaged; who has it open keeps what it has
            shutil.rmtree(entry)
        temporary.replace(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _require_room(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    needed, free = sum(values.nbytes for values in arrays.values()), free_bytes(folder)
    if needed > free:
        raise DatasetError(
            f"{folder}: the cached columns would take {needed / 1e9:.2f} GB, and the disk has "
            f"{free / 1e9:.2f} GB left: name another folder with cache_dir, or set cache to false."
        )


def _load(entry: Path) -> OfflineDataset | None:
    """Return what an entry holds; None where it is missing or not as it was written."""
    try:
        record = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
        arrays = {}
        for name, state in record["files"].items():
            if _state(entry / f"{name}.npy") != state:
                return None
            mapped = np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            arrays[name] = np.asarray(mapped)
        columns = {name: arrays[name] for name in record["columns"]}
        if any(len(values) != record["rows"] for values in columns.values()):
            return None
        spec = DatasetSpec.from_dict(record["spec"])
        return OfflineDataset.from_checked(
            columns, spec, record["provenance"], arrays[_EPISODES], bool(record["cut_off"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
