"""What is said of files that are no HDF5: how to convert a log, or what can be read instead."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import h5py

from lit_offrl.common.errors import DatasetError
from lit_offrl.datasets.columns import listed
from lit_offrl.datasets.logs import is_log, open_log

_KINDS = {
    "a NumPy archive": (".npz", ".npy"),
    "a pickle (which can run code when it is opened)": (".pkl", ".pickle", ".p", ".joblib"),
    "a file of PyTorch's": (".pt", ".pth", ".ckpt", ".safetensors"),
    "JSON": (".json", ".jsonl", ".ndjson"),
    "text": (".txt", ".log", ".yaml", ".yml"),
    "a spreadsheet": (".xlsx", ".xls", ".ods"),
    "an Arrow file": (".arrow", ".feather", ".ipc"),
    "a MATLAB file": (".mat",),
    "TensorFlow's records": (".tfrecord", ".tfrecords"),
    "a recording of ROS": (".bag", ".mcap", ".db3"),
    "an archive": (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z"),
}
LOG_COMMAND = "lit-offrl datasets convert"


def refuse_other_formats(path: Path) -> None:
    """Raise DatasetError for a file that by its name and content is of another format than HDF5.

    For a log it has the command that converts it, else what can be read.
    """
    log = is_log(path)
    kind = next((kind for kind, ends in _KINDS.items() if path.suffix.lower() in ends), None)
    if not path.is_file() or not (log or kind) or h5py.is_hdf5(path):
        return
    if not log:
        raise DatasetError(
            f"{path}: by its name it is {kind}, from which no dataset is read. Readable are HDF5 "
            "files (.hdf5, as `lit_offrl.datasets.hdf5.write_hdf5` makes of arrays), Minari's "
            "datasets (minari:ID), OGBench's archives under the names that OGBench gives them "
            f"(cube-single-play-v0.npz), and logs in CSV or Parquet through `{LOG_COMMAND}`."
        )
    names = ""
    with contextlib.suppress(DatasetError):
        names = f" (it has {listed(open_log(path).columns)})"
    output = path.with_name(path.name.partition(".")[0] + ".hdf5")
    files = shlex.join([str(path), str(output)])
    command = f"{LOG_COMMAND} {files} --observations A,B,C --actions U --reward R --episode ID"
    raise DatasetError(
        f"{path}: is a log: make an HDF5 file of it once with `{command}`, with the names of its "
        f"columns in place of the capitals{names}."
    )
