"""A method's weights and options as a safetensors file, which holds nothing that could be run.

Tensors are those of the ``state_dict``. Under the key ``lit_offrl`` the file's metadata have, as
JSON, what a checkpoint holds beside the weights and the state of its training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_offrl.common.errors import ConfigError, reason
from lit_offrl.common.extras import needed
from lit_offrl.common.files import whole_file

KEY = "lit_offrl"
"""Key of the file's metadata."""
SUFFIX = ".safetensors"
"""By which such a file is known."""
_KEPT = ("hyper_parameters", "global_step", "lit_offrl")


def write_weights(path: Path, checkpoint: Mapping[str, Any], **texts: str) -> None:
    """Write what acts of a checkpoint, whole or not at all.

    Args:
        path: The file.
        checkpoint: As ``read_checkpoint`` returns it, or a part of it with ``state_dict``.
        **texts: Further metadata.

    Raises:
        ConfigError: safetensors is not installed, or an option is of no plain type.
        FileError: The file cannot be written.
    """
    save = needed("safetensors.torch", "export", "the format safetensors").save_file
    try:
        kept = json.dumps({name: checkpoint[name] for name in _KEPT if name in checkpoint})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: its options cannot be written as JSON ({reason(error)}): give plain ones."
        ) from error
    # each tensor on its own, as the format has it: no two share memory
    weights = {name: part.detach().cpu().clone() for name, part in checkpoint["state_dict"].items()}
    weights = {name: part.contiguous() for name, part in weights.items()}
    with whole_file(path) as temporary:
        save(weights, temporary, {KEY: kept, **texts})


def read_weights(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return what a file of ``write_weights`` holds, as a checkpoint; its form is not looked at.

    Raises:
        ConfigError: safetensors is not installed, or the file is no such file.
    """
    safe_open = needed("safetensors", "export", str(path)).safe_open
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            kept = json.loads((file.metadata() or {})[KEY])
            for name in file.keys():
                weights[name] = file.get_tensor(name)
        return {**{name: kept[name] for name in _KEPT if name in kept}, "state_dict": weights}
    except Exception as error:  # safetensors has its own kinds; others for what the JSON holds
        raise ConfigError(
            f"{path}: not readable weights of lit-offrl ({reason(error)})."
        ) from error
