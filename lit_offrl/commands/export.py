"""``lit-offrl export``: write a checkpoint's policy as a file that runs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_offrl.commands.evaluate import split_policy_options
from lit_offrl.commands.options import parse
from lit_offrl.tracking.references import Checkpoint


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a checkpoint's policy as a file that runs elsewhere.

    Args:
        ckpt_path: Checkpoint of 'fit': a path, runs:/ID, models:/NAME@ALIAS or
            hub:ORG/NAME.
        output: Folder for the file.
        format: Format of the file: onnx, the whole decision as a graph for onnxruntime;
            torch_export, the same for PyTorch; or safetensors, weights and options for this
            library.
    """

    ckpt_path: Checkpoint
    output: Path
    format: Literal["onnx", "torch_export", "safetensors"] = "onnx"


def main(argv: Sequence[str]) -> int:
    """Write the file, and return 0."""
    rest, policy_options = split_policy_options(argv)
    epilog = "--policy.OPTION VALUE sets an option of the module's policy."
    options = parse(ExportOptions, rest, "export", epilog)
    from lit_offrl.evaluation.evaluate import require_policy_options  # torch: seconds
    from lit_offrl.export import export_policy
    from lit_offrl.modules.checkpoints import load_module

    module = load_module(options.ckpt_path)
    require_policy_options(type(module), policy_options)
    path = export_policy(module.policy(**policy_options), options.output, options.format)
    print(f"policy: {path}")
    return 0
