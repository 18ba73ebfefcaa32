"""The folder of a policy that goes to the hub: weights, config, evaluation records and a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_offrl.common.errors import ConfigError, LitOffRLError
from lit_offrl.common.files import file_sha256, make_folder, write_whole
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.hub.card import card
from lit_offrl.hub.fetching import CARD, CONFIG, RECORDS, WEIGHTS
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.checkpoints import config_of, module_of, read_checkpoint
from lit_offrl.modules.weights_file import write_weights
from lit_offrl.tracking.store import redacted

_OWN = ("mlflow", "config")  # the run's place in the user's store; the config is written anew
_PLACES = (("trainer", "logger"), ("trainer", "default_root_dir"), ("checkpoint", "dirpath"))


def write_folder(
    checkpoint: Path,
    folder: Path,
    repository: str,
    records: Sequence[Path] = (),
    licence: str | None = None,
) -> list[Path]:
    """Write what is pushed to the hub of a checkpoint.

    Places on the user's machine are left out: the data's path, folders, and the MLflow store.

    Args:
        checkpoint: The checkpoint's file.
        folder: The folder, which must be empty or not there.
        repository: ``ORG/NAME``, for the card's commands.
        records: Evaluation records of this checkpoint.
        licence: Licence of the weights by the hub's name for it.

    Returns:
        The files that were written.

    Raises:
        ConfigError: The checkpoint cannot act, or a record is of another one.
        FileError: The folder cannot be written.
    """
    saved = read_checkpoint(checkpoint)
    module = module_of(saved, checkpoint)
    if module.spec is None:
        raise ConfigError(f"{checkpoint}: was never trained on a dataset, so it cannot act.")
    sha256 = file_sha256(checkpoint)
    loaded = {path: _record(path, checkpoint, sha256) for path in records}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already: name a folder that is new or empty.")
    make_folder(folder)
    spec: dict[str, Any] = module.spec.to_dict()
    spec["origin"] = Path(spec["origin"]).name
    config = _config(config_of(saved, checkpoint))
    text = redacted(yaml.safe_dump(config, sort_keys=False, allow_unicode=True)) if config else None
    ours = {k: v for k, v in saved[CHECKPOINT_KEY].items() if k not in _OWN}
    ours |= {"spec": spec, "config": text}
    written = [folder / WEIGHTS]
    write_weights(written[0], {**saved, CHECKPOINT_KEY: ours})
    if text is not None:
        written.append(folder / CONFIG)
        write_whole(written[-1], text)
    for path, record in loaded.items():
        written.append(folder / RECORDS / path.name)
        write_whole(written[-1], redacted(record.to_json()))
    written.append(folder / CARD)
    page = card(
        repository,
        method=type(module).__name__,
        spec=DatasetSpec.from_dict(spec),
        saved={**saved, CHECKPOINT_KEY: ours},
        checkpoint_sha256=sha256,
        weights_sha256=file_sha256(folder / WEIGHTS),
        records=list(loaded.values()),
        licence=licence,
    )
    write_whole(written[-1], redacted(page))
    return written


def records_of(checkpoint: Path, folder: Path = Path("evaluations")) -> list[Path]:
    """Return the evaluation records of a checkpoint in a folder, by the checkpoint's hash."""
    sha256, found = file_sha256(checkpoint), []
    for path in sorted(folder.glob("*.json")):
        try:
            if EvaluationRecord.load(path).checkpoint_sha256 == sha256:
                found.append(path)
        except LitOffRLError:
            continue  # another file of the user's
    return found


def _record(path: Path, checkpoint: Path, sha256: str) -> EvaluationRecord:
    record = EvaluationRecord.load(path)
    if record.checkpoint_sha256 != sha256:
        raise ConfigError(
            f"--record {path}: is of another checkpoint than {checkpoint}: its checkpoint_sha256 is"
            f" {str(record.checkpoint_sha256)[:12]}…, not {sha256[:12]}…."
        )
    return record


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the places that are the user's own."""
    found = {name: dict(part) if isinstance(part, dict) else part for name, part in config.items()}
    for section, name in _PLACES:
        if isinstance(found.get(section), dict):
            found[section].pop(name, None)
    found.pop("ckpt_path", None)
    return found
