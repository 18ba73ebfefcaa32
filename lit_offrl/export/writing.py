"""From a policy to a folder with its file, and a page that says how it is run."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import make_folder, require_replaceable, whole_file, write_whole
from lit_offrl.export.facts import PolicyFacts, facts_of
from lit_offrl.export.graph import graph_of
from lit_offrl.export.onnx_file import write_onnx
from lit_offrl.export.readme import is_readme, readme
from lit_offrl.export.running import OnnxGoalPolicy, load_onnx
from lit_offrl.modules.base import OfflineModule
from lit_offrl.modules.checkpoints import read_checkpoint
from lit_offrl.modules.policies import StepPolicy
from lit_offrl.modules.weights_file import SUFFIX, write_weights

Format = Literal["onnx", "torch_export", "safetensors"]
"""Formats of an exported policy's file."""
_PAGE = "README.md"
_FILES: dict[str, tuple[str, ...]] = {
    "onnx": ("policy.onnx",),
    "torch_export": ("policy.pt2", "policy.json"),
    "safetensors": (f"policy{SUFFIX}",),
}
_DECISIONS, _SECONDS = 200, 1.0  # that are timed for the page beside it, at most


def export_policy(policy: Any, output: str | Path, format: Format = "onnx") -> Path:
    """Write a policy to a folder, for a robot, a registry or a hub.

    Args:
        policy: What a method's ``policy`` has made; the options that it was made with are part of
            what is written. It is written in float32, for the CPU.
        output: The folder, which is made.
        format: ``onnx``: ``policy.onnx``, the whole decision as a graph for onnxruntime;
            ``torch_export``: ``policy.pt2``, the same for ``torch.export.load``, with its facts
            beside it in ``policy.json``, where choices that last are made in every step and used
            where they are due; ``safetensors``:
            ``policy.safetensors``, weights and options, by which ``load_module`` of this library
            makes the method again.

    Returns:
        The policy's file.

    Raises:
        ConfigError: The policy is not a method's, its method was never trained on a dataset, no
            graph can do what it does, or what the format needs is not installed.
        FileError: The files cannot be written, or would replace some that are no exported policy's.
    """
    if format not in get_args(Format):
        raise ConfigError(f"format is '{format}'; choose {' or '.join(get_args(Format))}.")
    made_by = getattr(policy, "made_by", None)
    if made_by is None:
        raise ConfigError("This policy was made by hand: export what a method's policy() gives.")
    module, options = made_by
    known, folder = facts_of(module, options), Path(output)
    make_folder(folder)
    is_earlier = is_readme(folder / _PAGE)
    for name in (_PAGE, *_FILES[format]):
        require_replaceable(
            folder / name, "exported policy", lambda _: is_earlier, [module.loaded_from]
        )
    path = folder / _FILES[format][0]
    if format == "safetensors":
        facts = PolicyFacts(**known)
        write_weights(path, weights_of(module), facts=facts.to_json())
        write_whole(folder / _PAGE, readme(facts, path.name))
        return path
    copied = _copied(module)
    again = copied.policy(**options)
    if not isinstance(again, StepPolicy):
        raise ConfigError(
            f"The policy of {type(module).__name__} is a {type(again).__name__}: only a StepPolicy"
            " can be exported, whose step is a function of tensors."
        )
    graph = graph_of(again, copied, with_choices=format == "onnx")
    sizes: dict[str, Any] = {"inputs": graph.inputs, "outputs": graph.outputs}
    facts = PolicyFacts(**known, **sizes, state=graph.state)
    if format == "onnx":
        write_onnx(graph, facts, path)
        write_whole(folder / _PAGE, readme(facts, path.name, _rate(path)))
        return path
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        torch.export.save(graph.program, stream)
    write_whole(folder / _FILES[format][1], facts.to_json() + "\n")
    write_whole(folder / _PAGE, readme(facts, path.name))
    return path


def _rate(path: Path) -> str | None:
    """Say how fast an exported policy decides for one environment here; None without a runtime."""
    try:
        policy = load_onnx(path)
    except ConfigError:
        return None
    observation = np.zeros((1, policy.facts.inputs["observations"]), np.float32)
    times: list[float] = []
    told = {name: size for name, size in policy.facts.inputs.items() if name in ("goals",)}
    if isinstance(policy, OnnxGoalPolicy):
        policy.aim(np.zeros((1, told["goals"]), np.float32))
    policy.act(observation)
    while len(times) < _DECISIONS and sum(times) < _SECONDS:
        begun = time.perf_counter()
        policy.act(observation)
        times.append(time.perf_counter() - begun)
    return (
        f"On the machine that wrote it, one thread of {platform.machine()} made"
        f" {len(times) / sum(times):,.0f} decisions a second for one environment, its noise drawn;"
        f" the slowest of {len(times)} took {1e3 * max(times):.2f} ms."
    )


def weights_of(module: OfflineModule) -> dict[str, Any]:
    """Return what a checkpoint of a module holds but for the state of its training."""
    made: dict[str, Any] = {}
    if module.loaded_from is not None and module.loaded_from.is_file():
        made = read_checkpoint(module.loaded_from)
    module.on_save_checkpoint(made)
    options = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    return {**made, "hyper_parameters": options, "state_dict": module.state_dict()}


def _copied(module: OfflineModule) -> OfflineModule:
    """Return a module like another that only acts, on the CPU, in float32, without a Trainer."""
    kind: Any = type(module)
    options = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    made: OfflineModule = kind(**options)
    made.load_state_dict({name: part.cpu() for name, part in module.state_dict().items()})
    made.spec = module.spec
    return made.eval().requires_grad_(False)
