"""The one loop that all samplers share; a sampler itself is only its coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import Generator, draw_normal
from lit_offrl.diffusion.denoiser import Denoise
from lit_offrl.diffusion.schedules import Schedule
from lit_offrl.diffusion.targets import Prediction, to_x0


class Coefficients(NamedTuple):
    """Columns (n,), float64, of the n steps from x_t to x_s, s < t.

    ``x_s = x0 · x̂_0(x_t) + x · x_t + previous · x̂_0 of the step before + noise · z``
    """

    x0: np.ndarray
    x: np.ndarray
    previous: np.ndarray
    noise: np.ndarray


class Step(NamedTuple):
    """One denoising step: its time and levels, and a row of `Coefficients`."""

    t: int
    alpha: float
    sigma: float
    x0: float
    x: float
    previous: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Sampler(ABC):
    """Draws samples with a denoiser by stepping from t = T to t = 0.

    Args:
        num_steps: denoising steps, out of the T that were trained: `time_grid`. None means all.
        clip: clip each step's estimate of x_0 to [−clip, clip]; None does not clip. The noise
            estimate is then the one that goes with the clipped x_0.
        temperature: multiplies all injected noise, the initial x_T included; at 0 samples are
            deterministic and equal.
        extra_steps: Diffusion-X (Pearce et al. 2023): further noise-free denoising
            steps at t = 1 after the last, which move samples to higher likelihood. Each is
            x ← x̂_0(x, t = 1).

    Raises:
        ConfigError: an option is out of its range, or, in `sample`, num_steps > T.
    """

    name: ClassVar[str]
    order: ClassVar[int]

    num_steps: int | None = None
    _: KW_ONLY
    clip: float | int | None = None
    temperature: float | int = 1.0
    extra_steps: int = 0

    def __post_init__(self) -> None:
        self._require(self.num_steps is None or self.num_steps >= 1, "num_steps", ">= 1")
        self._require(self.clip is None or self.clip > 0, "clip", "> 0")
        self._require(self.temperature >= 0, "temperature", ">= 0")
        self._require(self.extra_steps >= 0, "extra_steps", ">= 0")

    def _require(self, holds: bool, option: str, condition: str) -> None:
        if not holds:
            raise ConfigError(
                f"sampler '{self.name}': {option} must be {condition}, "
                f"got {getattr(self, option)!r}."
            )

    @abstractmethod
    def coefficients(
        self, alpha_t: np.ndarray, sigma_t: np.ndarray, alpha_s: np.ndarray, sigma_s: np.ndarray
    ) -> Coefficients:
        """Coefficients of the n steps between levels (n,); the last ends at α = 1, σ = 0."""

    def steps(self, schedule: Schedule) -> list[Step]:
        """All steps of a sampling call, extra ones included, computed in float64 on the host."""
        return [*_steps(self, schedule)]

    def sample(
        self,
        denoise: Denoise,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        prediction: Prediction,
        generator: Generator = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        initial_noise: Float[Tensor, " B *event"] | None = None,
    ) -> Float[Tensor, " B *event"]:
        """Draw samples of ``shape`` (B, …).

        Nothing here turns gradients off or waits for the device: the caller chooses ``no_grad``,
        or differentiates through the whole chain. Under autocast the state stays in ``dtype``.

        Args:
            denoise: maps x_t (B, …) and t (B,) int64 to a prediction (B, …); a `Denoiser` bound to
                its encoded condition, or what `guidance` returns.
            schedule: the schedule that the denoiser was trained with.
            shape: (B, …), any event shape.
            prediction: what the denoiser predicts.
            generator: source of all noise.
            device: where to sample; None is the schedule's device.
            dtype: of the state.
            initial_noise: standard normal numbers of ``shape`` in place of the initial draw; the
                temperature applies to them too.

        Raises:
            ConfigError: the sampler has more steps than were trained.
            ValueError: ``initial_noise`` has another shape.
        """
        device = schedule.alpha_bar.device if device is None else device
        steps = self.steps(schedule)
        times = torch.tensor([step.t for step in steps], device=device)  # one copy a call
        if initial_noise is None:
            initial_noise = draw_normal(shape, generator, device=device, dtype=dtype)
        elif tuple(initial_noise.shape) != tuple(shape):
            raise ValueError(
                f"initial_noise has shape {tuple(initial_noise.shape)}, not {tuple(shape)}"
            )
        x = initial_noise.to(device, dtype) * self.temperature
        previous = x  # read from the second step on only
        for step, t in zip(steps, times.unbind(), strict=True):
            output = denoise(x, t.expand(shape[0])).to(dtype)
            x0 = to_x0(output, x, step.alpha, step.sigma, prediction)
            if self.clip is not None:
                x0 = x0.clamp(-self.clip, self.clip)
            x = step.x0 * x0 + step.x * x
            if step.previous:
                x = x + step.previous * previous
            if step.noise:
                x = x + step.noise * draw_normal(shape, generator, device=device, dtype=dtype)
            previous = x0
        return x


@lru_cache(maxsize=64)  # many calls sample in the same steps
def _steps(sampler: Sampler, schedule: Schedule) -> tuple[Step, ...]:
    t = time_grid(sampler.num_steps or schedule.num_steps, schedule.num_steps)
    alpha_t, sigma_t = schedule.levels(t)
    alpha_s, sigma_s = schedule.levels(np.append(t[1:], 0))
    plan = sampler.coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    plan = plan._replace(noise=plan.noise * sampler.temperature)
    columns = (t, alpha_t, sigma_t, *plan)
    steps = [Step(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    (alpha_1,), (sigma_1,) = (level.tolist() for level in schedule.levels(np.array([1])))
    return (*steps, *[Step(1, alpha_1, sigma_1, x0=1.0, x=0.0)] * sampler.extra_steps)


def time_grid(num_steps: int, trained: int) -> np.ndarray:
    """Times (n,), int64, strictly falling from T = ``trained`` to 1: uniform in √t.

    n = T gives every time, n = 1 only T. Few steps are best spent near the data, where the
    denoiser changes fastest: for Gaussian data (σ 0.1, cosine, T = 128) ten DPM-Solver++ steps
    uniform in t down to T/10 lose half of the standard deviation, these are within two percent.

    Raises:
        ConfigError: unless 1 ≤ n ≤ T.
    """
    if not 1 <= num_steps <= trained:
        raise ConfigError(
            f"cannot sample in {num_steps} steps from a diffusion model trained with {trained}: "
            f"take 1 … {trained} (sampling_steps, or a sampler's num_steps)."
        )
    if num_steps == 1:
        return np.array([trained])
    roots = np.linspace(np.sqrt(trained), 1.0, num_steps)
    nearest = np.floor(roots**2 + 0.5).astype(np.int64)
    # Where neighbours round to one time, take the lowest times that are still free.
    return np.maximum(nearest, np.arange(num_steps, 0, -1))
