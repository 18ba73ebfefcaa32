"""Names of datasets: those of the catalogue, the bundled ones, and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_offrl.common.errors import DatasetError, nearest
from lit_offrl.datasets.cache import ColumnCache
from lit_offrl.datasets.entries import CATALOG, CatalogEntry
from lit_offrl.datasets.environments import env_id_from_name
from lit_offrl.datasets.hdf5 import Format, read_hdf5, read_header
from lit_offrl.datasets.logs import is_log
from lit_offrl.datasets.ogbench import OGBENCH, OGBenchSource, find_ogbench
from lit_offrl.datasets.other_formats import refuse_other_formats
from lit_offrl.datasets.pybullet import LAYOUT
from lit_offrl.datasets.reading import DEFAULT_READING, Reading
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.sidecar import refuse_changed

DATA_DIR_VARIABLE = "LIT_OFFRL_DATA"
_BUNDLED_DIR = Path(__file__).with_name("bundled")
_SUFFIXES = (".hdf5", ".h5")
_READ_BY = {
    "minari:": "D4RLDataModule",
    "d4rl:": "D4RLDataModule",
    "lerobot:": "LeRobotDataModule",
    "robomimic:": "RobomimicDataModule",
}


@dataclass(frozen=True)
class FileSource:
    """A dataset in one file: of the catalogue, bundled, or the user's own.

    Attributes:
        name: Name of the dataset.
        path: Its file, which for a catalogue entry may have to be downloaded first.
        entry: Its entry in the catalogue, if it has one.
        bundled: Whether the file is part of the package.
        reading: How the file is read.
    """

    name: str
    path: Path
    entry: CatalogEntry | None = None
    bundled: bool = False
    reading: Reading = DEFAULT_READING

    @property
    def on_disk(self) -> bool:
        """Whether the file is there."""
        return self.path.is_file()

    def require_on_disk(self) -> None:
        """Raise DatasetError for a catalogue entry whose file is not there."""
        if self.entry is not None and not self.on_disk:
            raise DatasetError(
                f"{self.name}: is not on disk ({self.path}): "
                f"run `lit-offrl datasets download {self.name}`."
            )

    def header(self) -> DatasetSpec:
        """Return the spec: from the cache, else the file, else (not on disk) the catalogue."""
        if self.entry is not None and not self.on_disk:
            return self.entry.spec()
        if (cache := self.reading.cache) is not None and self.on_disk:
            digest = cache.sha256(self.path, compute=False)
            found = cache.find(digest, self._key()) if digest is not None else None
            if found is not None:
                return self._complete(found.spec)
        return self._complete(read_header(self.path, name=self.name, **self._layout()))

    def read(self, *, require: Sequence[str] = ()) -> OfflineDataset:
        """Read the file, see ``read_hdf5``, or what the cache has of it.

        Raises:
            DatasetError: As ``read_hdf5``; or the data of a catalogue entry are not on disk, are no
                longer the file that was downloaded, or are refused.
        """
        cache, layout = self.reading.cache, self._layout()
        if self.entry is not None and self.entry.refusal and not self.reading.accept_faults:
            raise DatasetError(f"{self.name}: is refused: {self.entry.refusal}.")
        self.require_on_disk()

        def make() -> OfflineDataset:
            dataset = read_hdf5(
                self.path,
                require=() if cache else require,  # what is cached serves every method
                name=self.name,
                task=self.entry.name if self.entry is not None else None,
                sparse_windows=self.reading.sparse_windows,
                **layout,
            )
            self._same_as_downloaded(dataset.spec.sha256)
            return dataset

        if cache is None:
            dataset = make()
        else:
            # The header first: what it refuses need not be hashed.
            known = cache.sha256(self.path, compute=False) if self.on_disk else None
            if known is None:
                read_header(self.path, require=require, name=self.name, to_read=True, **layout)
            digest = cache.sha256(self.path)
            assert digest is not None  # computed
            self._same_as_downloaded(digest)
            dataset = cache.fetch(digest, self._key(), make)
        for name in require:
            dataset.column(name)
        return dataset.with_spec(self._complete(dataset.spec))

    def _layout(self) -> dict[str, Any]:
        """Return the file's layout and environment, as far as the options or the catalogue know."""
        format, env_id = self.reading.format, self.reading.env_id
        if self.entry is None:
            return {"format": format, "env_id": env_id}
        format = self.entry.format if format == "auto" else format
        return {"format": format, "env_id": env_id or self.entry.env_id}

    def _key(self) -> dict[str, Any]:
        """Return all that the cached columns depend on, beside the file's bytes."""
        # A file's name may tell its environment, and so how it is read.
        task = env_id_from_name(self.path.name) if self.entry is None else self.entry.name
        sparse = self.reading.sparse_windows
        return {**self._layout(), "sparse_windows": sparse, "task": task}

    def _complete(self, spec: DatasetSpec) -> DatasetSpec:
        """Put in what depends on this source and not on the file's bytes."""
        spec = replace(spec, name=self.name, origin=str(self.path))
        if self.entry is None:
            return spec
        if self.entry.format == "pybullet":
            others = tuple(each for each in spec.handling if not each.startswith(LAYOUT))
            spec = replace(spec, handling=others)  # what is said of a layout that is known
        # The catalogue knows the environment, or that there is none, better than the file's name.
        return self.entry.complete(replace(spec, env_id=self._layout()["env_id"]))

    def _same_as_downloaded(self, digest: str | None) -> None:
        if self.entry is not None:
            refuse_changed(self.path, digest, self.name)


