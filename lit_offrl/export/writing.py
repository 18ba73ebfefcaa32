"""From a policy to a folder with its file, and a page that says how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import make_folder
from lit_offrl.export.facts import PolicyFacts, facts_of
from lit_offrl.export.graph import graph_of
from lit_offrl.export.onnx_file import write_onnx
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.checkpoints import read_checkpoint
from lit_offrl.modules.policies import StepPolicy
from lit_offrl.modules.weights_file import SUFFIX, write_weights

Format = Literal["onnx", "safetensors"]
"""Formats of an exported policy's file."""


def export_policy(policy: Any, output: str | Path, format: Format = "onnx") -> Path:
    """Write a policy to a folder, for a robot, a registry or a hub.

    Args:
        policy: What a method's ``policy`` has made; the options that it was made with are part of
            what is written. It is written in float32, for the CPU.
        output: The folder, which is made.
        format: ``onnx``: ``policy.onnx``, the whole decision as a graph; ``safetensors``:
            ``policy.safetensors``, weights and options, by which ``load_module`` of this library
            makes the method again.

    Returns:
        The policy's file.

    Raises:
        ConfigError: The policy is not a method's, its method was never trained on a dataset, no
            graph can do what it does, or what the format needs is not installed.
        FileError: The files cannot be written.
    """
    if format not in get_args(Format):
        raise ConfigError(f"format is '{format}'; choose {' or '.join(get_args(Format))}.")
    made_by = getattr(policy, "made_by", None)
    if made_by is None:
        raise ConfigError("This policy was made by hand: export what a method's policy() gives.")
    module, options = made_by
    known, folder = facts_of(module, options), Path(output)
    make_folder(folder)
    if format == "safetensors":
        path = folder / f"policy{SUFFIX}"
        write_weights(path, weights_of(module), facts=PolicyFacts(**known).to_json())
        return path
    path = folder / "policy.onnx"
    copied = _copied(module)
    again = copied.policy(**options)
    if not isinstance(again, StepPolicy):
        raise ConfigError(
            f"The policy of {type(module).__name__} is a {type(again).__name__}: only a StepPolicy"
            " can be exported, whose step is a function of tensors."
        )
    graph = graph_of(again, copied)
    sizes: dict[str, Any] = {"inputs": graph.inputs, "outputs": graph.outputs}
    write_onnx(graph, PolicyFacts(**known, **sizes, state=graph.state), path)
    return path


def weights_of(module: OfflineModule) -> dict[str, Any]:
    """Return what a checkpoint of a module holds but for the state of its training."""
    made: dict[str, Any] = {}
    if module.loaded_from is not None and module.loaded_from.is_file():
        made = read_checkpoint(module.loaded_from)
    module.on_save_checkpoint(made)
    options = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    return {**made, "hyper_parameters": options, "state_dict": module.state_dict()}


def _copied(module: OfflineModule) -> OfflineModule:
    """Return a module like another on the CPU, in float32 and in eval mode, without a Trainer."""
    kind: Any = type(module)
    options = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    made: OfflineModule = kind(**options)
    made.load_state_dict({name: part.cpu() for name, part in module.state_dict().items()})
    made.spec = module.spec
    return made.eval()
