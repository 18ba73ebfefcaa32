"""Download a catalogue entry: to a temporary name, resumed where it broke off, verified, moved.

NAME.hdf5.part        the bytes so far
NAME.hdf5.part.json   which version of the file they are of (its ETag or date)
NAME.hdf5.lock        held while a process downloads, so that a second one waits
NAME.hdf5             in place only once it is whole and verified
NAME.hdf5.json        its sha256, for the next time
"""

from __future__ import annotations

import datetime
import os
import urllib.parse
from pathlib import Path

from filelock import FileLock

from lit_offrl.common.errors import DatasetError, DownloadError
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.answers import BrokenOff, Refused
from lit_offrl.datasets.catalog import CatalogEntry, default_data_dir
from lit_offrl.datasets.fetching import discard, fetch
from lit_offrl.datasets.hdf5 import read_header
from lit_offrl.datasets.ogbench import check_file
from lit_offrl.datasets.ogbench_entries import OGBenchEntry
from lit_offrl.datasets.sidecar import read_sidecar, sidecar_path, write_sidecar


def download(
    entry: CatalogEntry,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Bring a dataset's file to disk, unless it is there as it was verified before.

    Args:
        entry: Entry of the catalogue.
        data_dir: Target folder; ``default_data_dir()`` by default.
        force: Download again even if the file exists.
        progress: Show a progress bar on stderr.

    Returns:
        The verified file; of OGBench's two that to train on.

    Raises:
        DownloadError: in one line: the cause, and the command that collects an equivalent. Nothing
            else is put in its place.
    """
    folder = default_data_dir(data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [
            _bring(url, folder / file, entry, force, progress)
            for url, file in _files(entry).items()
        ]
        return paths[0]
    except (BrokenOff, Refused) as error:
        raise DownloadError(_advice(entry, str(error))) from None
    except OSError as error:
        raise DownloadError(_advice(entry, f"{folder}: {error.strerror or error}")) from None


def _files(entry: CatalogEntry) -> dict[str, str]:
    """Return the addresses of an entry's files, and the names that they get."""
    if isinstance(entry, OGBenchEntry):
        host = entry.url.rpartition("/")[0]
        return {f"{host}/{file}": file for file in entry.files}
    return {entry.url: f"{entry.name}.hdf5"}


def _bring(url: str, path: Path, entry: CatalogEntry, force: bool, progress: bool) -> Path:
    """Bring one file of an entry to its place, and return that."""
    with FileLock(f"{path}.lock"):
        if path.exists() and not force and _verified_before(path, entry, url):
            return path
        part = path.with_name(path.name + ".part")
        if force:
            discard(part)
        fetched = fetch(url, part, path.stem, entry.largest_bytes, progress)
        try:
            _verify(part, entry)
        except Refused:
            discard(part)  # whole but wrong: nothing to resume
            raise
        digest = file_sha256(part)
        sidecar_path(path).unlink(missing_ok=True)
        part.replace(path)
        sidecar_path(part).unlink(missing_ok=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_sidecar(path, {"url": url, "sha256": digest, "downloaded": now} | fetched._asdict())
        return path


def verification(path: Path) -> str:
    """Return a sentence on what is known of a downloaded file, as ``download`` returns it."""
    came = " that as many bytes came as the server said," * bool(
        read_sidecar(path).get("length_known")
    )
    return (
        f"no sha256 of it is published. What was checked is{came} that it opens and that it has "
        "the columns and sizes of its task. Its own sha256 is kept, and tells if it changes"
    )


def _advice(entry: CatalogEntry, cause: str) -> str:
    host = urllib.parse.urlsplit(entry.url).netloc
    said = f"{entry.name} could not be downloaded from {host}: {cause}."
    if entry.collect_command is None:
        files = _files(entry)
        wanted = " and ".join(files)
        there = "both there" if len(files) > 1 else f"it there as {entry.name}.hdf5"
        return f"{said} Fetch {wanted} elsewhere and put {there}"
    return f"{said} An equivalent, under a name of its own, is made by `{entry.collect_command}`"


def _verified_before(path: Path, entry: CatalogEntry, url: str) -> bool:
    """Say whether the file may be used: as recorded, or of unchanged bytes, or ours to record."""
    record, stat = read_sidecar(path), path.stat()
    if (record.get("size"), record.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
        return True
    digest = file_sha256(path)
    if record.get("sha256") not in (None, digest):
        raise Refused(
            f"{path} is there but has changed since it was downloaded (say --force to replace it)"
        )
    _verify(path, entry)  # put there by hand, or copied without its time of change
    write_sidecar(path, {"url": url, **record, "sha256": digest})
    return True


def _verify(path: Path, entry: CatalogEntry) -> None:
    try:
        if isinstance(entry, OGBenchEntry):
            check_file(path, entry)
            return
        read_header(
            path,
            require=("actions", "rewards", "terminals"),
            format=entry.format,
            env_id=entry.env_id,
        )
    except DatasetError as error:
        raise Refused(f"what came is no such dataset ({error})") from None
