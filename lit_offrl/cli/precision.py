"""``trainer.precision: auto``: bf16-mixed where there are units for it, else 32-true.

What is chosen stands in the run's config and its checkpoint in place of ``auto``, and what goes on
from the checkpoint keeps it, so that results do not hang on the machine that resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Union

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

AUTO = "auto"
FULL, MIXED = "32-true", "bf16-mixed"


def allow_auto(parser: ArgumentParser) -> None:
    """Let a verb's option ``trainer.precision`` be ``auto``, which Lightning's own cannot."""
    for action in parser._actions:
        if action.dest == "trainer.precision":
            action._typehint = Union[action._typehint, Literal["auto"]]  # type: ignore[attr-defined]  # noqa: UP007
            action.help = f"{action.help} auto: {MIXED} where there are units for it, else {FULL}."


def resolve_auto(trainer: Any, checkpoint: Mapping[str, Any] | None) -> str | None:
    """Put a precision in place of ``auto`` among a Trainer's parsed options.

    Args:
        trainer: The options, which are changed.
        checkpoint: The config of the checkpoint that the verb starts from.

    Returns:
        What is chosen and why, a line to say; None where there is nothing to choose.
    """
    if trainer.precision != AUTO:
        return None
    if checkpoint is not None and "trainer" in checkpoint:
        trainer.precision = checkpoint["trainer"].get("precision") or FULL
        reason = "as the checkpoint's run has it"
    else:
        trainer.precision, reason = by_hardware(trainer.accelerator)
    return f"trainer.precision auto: {trainer.precision}, {reason}"


def by_hardware(accelerator: Any) -> tuple[str, str]:
    """Return the faster of both precisions on an accelerator, and the reason.

    Args:
        accelerator: As it is given to the Trainer.
    """
    if accelerator == "auto":
        kinds = {"cuda": CUDAAccelerator, "mps": MPSAccelerator}
        accelerator = next((name for name, kind in kinds.items() if kind.is_available()), "cpu")
    if accelerator in ("gpu", "cuda") and CUDAAccelerator.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return MIXED, "as the GPU has units for bf16"
        return FULL, "as the GPU has no units for bf16"
    if accelerator != "cpu":
        return FULL, "as it is not known whether the accelerator is faster in bf16"
    units = [
        name
        for name, there in (
            ("AMX", torch.cpu._is_amx_tile_supported),
            ("AVX-512-bf16", torch.cpu._is_avx512_bf16_supported),
        )
        if there()
    ]
    if units and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return MIXED, f"as the processor has units for bf16 ({units[0]})"
    return FULL, "as the processor has no units for bf16 that PyTorch uses"
