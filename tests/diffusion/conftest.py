"""Data whose exact denoiser is known: the ground truth of this room."""

import math

import pytest
import torch

from lit_offrl.diffusion import to_epsilon, to_v


class Mixture:
    """A mixture of K Gaussians on the line, applied to each coordinate of x by itself."""

    def __init__(self, weights, means, stds):
        self.weights, self.means, self.stds = (
            torch.tensor(values, dtype=torch.float64) for values in (weights, means, stds)
        )

    def posterior_mean(self, x, alpha, sigma):
        """E[x_0 | x_t], float64."""
        x = x.double()[..., None]
        alpha, sigma = alpha.double()[..., None], sigma.double()[..., None]
        variance = alpha**2 * self.stds**2 + sigma**2
        offset = x - alpha * self.means
        logits = self.weights.log() - 0.5 * variance.log() - 0.5 * offset**2 / variance
        component = self.means + alpha * self.stds**2 / variance * offset
        return (logits.softmax(-1) * component).sum(-1)

    def denoiser(self, schedule, prediction="x0"):
        """The exact denoiser, as a callable for samplers, in the dtype of its input."""

        def denoise(x, t):
            alpha, sigma = schedule.alpha(t, x.ndim), schedule.sigma(t, x.ndim)
            x0 = self.posterior_mean(x, alpha, sigma)
            match prediction:
                case "x0":
                    output = x0
                case "epsilon":
                    output = to_epsilon(x0, x.double(), alpha, sigma, "x0")
                case "v":
                    output = to_v(x0, x.double(), alpha, sigma, "x0")
            return output.to(x.dtype)

        return denoise


class Gaussian(Mixture):
    """One Gaussian, for which the probability-flow ODE has a closed form too."""

    def __init__(self, mean, std):
        super().__init__([1.0], [mean], [std])
        self.mean, self.std = mean, std

    def posterior_mean(self, x, alpha, sigma):
        """E[x_0 | x_t], float64; linear in x_t, so quicker than the mixture's."""
        alpha, sigma = alpha.double(), sigma.double()
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x.double() - alpha * self.mean)

    def flow(self, x_end, schedule):
        """The exact deterministic map from x_T to x_0."""
        alpha = math.sqrt(schedule.alpha_bar[-1].item())
        spread = math.sqrt(alpha**2 * self.std**2 + 1 - alpha**2)
        return self.mean + self.std * (x_end - alpha * self.mean) / spread


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)


@pytest.fixture
def gaussian():
    return Gaussian


@pytest.fixture
def mixture():
    return Mixture


@pytest.fixture
def seeded():
    """Make a torch.Generator from a seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)
