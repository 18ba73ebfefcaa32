"""Diffusion and flows: schedules, targets, losses, samplers and guidance, in pure PyTorch."""

from lit_offrl.diffusion.denoiser import (
    ConditionalDenoise,
    Denoise,
    Encoded,
    map_encoded,
    repeat_encoded,
)
from lit_offrl.diffusion.flow import (
    FLOW_SAMPLERS,
    Euler,
    FlowSampler,
    Heun,
    Velocity,
    flow_loss,
    flow_point,
    make_flow_sampler,
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
    "FLOW_SAMPLERS",
    "SAMPLERS",
    "Clipping",
    "ConditionalDenoise",
    "DPMSolverPP",
    "Denoise",
    "Encoded",
    "Euler",
    "FlowSampler",
    "Heun",
    "Prediction",
    "Sampler",
    "Schedule",
    "ScheduleKind",
    "Variance",
    "Velocity",
    "Weighting",
    "classifier_free_guidance",
    "classifier_guidance",
    "diffusion_loss",
    "flow_loss",
    "flow_point",
    "loss_weight",
    "make_flow_sampler",
    "make_sampler",
    "map_encoded",
    "repeat_encoded",
    "time_grid",
    "to_epsilon",
    "to_v",
    "to_x0",
    "training_target",
]
