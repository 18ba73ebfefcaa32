"""Names of datasets: d4rl-pybullet's twelve, the bundled ones, and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_offrl.datasets.environments import ENVIRONMENTS
from lit_offrl.datasets.hdf5 import Format, read_hdf5, read_header
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset
from lit_offrl.datasets.sidecar import read_sidecar
from lit_offrl.errors import DatasetError, nearest

DATA_DIR_VARIABLE = "LIT_OFFRL_DATA"
_BUNDLED_DIR = Path(__file__).with_name("bundled")
_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class CatalogEntry:
    """A published dataset: where it is, what it holds, what its authors say of its returns.

    Attributes:
        name: its name here and in d4rl-pybullet.
        url: of the HDF5 file.
        env_id: gymnasium id of its environment, a key of ``ENVIRONMENTS``.
        rows: as published; the file's extra rows at the episodes' ends included.
        kind: ``random``, ``medium`` or ``mixed``.
        mean_return: published, as are the next three.
        std_return: spread over episodes.
        min_return: of the worst episode.
        max_return: of the best episode.
        format: the file's layout.
    """

    name: str
    url: str
    env_id: str
    rows: int
    kind: str
    mean_return: float
    std_return: float
    min_return: float
    max_return: float
    format: Format = "pybullet"

    @property
    def regenerated_name(self) -> str:
        """The name of an equivalent made here: never that of the original."""
        return self.name.removesuffix("-v0") + "-regenerated"

    @property
    def collect_command(self) -> str:
        """The command that makes an equivalent."""
        # `mixed` ends by itself, when training reaches the return at which the original ended.
        steps = "" if self.kind == "mixed" else f" --steps {self.rows}"
        return (
            f"lit-offrl collect --env {self.env_id} --kind {self.kind}{steps} "
            f"--output {self.regenerated_name}.hdf5"
        )

    def spec(self) -> DatasetSpec:
        """Return what is known before the file is on disk."""
        facts = ENVIRONMENTS[self.env_id]
        return DatasetSpec(
            name=self.name,
            observation_dim=facts.observation_dim,
            action_dim=facts.action_dim,
            action_low=(-facts.action_bound,) * facts.action_dim,
            action_high=(facts.action_bound,) * facts.action_dim,
            env_id=self.env_id,
            max_episode_steps=facts.max_episode_steps,
            ref_min_score=facts.ref_min_score,
            ref_max_score=facts.ref_max_score,
            ref_source=facts.ref_source,
            origin=self.url,
            columns=(
                *("observations", "actions", "rewards", "terminals"),
                *("next_observations", "timeouts"),
            ),
        )


def _entries() -> dict[str, CatalogEntry]:
    # (env, kind, key of the file's address, rows, mean, std, min, max), from d4rl-pybullet's README
    published = """
    Hopper      random bino8ojd7iq4p4d 1000000    18.64    3.04    -8.58   53.21
    Hopper      medium w22kgzldn6eng7j 1000000  1078.36  325.52   220.23 1238.9569
    Hopper      mixed  xv3p0h7dzgxt8xb   59345   139.08  147.62     9.15 1019.94
    HalfCheetah random jnvpb1hp60zt2ak 1000000 -1304.49   99.30 -1518.58 -945.29
    HalfCheetah medium v4xgssp1w968a9l 1000000   787.35  104.31  -522.57  844.91
    HalfCheetah mixed  scj1rqun963aw90  178178   453.12  498.19 -1428.22  801.02
    Walker2D    random 1gwcfl2nmx6878m 1000000    14.98    2.94     5.73   66.90
    Walker2D    medium v0f2kz48b1hw6or 1000000  1106.68  417.79    16.00 1394.38
    Walker2D    mixed  i4u2ii0d85iblou   89772   181.51  277.71     9.45 1363.94
    Ant         random 2xpmh4wk2m7i8xh 1000000    10.35    0.31     9.82   13.04
    Ant         medium 6n79kwd94xthr1t 1000000   570.80  104.82    70.87  816.79
    Ant         mixed  pmy3dzab35g4whk   53572   255.40  196.22   -32.74  609.66
    """
    entries = {}
    for line in published.strip().splitlines():
        env, kind, key, rows, mean, std, low, high = line.split()
        name = f"{env.lower()}-bullet-{kind}-v0"
        url = f"https://www.dropbox.com/s/{key}/{name}.hdf5?dl=1"
        entries[name] = CatalogEntry(
            name,
            url,
            f"{env}BulletEnv-v0",
            int(rows),
            kind,
            float(mean),
            float(std),
            float(low),
            float(high),
        )
    return entries


CATALOG: Mapping[str, CatalogEntry] = _entries()


@dataclass(frozen=True)
class Source:
    """Where a dataset is, and how to read it.

    Attributes:
        name: of the dataset.
        path: of its file, which for a catalogue entry may have to be downloaded first.
        entry: the catalogue's, if it is one of the catalogue.
        bundled: whether the file is part of the package.
    """

    name: str
    path: Path
    entry: CatalogEntry | None = None
    bundled: bool = False

    @property
    def on_disk(self) -> bool:
        """Whether the file is there."""
        return self.path.is_file()

    def header(
        self,
        *,
        require: Sequence[str] = (),
        format: Format = "auto",
        env_id: str | None = None,
    ) -> DatasetSpec:
        """Return the spec, from the catalogue where the file is yet to be downloaded.

        Raises:
            DatasetError: as ``read_header``.
        """
        if self.entry is not None and not self.on_disk:
            return self.entry.spec()
        return read_header(self.path, require=require, **self._options(format, env_id))

    def read(
        self,
        *,
        require: Sequence[str] = ("actions", "rewards"),
        format: Format = "auto",
        env_id: str | None = None,
    ) -> OfflineDataset:
        """Read the file; see ``read_hdf5``.

        Raises:
            DatasetError: as ``read_hdf5``; if a catalogue entry is not on disk, or is no longer
                the file that was downloaded.
        """
        if self.entry is not None and not self.on_disk:
            raise DatasetError(
                f"{self.name}: is not on disk ({self.path}): "
                f"run `lit-offrl datasets download {self.name}`."
            )
        dataset = read_hdf5(self.path, require=require, **self._options(format, env_id))
        recorded = read_sidecar(self.path).get("sha256") if self.entry is not None else None
        if recorded not in (None, dataset.spec.sha256):
            raise DatasetError(
                f"{self.path}: has changed since it was downloaded (sha256 {dataset.spec.sha256} "
                f"now, {recorded} then): run `lit-offrl datasets download {self.name} --force`."
            )
        return dataset

    def _options(self, format: Format, env_id: str | None) -> dict[str, Any]:
        if self.entry is not None:
            format = self.entry.format if format == "auto" else format
            env_id = env_id or self.entry.env_id
        return {"format": format, "env_id": env_id, "name": self.name}


def bundled() -> dict[str, Path]:
    """Return the datasets that are part of the package, by name."""
    return {path.stem: path for path in sorted(_BUNDLED_DIR.glob("*.hdf5"))}


def default_data_dir() -> Path:
    """Return ``$LIT_OFFRL_DATA``, or ``~/.lit_offrl/datasets``."""
    chosen = os.environ.get(DATA_DIR_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".lit_offrl" / "datasets"


def resolve(
    name_or_path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> Source:
    """Find a dataset by name or path.

    A name is one of the catalogue or a bundled one, or that of a file ``NAME.hdf5`` in the data
    directory. Names go before paths: write ``./NAME`` for a file that is called like a dataset.

    Args:
        name_or_path: what to find.
        data_dir: where downloaded files are; ``default_data_dir()`` unless given.

    Raises:
        DatasetError: with the nearest name, or saying that the path does not exist.
    """
    text = os.fspath(name_or_path)
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    packaged = bundled()
    if text in CATALOG:
        return Source(text, folder / f"{text}.hdf5", entry=CATALOG[text])
    if text in packaged:
        return Source(text, packaged[text], bundled=True)
    path = Path(text).expanduser()
    if path.exists():
        return Source(path.stem, path)
    own = folder / f"{text}.hdf5"
    if os.sep not in text and own.is_file():
        return Source(text, own)
    if os.sep in text or path.suffix in _SUFFIXES:
        known = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = nearest(path.name, known) or " Check the path."
        raise DatasetError(f"{text}: no such file.{hint}")
    names = [*CATALOG, *packaged, *(file.stem for file in folder.glob("*.hdf5"))]
    hint = nearest(text, names) or " `lit-offrl datasets list` shows the names there are."
    raise DatasetError(f"'{text}' is neither the name of a dataset nor a file.{hint}")


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    require: Sequence[str] = ("actions", "rewards"),
    format: Format = "auto",
    env_id: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> OfflineDataset:
    """Find a dataset and read it: ``resolve(...).read(...)``.

    Raises:
        DatasetError: as those two.
    """
    return resolve(name_or_path, data_dir).read(require=require, format=format, env_id=env_id)
