"""Samplers: one loop, and DDPM, DDIM and DPM-Solver++(2M) as its coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.common.randomness import Generator, draw_normal
from lit_offrl.diffusion.denoiser import Denoise, Rows
from lit_offrl.diffusion.schedules import Levels, Schedule, unknown
from lit_offrl.diffusion.targets import Prediction, to_x0

Clipping = Literal["sample", "estimate", "none"]
Variance = Literal["beta", "posterior"]


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
        num_steps: Number of denoising steps, out of the T that were trained: `time_grid`. None
            means all.
        clip: Bound of what is clipped to [−clip, clip]; None disables clipping.
        clipping: What is clipped in each step. ``estimate``: the estimate of x_0, as Diffusion-QL's
            code and Ho et al.'s do; the noise estimate is then the one that goes with the clipped
            x_0. ``sample``: the noisy x_s that the step ends in, its noise included, as IDQL's and
            ACD's code does; the initial noise is not clipped. ``none``: nothing. (Hugging Face's
            ``clip_sample`` is ``estimate``.)
        temperature: Factor of all injected noise, including the initial x_T. At 0 samples are
            deterministic and equal.
        extra_steps: Diffusion-X (Pearce et al. 2023): further noise-free denoising
            steps at t = 1 after the last, which move samples to higher likelihood. Each is
            x ← x̂_0(x, t = 1).

    Raises:
        ConfigError: an option is out of its range, or, in `sample`, num_steps > T.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 1

    num_steps: int | None = None
    _: KW_ONLY
    clip: float | int | None = None
    clipping: Clipping = "estimate"
    temperature: float | int = 1.0
    extra_steps: int = 0

    def __post_init__(self) -> None:
        self._require(self.num_steps is None or self.num_steps >= 1, "num_steps", ">= 1")
        self._require(self.clip is None or self.clip > 0, "clip", "> 0")
        self._require_choice("clipping", get_args(Clipping))
        self._require(self.temperature >= 0, "temperature", ">= 0")
        self._require(self.extra_steps >= 0, "extra_steps", ">= 0")

    def _require(self, holds: bool, option: str, condition: str) -> None:
        if not holds:
            raise ConfigError(
                f"sampler '{self.name}': {option} must be {condition}, "
                f"got {getattr(self, option)!r}."
            )

    def _require_choice(self, option: str, choices: Sequence[str]) -> None:
        listed = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        self._require(getattr(self, option) in choices, option, listed)

    @abstractmethod
    def coefficients(self, t: Levels, s: Levels) -> Coefficients:
        """Coefficients of the n steps from levels t (n,) to s (n,); the last s has α = 1, σ = 0."""

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
        initial_noise: Rows | None = None,
        before: Callable[[Rows, Step], Rows] | None = None,
    ) -> Rows:
        """Draw samples of ``shape`` (B, …).

        Nothing here turns gradients off or waits for the device: the caller chooses ``no_grad``,
        or differentiates through the whole chain. Under autocast the state stays in ``dtype``.

        Args:
            denoise: The denoiser with its condition applied, or what `guidance` returns.
            schedule: The schedule that the denoiser was trained with.
            shape: (B, …), any event shape.
            prediction: What the denoiser predicts.
            generator: Source of all noise.
            device: Device of the samples; None is the schedule's device.
            dtype: Dtype of the state.
            initial_noise: Standard normal numbers of ``shape`` instead of the initial draw. The
                temperature applies to them, too.
            before: Maps x_t and its step to the x_t that is denoised instead, such as x_t with some
                numbers set to known values, or moved along a gradient.

        Raises:
            ConfigError: the sampler has more steps than were trained.
            ValueError: ``initial_noise`` has another shape.
        """
        device = schedule.alpha_bar.device if device is None else device
        steps = self.steps(schedule)
        times = schedule.times.to(device)  # no copy of Python's numbers, which would wait for it
        if initial_noise is None:
            initial_noise = draw_normal(shape, generator, device=device, dtype=dtype)
        elif tuple(initial_noise.shape) != tuple(shape):
            raise ValueError(
                f"initial_noise has shape {tuple(initial_noise.shape)}, not {tuple(shape)}"
            )
        x = initial_noise.to(device, dtype) * self.temperature
        previous = x  # read from the second step on only
        of_estimate = self.clip if self.clipping == "estimate" else None
        of_sample = self.clip if self.clipping == "sample" else None
        for step in steps:
            x = x if before is None else before(x, step)
            output = denoise(x, times[step.t].expand(shape[0])).to(dtype)
            x0 = to_x0(output, x, step.alpha, step.sigma, prediction)
            if of_estimate is not None:
                x0 = x0.clamp(-of_estimate, of_estimate)
            x = step.x0 * x0 + step.x * x
            if step.previous:
                x = x + step.previous * previous
            if step.noise:
                x = x + step.noise * draw_normal(shape, generator, device=device, dtype=dtype)
            if of_sample is not None:
                x = x.clamp(-of_sample, of_sample)
            previous = x0
        return x


@lru_cache(maxsize=64)  # many calls sample in the same steps
def _steps(sampler: Sampler, schedule: Schedule) -> tuple[Step, ...]:
    t = time_grid(sampler.num_steps or schedule.num_steps, schedule.num_steps)
    levels = schedule.levels(t)
    plan = sampler.coefficients(levels, schedule.levels(np.append(t[1:], 0)))
    plan = plan._replace(noise=plan.noise * sampler.temperature)
    columns = (t, *levels, *plan)
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
    rounded = np.floor(roots**2 + 0.5).astype(np.int64)
    # Where neighbours round to one time, take the lowest times that are still free.
    return np.maximum(rounded, np.arange(num_steps, 0, -1))


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling: x_s from q(x_s | x_t, x̂_0) (Ho et al. 2020, eqs. 6, 7 and algorithm 2).

    On a subsampled grid q is that of the coarse chain, from ratios of ᾱ: β = 1 − ᾱ_t/ᾱ_s.

    Args:
        variance: Variance of a step: ``beta`` (β, exact for data that are standard normal) or
            ``posterior`` (β σ_s²/σ_t², exact for data that are one point). They differ little with
            many steps. With few out of many, samples are too wide by ``beta``, too narrow by
            ``posterior``; with all of few (vp, T = 5) too narrow by both, more by ``posterior``.
            The last step adds no noise.

    Raises:
        ConfigError: as `Sampler`, or an unknown variance.
    """

    name: ClassVar[str] = "ddpm"

    _: KW_ONLY
    variance: Variance = "beta"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_choice("variance", get_args(Variance))

    def coefficients(self, t: Levels, s: Levels) -> Coefficients:
        """Mean and standard deviation of q(x_s | x_t, x_0)."""
        ratio = t.alpha / s.alpha
        beta = 1 - ratio**2
        shrunk = (s.sigma / t.sigma) ** 2
        posterior = self.variance == "posterior"
        variance = beta * shrunk if posterior else np.where(s.sigma > 0, beta, 0.0)
        return Coefficients(
            x0=s.alpha * beta / t.sigma**2,
            x=ratio * shrunk,
            previous=np.zeros_like(beta),
            noise=np.sqrt(variance),
        )


@dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM (Song et al. 2021, eqs. 12 and 16): x_s = α_s x̂_0 + √(σ_s² − n²) ε̂ + n z.

    Args:
        eta: The noise n is ``eta`` times the posterior standard deviation: 0 is a deterministic map
            from noise to data (first order in the step), 1 is `DDPM` with posterior variance.

    Raises:
        ConfigError: as `Sampler`, or eta outside [0, 1].
    """

    name: ClassVar[str] = "ddim"

    _: KW_ONLY
    eta: float | int = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 <= self.eta <= 1, "eta", "in [0, 1]")

    def coefficients(self, t: Levels, s: Levels) -> Coefficients:
        """ε̂ = (x_t − α_t x̂_0)/σ_t put in, so that only x̂_0 and x_t are left."""
        noise = self.eta * s.sigma / t.sigma * np.sqrt(1 - (t.alpha / s.alpha) ** 2)
        direction = np.sqrt(s.sigma**2 - noise**2) / t.sigma
        x0 = s.alpha - direction * t.alpha
        return Coefficients(x0, x=direction, previous=np.zeros_like(noise), noise=noise)


@dataclass(frozen=True)
class DPMSolverPP(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): deterministic, one forward a step.

    Extrapolates x̂_0 linearly in λ = log(α/σ) from this step and the one before. The first step,
    which has none before, is of first order; so is the last, where λ is infinite.
    """

    name: ClassVar[str] = "dpm++"
    order: ClassVar[int] = 2

    def coefficients(self, t: Levels, s: Levels) -> Coefficients:
        """x_s = (σ_s/σ_t) x_t + α_s (1 − e^{−h}) D, D = x̂_0 + c (x̂_0 − x̂_0'), c = h/(2 h')."""
        decay = s.sigma / t.sigma * t.alpha / s.alpha  # e^{−h}: no infinity at σ = 0
        gain = s.alpha * (1 - decay)
        h = -np.log(decay[:-1])
        slope = np.zeros_like(gain)
        slope[1:-1] = h[1:] / (2 * h[:-1])
        return Coefficients(
            x0=gain * (1 + slope),
            x=s.sigma / t.sigma,
            previous=-gain * slope,
            noise=np.zeros_like(gain),
        )


SAMPLERS: Mapping[str, type[Sampler]] = {kind.name: kind for kind in (DDPM, DDIM, DPMSolverPP)}


def make_sampler(name: str, *, variance: Variance | None = None, **options: Any) -> Sampler:
    """Build a sampler from its name (``ddpm``, ``ddim``, ``dpm++``) and its options.

    Args:
        name: Name of the sampler.
        variance: Variance of `DDPM`. Other samplers have no such option.
        **options: Options of the sampler's class.

    Raises:
        ConfigError: unknown name or option, or an option out of range.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    known = [field.name for field in fields(SAMPLERS[name])]
    if variance is not None and "variance" in known:
        options["variance"] = variance
    for option in options:
        if option not in known:
            raise ConfigError(
                f"sampler '{name}' has no option '{option}': it has {', '.join(known)}."
                + nearest(option, known)
            )
    return SAMPLERS[name](**options)
