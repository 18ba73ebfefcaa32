"""Labels of a dataset's rows, stored beside it: advantages that frozen critics gave them.

Those of a dataset that comes with the library go to the data directory.

The file is an ``.npz`` of float32 ``advantages`` (N,), the dataset's sha256 and the critic's hash,
so that labels can never meet other rows than they were made for.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_offrl.common.errors import DatasetError
from lit_offrl.common.files import write_whole
from lit_offrl.datasets.catalog import bundled, default_data_dir
from lit_offrl.datasets.npz import UnreadableError, read_npz
from lit_offrl.datasets.schema import DatasetSpec, OfflineDataset

COLUMN = "advantages"
"""The labels' column in a dataset, and their key in the file."""
_KEYS = (COLUMN, "dataset_sha256", "critic_hash")


def critic_hash(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a critic's ``state_dict()``: of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())  # bfloat16 too
    return digest.hexdigest()


def labels_path(spec: DatasetSpec, critic: str) -> Path:
    """Return where the labels of a critic's hash belong: ``FILE.hdf5.CRITIC.npz`` beside the file.

    Nothing is written into the installed package: those of bundled data go to the data directory.

    Raises:
        DatasetError: The rows come from no single file, as those of Minari.
    """
    file = Path(spec.origin)
    if not file.is_file():
        raise DatasetError(
            f"{spec.origin}: is no file that labels could lie beside: name their file yourself."
        )
    folder = default_data_dir() if file in bundled().values() else file.parent
    return folder / f"{file.name}.{critic[:12]}.npz"


def save_labels(path: Path, advantages: np.ndarray, dataset: OfflineDataset, critic: str) -> None:
    """Store a label for each row of a whole dataset, in one step.

    Args:
        path: Path of the file; ``labels_path`` gives the usual one.
        advantages: A(s, a) of each row (N,), in the dataset's order.
        dataset: The whole dataset, as read from its file.
        critic: Hash of the critic.

    Raises:
        DatasetError: The dataset has no sha256, or a label is missing or not finite.
        FileError: The file cannot be written.
    """
    sha256 = _sha256(dataset)
    labels = _checked(np.asarray(advantages), len(dataset), f"{path}: cannot be written")
    image = io.BytesIO()
    np.savez(
        image,
        advantages=labels,
        dataset_sha256=np.asarray(sha256),
        critic_hash=np.asarray(critic),
    )
    write_whole(path, image.getbuffer())


def load_labels(path: Path, dataset: OfflineDataset, critic: str | None = None) -> np.ndarray:
    """Return the labels (N,), float32, of a whole dataset.

    Args:
        path: Path of the file.
        dataset: The dataset that the labels must belong to.
        critic: Hash of the critic that must have made them; None takes any.

    Raises:
        DatasetError: The file is missing or broken, or the labels belong to other data or another
            critic, have another number, or are not finite.
    """
    sha256 = _sha256(dataset)
    if not path.is_file():
        raise DatasetError(
            f"{path}: no such file of labels: compute the advantages of "
            f"{dataset.spec.origin} first."
        )
    try:
        arrays = read_npz(path)
        labels, found, maker = (arrays[key] for key in _KEYS)
    except (UnreadableError, KeyError) as error:
        raise DatasetError(f"{path}: is no file of labels ({error}): compute them again.") from None
    if str(found) != sha256:
        raise DatasetError(
            f"{path}: holds labels of another dataset (sha256 {str(found)[:12]}…) than "
            f"{dataset.spec.origin} (sha256 {sha256[:12]}…): compute them again for this one."
        )
    if critic is not None and str(maker) != critic:
        raise DatasetError(
            f"{path}: holds labels of another critic ({str(maker)[:12]}…) than requested "
            f"({critic[:12]}…): compute them again, or correct the option 'critic'."
        )
    return _checked(labels, len(dataset), f"{path}: cannot be used")


def _sha256(dataset: OfflineDataset) -> str:
    if dataset.spec.sha256 is None:
        raise DatasetError(
            f"{dataset.spec.origin}: has no sha256, so no labels can belong to it: write the "
            "dataset to a file and read it from there."
        )
    return dataset.spec.sha256


def _checked(labels: np.ndarray, rows: int, what: str) -> np.ndarray:
    if labels.shape != (rows,) or labels.dtype.kind not in "fiu":
        raise DatasetError(
            f"{what}: 'advantages' are {labels.dtype} of shape {labels.shape}, where numbers of "
            f"shape ({rows},) are needed: one for each row of the whole dataset."
        )
    with np.errstate(over="ignore"):  # too large for float32 shows up as infinite below
        labels = labels.astype(np.float32)
    finite = np.isfinite(labels)
    if not finite.all():
        raise DatasetError(
            f"{what}: 'advantages' has {labels[~finite][0]} in row {int(np.argmin(finite)):,} "
            f"({int((~finite).sum()):,} bad values in all): check the critic."
        )
    return labels
