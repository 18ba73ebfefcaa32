"""How latents of the diffusion prior are drawn: the sampler and the guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_offrl.common.ranges import require_in
from lit_offrl.diffusion import Sampler, make_sampler

SamplerName = Literal["ddpm", "ddim", "dpm++"]
Against = Literal["nothing", "state"]
"""What the unconditional model of classifier-free guidance sees: neither state nor goal, or the
state without the goal, which only sharpens where the goal leads."""


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn.

    Args:
        sampler: Algorithm: ``ddpm`` (the paper's with all T steps and 10 extra ones), ``ddim`` or
            ``dpm++``.
        sampling_steps: Number of the sampler's steps, 1 to T; T if None.
        extra_steps: Number of further steps at t = 1, as in Diffusion-X (appendix E); at least 0.
        guidance: Weight w of classifier-free guidance, u + w (c − u) for the conditional model c
            and the unconditional one u. 1 is c alone, and saves half of the network's calls.

    Raises:
        ConfigError: An option is out of its range.
    """

    sampler: SamplerName = "dpm++"
    sampling_steps: int | None = 10
    extra_steps: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        require_in("[1, inf)", sampling_steps=self.sampling_steps)
        require_in("[0, inf)", extra_steps=self.extra_steps)
        require_in("(-inf, inf)", guidance=self.guidance)
        self.make()

    def make(self) -> Sampler:
        """Return the sampler.

        Raises:
            ConfigError: There is none of that name.
        """
        options = {"num_steps": self.sampling_steps, "extra_steps": self.extra_steps}
        return make_sampler(self.sampler, **options)
