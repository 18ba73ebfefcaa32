"""Flow matching: straight paths from noise to data, their velocities, and what integrates these.

Here t is a real number that runs from 0, noise, to 1, data, as in the papers on flows: the other
way round than the times of a `Schedule`.

Source: Lipman et al. 2023 and Liu et al. 2023 (rectified flow); in Park et al. 2025 (FQL) Eq. 5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import Generator, draw_normal, draw_uniform
from lit_offrl.common.ranges import require_fields
from lit_offrl.diffusion.denoiser import Rows
from lit_offrl.diffusion.schedules import unknown

Velocity = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, …) and t (B,) in [0, 1] to dx/dt (B, …): all that the loss and the solvers know."""


def flow_point(noise: Rows, data: Rows, t: Float[Tensor, " B"]) -> Rows:
    """x_t = (1 − t) · noise + t · data, whose velocity is data − noise at every t."""
    return torch.lerp(noise, data, t.reshape(-1, *(1,) * (data.ndim - 1)).to(data.dtype))


def flow_loss(
    velocity: Velocity, data: Rows, *, generator: Generator = None
) -> Float[Tensor, " B"]:
    """Squared error (B,) of the velocity at t uniform on [0, 1), a mean over event dimensions.

    The best velocity is E[data − noise | x_t], whose flow takes standard normal numbers to the
    data's distribution. The error is taken in float32 at least, whatever autocast makes the network
    return.

    Args:
        velocity: Maps x_t (B, …) and t (B,) to dx/dt (B, …).
        data: (B, …), of any event shape.
        generator: Source of t and of the noise. t is drawn first.
    """
    rows, device = data.shape[0], data.device
    t = draw_uniform((rows,), generator, device=device, dtype=data.dtype)
    noise = draw_normal(data.shape, generator, device=device, dtype=data.dtype)
    output, target = velocity(flow_point(noise, data, t), t), data - noise
    dtype = torch.promote_types(target.dtype, torch.float32)
    return (output.to(dtype) - target.to(dtype)).square().reshape(rows, -1).mean(1)


@dataclass(frozen=True)
class FlowSampler(ABC):
    """Draws samples by integrating dx/dt = v(x, t) from noise at t = 0 to data at t = 1.

    Args:
        num_steps: Number of steps of equal length.
        temperature: Factor of the noise that the flow begins with; at 0 all samples are equal.

    Raises:
        ConfigError: An option is out of its range.
    """

    name: ClassVar[str]
    order: ClassVar[int]

    num_steps: Annotated[int, "[1, inf)"] = 10
    temperature: Annotated[float, "[0, inf)"] = 1.0

    def __post_init__(self) -> None:
        try:
            require_fields(self)
        except ConfigError as error:
            raise ConfigError(f"sampler '{self.name}': {error}") from error

    @abstractmethod
    def step(self, at: Callable[[Rows, float], Rows], x: Rows, t: float, size: float) -> Rows:
        """Go from x_t to x_{t + size} with ``at(x, t)``, the velocity at one time for all rows."""

    def sample(
        self,
        velocity: Velocity,
        shape: Sequence[int],
        *,
        generator: Generator = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        initial_noise: Rows | None = None,
    ) -> Rows:
        """Draw samples of ``shape`` (B, …).

        Nothing here turns gradients off or waits for the device. Under autocast the state stays in
        ``dtype``.

        Args:
            velocity: Maps x_t (B, …) and t (B,), one number that is expanded, to dx/dt (B, …).
            shape: (B, …), any event shape.
            generator: Source of the noise.
            device: Device of the samples.
            dtype: Dtype of the state.
            initial_noise: Standard normal numbers of ``shape`` instead of the draw. The temperature
                applies to them, too.

        Raises:
            ValueError: ``initial_noise`` has another shape.
        """
        if initial_noise is None:
            initial_noise = draw_normal(shape, generator, device=device, dtype=dtype)
        elif tuple(initial_noise.shape) != tuple(shape):
            raise ValueError(
                f"initial_noise has shape {tuple(initial_noise.shape)}, not {tuple(shape)}"
            )
        x = initial_noise.to(device, dtype) * self.temperature

        def at(x: Rows, t: float) -> Rows:
            times = torch.full((1,), t, dtype=dtype, device=device)  # filled there, not copied
            return velocity(x, times.expand(shape[0])).to(dtype)

        for i in range(self.num_steps):
            x = self.step(at, x, i / self.num_steps, 1.0 / self.num_steps)
        return x


@dataclass(frozen=True)
class Euler(FlowSampler):
    """x + h v(x, t): one forward a step, of first order, exact where paths are straight."""

    name: ClassVar[str] = "euler"
    order: ClassVar[int] = 1

    def step(self, at: Callable[[Rows, float], Rows], x: Rows, t: float, size: float) -> Rows:
        """Go on with the velocity at the step's beginning."""
        return x + size * at(x, t)


@dataclass(frozen=True)
class Heun(FlowSampler):
    """Heun's method: two forwards a step, of second order; the last one is at t = 1."""

    name: ClassVar[str] = "heun"
    order: ClassVar[int] = 2

    def step(self, at: Callable[[Rows, float], Rows], x: Rows, t: float, size: float) -> Rows:
        """Go on with the mean of the velocities at the step's beginning and at Euler's end."""
        first = at(x, t)
        return x + 0.5 * size * (first + at(x + size * first, t + size))


FLOW_SAMPLERS: Mapping[str, type[FlowSampler]] = {kind.name: kind for kind in (Euler, Heun)}


def make_flow_sampler(name: str, num_steps: int = 10, temperature: float = 1.0) -> FlowSampler:
    """Build a sampler of flows from its name, ``euler`` or ``heun``, and its options.

    Raises:
        ConfigError: unknown name, or an option out of its range.
    """
    if name not in FLOW_SAMPLERS:
        raise unknown("sampler of flows", name, FLOW_SAMPLERS)
    return FLOW_SAMPLERS[name](num_steps, temperature)