def bundled() -> dict[str, Path]:
    """Return the datasets that are part of the package, by name."""
    return {path.stem: path for path in sorted(_BUNDLED_DIR.glob("*.hdf5"))}


def default_data_dir(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return a chosen folder, else ``$LIT_OFFRL_DATA``, or ``~/.lit_offrl/datasets``."""
    chosen = os.environ.get(DATA_DIR_VARIABLE) if chosen is None else chosen
    return Path(chosen).expanduser() if chosen else Path.home() / ".lit_offrl" / "datasets"


def default_cache_dir(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder ``cache`` in the data directory."""
    return default_data_dir(data_dir) / "cache"


def open_cache(
    keep: bool, folder: str | None, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Path, ColumnCache | None]:
    """Return the folder of what is computed once, and what keeps columns there, if any is to.

    Args:
        keep: Whether columns are kept.
        folder: The folder; None for ``default_cache_dir``.
        data_dir: The data directory, see ``default_data_dir``.
    """
    place = Path(folder).expanduser() if folder else default_cache_dir(data_dir)
    return place, ColumnCache(place) if keep else None


def resolve(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    reading: Reading = DEFAULT_READING,
) -> FileSource | OGBenchSource:
    """Find a dataset by name or path.

    A name is one of the catalogue or a bundled one, or that of a file ``NAME.hdf5`` in the data
    directory, ``default_data_dir()`` unless given. Names go before paths: write ``./NAME`` for a
    file that is called like a dataset. OGBench's are pairs of ``.npz``, see ``find_ogbench``.

    Raises:
        ConfigError: An option does not go with OGBench's data.
        DatasetError: There is no such name or path; the nearest one is named.
    """
    text = os.fspath(name_or_path)
    folder = default_data_dir(data_dir)
    packaged = bundled()
    for prefix, module in _READ_BY.items():
        if text.startswith(prefix):
            raise DatasetError(f"{text}: is read only by {module}: set data.class_path to it.")
    if text in CATALOG:
        entry = CATALOG[text]
        path, published = folder / f"{text}.hdf5", folder / entry.file
        there = path if path.exists() or not published.is_file() else published  # fetched by hand
        return FileSource(text, there, entry, reading=reading)
    if text in packaged:
        return FileSource(text, packaged[text], bundled=True, reading=reading)
    if (ogbench := find_ogbench(text, folder, reading)) is not None:
        return ogbench
    path = Path(text).expanduser()
    if path.exists():
        refuse_other_formats(path)
        return FileSource(path.stem, path, reading=reading)
    own = folder / f"{text}.hdf5"
    if os.sep not in text and own.is_file():
        return FileSource(text, own, reading=reading)
    if os.sep in text or path.suffix in _SUFFIXES or is_log(path):
        known = [place.name for place in path.parent.glob("*")]
        hint = nearest(path.name, known) or " Check the path."
        raise DatasetError(f"{text}: no such file.{hint}")
    names = [*CATALOG, *OGBENCH, *packaged, *(file.stem for file in folder.glob("*.hdf5"))]
    hint = nearest(text, names) or " `lit-offrl datasets list` shows the names there are."
    raise DatasetError(f"'{text}' is neither the name of a dataset nor a file.{hint}")


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    require: Sequence[str] = ("actions", "rewards"),
    format: Format = "auto",
    env_id: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    accept_faults: bool = False,
) -> OfflineDataset:
    """Find a dataset and read it: ``resolve(...).read(...)``, without a cache."""
    reading = Reading(format, env_id, accept_faults=accept_faults)
    return resolve(name_or_path, data_dir, reading).read(require=require)
