"""Diffusion: schedules, targets and losses, samplers and guidance, in pure PyTorch."""

from lit_offrl.diffusion.denoiser import (
    ConditionalDenoise,
    Denoise,
    Encoded,
    map_encoded,
    repeat_encoded,
)
from lit_offrl.diffusion.guidance import classifier_free_guidance, classifier_guidance
from lit_offrl.diffusion.samplers import (
    DDIM,
    DDPM,
    SAMPLERS,
    Clipping,
    DPMSolverPP,
    Sampler,
    Variance,
    make_sampler,
    time_grid,
)
from lit_offrl.diffusion.schedules import Schedule, ScheduleKind
from lit_offrl.diffusion.targets import (
    Prediction,
    Weighting,
    diffusion_loss,
    loss_weight,
    to_epsilon,
    to_v,
    to_x0,
    training_target,
)

__all__ = [
    "DDIM",
    "DDPM",
    "SAMPLERS",
    "Clipping",
    "ConditionalDenoise",
    "DPMSolverPP",
    "Denoise",
    "Encoded",
    "Prediction",
    "Sampler",
    "Schedule",
    "ScheduleKind",
    "Variance",
    "Weighting",
    "classifier_free_guidance",
    "classifier_guidance",
    "diffusion_loss",
    "loss_weight",
    "make_sampler",
    "map_encoded",
    "repeat_encoded",
    "time_grid",
    "to_epsilon",
    "to_v",
    "to_x0",
    "training_target",
]
