"""Policies from the hub. What is there may be anybody's, and is taken for no more than data.

Only the weights as safetensors are read, which hold numbers and plain options; which classes they
may name is decided as for any checkpoint. A file is used once its hash is the one that the hub
names for it, and lies in the folder of caches from then on, by its commit:

    cache/hub/COMMIT/ORG--NAME/policy.safetensors
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256, free_bytes
from lit_offrl.hub.repository import Repository, endpoint, hub, refusals, repository

WEIGHTS = "policy.safetensors"
"""The file of the weights."""
CARD = "README.md"
"""The file of the model card."""
CONFIG = "config.yaml"
"""The file of the run's config."""
RECORDS = "evaluations"
"""The folder of the evaluation records."""

_COMMIT = re.compile("[0-9a-f]{40}")
_RECORD = re.compile(rf"{RECORDS}/[A-Za-z0-9][\w.-]{{0,200}}\.json", re.ASCII)
_MOST_TEXT = 4 * 2**20  # bytes of a card or a record
_MOST_RECORDS = 100


def fetch_weights(text: str) -> Path:
    """Return the file of a policy's weights, ``ORG/NAME[@REVISION]``.

    What was fetched of a whole commit's number is not asked for again, also without a network.

    Raises:
        ConfigError: It cannot be had.
    """
    return fetch(repository(text), WEIGHTS)


def fetch(where: Repository, name: str, most: int | None = None) -> Path:
    """Return a file of a repository, whole and with the hash that the hub names.

    Args:
        where: The repository.
        name: Path of the file in it.
        most: Number of bytes that it may have; None for what the disk can take.

    Raises:
        ConfigError: It cannot be had, is too large, or is not what the hub says.
    """
    known = _kept(where, where.revision) / name
    if _COMMIT.fullmatch(where.revision) and known.is_file():
        return known
    package = hub()
    with refusals(where, name):
        url = package.hf_hub_url(where.name, name, revision=where.revision, endpoint=endpoint())
        facts = package.get_hf_file_metadata(url, endpoint=endpoint())
        commit, digest = str(facts.commit_hash), str(facts.etag)
        if not _COMMIT.fullmatch(commit):
            raise ConfigError(f"hub:{where}: {endpoint() or url} is no hub of Hugging Face's.")
        place = _kept(where, commit) / name
        if place.is_file():
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        room = free_bytes(place.parent) if most is None else most
        if facts.size is None or facts.size > room:
            raise ConfigError(
                f"hub:{where}: {name} has {facts.size or 'unknown'} bytes; {room:,} are the most."
            )
        with TemporaryDirectory(dir=place.parent) as folder:
            copy = Path(
                package.hf_hub_download(
                    where.name, name, revision=commit, local_dir=folder, endpoint=endpoint()
                )
            )
            if _digest(copy, digest) != digest:
                raise ConfigError(
                    f"hub:{where}: {name} is not what the hub says: its hash is not {digest[:12]}…"
                    "; nothing of it is kept: try again."
                )
            copy.replace(place)
    return place


def record_names(where: Repository) -> list[str]:
    """Return the paths of a repository's evaluation records, those with plain names."""
    with refusals(where):
        api = hub().HfApi(endpoint=endpoint())
        names = api.list_repo_files(where.name, revision=where.revision)
    plain = (str(name) for name in names)
    return sorted(name for name in plain if _RECORD.fullmatch(name))[:_MOST_RECORDS]


def fetch_text(where: Repository, name: str) -> str:
    """Return the text of a file that is not large.

    Raises:
        ConfigError: It cannot be had, is too large, or is no text.
    """
    try:
        return fetch(where, name, _MOST_TEXT).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"hub:{where}: {name} is no text.") from None


def commit_of(weights: Path) -> str:
    """Return the commit whose weights a fetched file has."""
    return weights.parent.parent.name


def _kept(where: Repository, commit: str) -> Path:
    from lit_offrl.datasets.catalog import default_cache_dir

    return default_cache_dir() / "hub" / commit / where.name.replace("/", "--")


def _digest(path: Path, like: str) -> str:
    """Return the hash by which the hub names a file: SHA-256, or git's of a small one."""
    if len(like) == 64:
        return file_sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
