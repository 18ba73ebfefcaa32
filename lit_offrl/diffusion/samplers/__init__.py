"""Samplers: DDPM, DDIM and DPM-Solver++(2M), one solver a file over one loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.diffusion.samplers.base import Sampler, time_grid
from lit_offrl.diffusion.samplers.ddim import DDIM
from lit_offrl.diffusion.samplers.ddpm import DDPM
from lit_offrl.diffusion.samplers.dpm_solver import DPMSolverPP

SAMPLERS: Mapping[str, type[Sampler]] = {kind.name: kind for kind in (DDPM, DDIM, DPMSolverPP)}


def make_sampler(name: str, **options: Any) -> Sampler:
    """Build a sampler from its name (``ddpm``, ``ddim``, ``dpm++``) and its options.

    Raises:
        ConfigError: unknown name or option, or an option out of range.
    """
    if name not in SAMPLERS:
        raise ConfigError(
            f"unknown sampler '{name}': choose from {', '.join(SAMPLERS)}.{nearest(name, SAMPLERS)}"
        )
    kind = SAMPLERS[name]
    known = [field.name for field in fields(kind)]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"sampler '{name}' has no option '{option}': it has {', '.join(known)}."
                + nearest(option, known)
            )
    return kind(**options)


__all__ = ["DDIM", "DDPM", "SAMPLERS", "DPMSolverPP", "Sampler", "make_sampler", "time_grid"]
