"""Noise schedules: how much of the data is left at each diffusion time.

Times run over t = 0 … T, where 0 is data and T (nearly) noise:
``x_t = α_t x_0 + σ_t ε`` with ``α_t = √ᾱ_t``, ``σ_t = √(1 − ᾱ_t)`` and ``ᾱ_0 = 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_offrl.common.errors import ConfigError, nearest
from lit_offrl.diffusion.denoiser import Rows, Times

ScheduleKind = Literal["linear", "cosine", "vp"]


class Levels(NamedTuple):
    """How much of the data and of the noise is in x_t at some times."""

    alpha: np.ndarray
    sigma: np.ndarray


def unknown(what: str, name: str, candidates: Iterable[str]) -> ConfigError:
    """Return the error of a name that is none of the candidates."""
    choices = ", ".join(candidates)
    return ConfigError(
        f"unknown {what} '{name}': choose from {choices}.{nearest(name, candidates)}"
    )


def linear_betas(num_steps: int) -> np.ndarray:
    """β (T,) from 1e-4 to 0.02 whatever T is (Ho et al. 2020, section 4, where T = 1000).

    Warning:
        With few steps this does not end in pure noise: ᾱ_T = 0.13 at T = 200, so that samples,
        which start from pure noise, start from where training never was.
    """
    return np.linspace(1e-4, 0.02, num_steps)


def cosine_betas(num_steps: int) -> np.ndarray:
    """β (T,) of the cosine ᾱ with offset 0.008, cut at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    angle = (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2
    remaining = np.cos(angle) ** 2
    return np.minimum(1 - remaining[1:] / remaining[:-1], 0.999)


def vp_betas(num_steps: int) -> np.ndarray:
    """β (T,) of the discrete VP-SDE with b from 0.1 to 10 (Xiao et al. 2022).

    ``β_t = 1 − exp(−b_min/T − (b_max − b_min)(2t − 1)/(2T²))``: ᾱ_T = exp(−5.05) for every T, so
    few steps (T = 5) still end in noise.
    """
    t = np.arange(1, num_steps + 1)
    low, high = 0.1, 10.0
    return -np.expm1(-low / num_steps - (high - low) * (2 * t - 1) / (2 * num_steps**2))


BETAS: Mapping[str, Callable[[int], np.ndarray]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "vp": vp_betas,
}


def alpha_bar_table(kind: str, num_steps: int) -> np.ndarray:
    """ᾱ (T + 1,) in float64, with ᾱ_0 = 1."""
    return np.concatenate([[1.0], np.cumprod(1 - BETAS[kind](num_steps))])


class Schedule(nn.Module):
    """A noise schedule, stored in checkpoints and held to what was trained.

    Buffers are float32, rounded from tables in float64 (1 − ᾱ_1 in float32 would be wrong in the
    fourth digit), and stay float32 when the model they belong to is cast.

    Args:
        kind: ``linear`` (see the warning of `linear_betas`), ``cosine`` or ``vp``.
        num_steps: T, the number of diffusion steps trained.

    Attributes:
        alpha_bar: ᾱ (T + 1,).
        times: 0 … T, (T + 1,), int64.

    Raises:
        ConfigError: unknown kind; T < 1; or a state_dict of another kind or T is loaded. Sampling
            in fewer steps does not need another schedule: samplers subsample the trained T.
    """

    alpha_bar: Tensor
    times: Tensor
    _alpha: Tensor
    _sigma: Tensor

    def __init__(self, kind: str = "cosine", num_steps: int = 128) -> None:
        super().__init__()
        if kind not in BETAS:
            raise unknown("noise schedule", kind, BETAS)
        if num_steps < 1:
            raise ConfigError(f"a noise schedule needs num_steps >= 1, got {num_steps}.")
        self.kind = kind
        self.num_steps = num_steps
        # A host copy in full precision: samplers compute their coefficients from it without ever
        # waiting for a device.
        self._table = alpha_bar_table(kind, num_steps)
        for name, values in self._float32().items():
            # Only ᾱ is stored: the rest follows from it.
            self.register_buffer(name, values, persistent=name == "alpha_bar")
        self.register_buffer("times", torch.arange(num_steps + 1), persistent=False)

    def extra_repr(self) -> str:
        """Show what makes one schedule differ from another."""
        return f"kind={self.kind!r}, num_steps={self.num_steps}"

    def alpha(self, t: Times, ndim: int = 2) -> Float[Tensor, " B ..."]:
        """α_t = √ᾱ_t shaped (B, 1, …) with ``ndim`` dimensions."""
        return self._alpha[t].reshape(-1, *(1,) * (ndim - 1))

    def sigma(self, t: Times, ndim: int = 2) -> Float[Tensor, " B ..."]:
        """σ_t = √(1 − ᾱ_t) shaped (B, 1, …) with ``ndim`` dimensions."""
        return self._sigma[t].reshape(-1, *(1,) * (ndim - 1))

    def snr(self, t: Times) -> Float[Tensor, " B"]:
        """Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t), for t ≥ 1."""
        return (self._alpha[t] / self._sigma[t]).square()

    def levels(self, t: np.ndarray) -> Levels:
        """α_t and σ_t in float64 on the host, for host times of any shape."""
        return Levels(np.sqrt(self._table[t]), np.sqrt(1 - self._table[t]))

    def q_sample(self, x0: Rows, t: Times, noise: Rows) -> Rows:
        """Draw x_t ~ q(x_t | x_0), given its standard normal ``noise``; in the dtype of ``x0``."""
        return (self.alpha(t, x0.ndim) * x0 + self.sigma(t, x0.ndim) * noise).to(x0.dtype)

    def _float32(self) -> dict[str, Tensor]:
        alpha, sigma = self.levels(np.arange(self.num_steps + 1))
        tables = {"alpha_bar": self._table, "_alpha": alpha, "_sigma": sigma}
        return {name: torch.from_numpy(values).float() for name, values in tables.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Schedule:
        # What .to(), .half(), .cuda() call. Follow the device but not the dtype: ᾱ rounded to
        # bfloat16 is another schedule.
        super()._apply(fn, recurse)
        for name, values in self._float32().items():
            self._buffers[name] = values.to(getattr(self, name).device)
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if (held := state_dict.get(prefix + "alpha_bar")) is not None:
            stored = held.detach().double().cpu().numpy()

            def is_stored(table: np.ndarray) -> bool:
                return table.shape == stored.shape and np.allclose(table, stored, rtol=0, atol=1e-6)

            if not is_stored(self._table):
                steps = len(stored) - 1
                same = (kind for kind in BETAS if is_stored(alpha_bar_table(kind, steps)))
                raise ConfigError(
                    f"the checkpoint was trained with the noise schedule '{next(same, 'unknown')}'"
                    f" of {steps} steps, this model has '{self.kind}' of {self.num_steps}: build it"
                    " with the trained one (for fewer sampling steps set the sampler's num_steps"
                    " instead)."
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
