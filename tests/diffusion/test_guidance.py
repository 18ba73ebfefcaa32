import pytest
import torch

from lit_offrl.diffusion import (
    DDIM,
    DDPM,
    DPMSolverPP,
    Schedule,
    classifier_free_guidance,
    classifier_guidance,
)

SCHEDULE = Schedule("cosine", 100)
PREDICTIONS = ["epsilon", "x0", "v"]
MEAN, STD = 0.3, 0.5


class Conditional:
    """The exact denoiser of N(condition, STD²) that counts its forwards and their rows."""

    def __init__(self, gaussian, prediction):
        self.unit, self.prediction, self.rows = gaussian(0.0, STD), prediction, []

    def __call__(self, x_t, t, mean):
        self.rows.append(len(x_t))
        # Shifting the data by m shifts x_t by α m: ε stays, x_0 gains m, v loses σ m.
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        output = self.unit.denoiser(SCHEDULE, self.prediction)(x_t - alpha * mean, t)
        return output + {"epsilon": 0.0, "x0": mean, "v": -sigma * mean}[self.prediction]


def at_every_time(rows=200):
    """Noisy points at times 1 … 100."""
    return 2 * torch.randn(rows, 2), torch.arange(rows) % 100 + 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_guided_gaussians_move_by_the_scaled_difference(gaussian, prediction, scale):
    # Scores of N(c, s²) and N(u, s²) differ by a constant at each t: u + w (c − u) is the mean.
    x_t, t = at_every_time()
    conditional, unconditional = torch.full((200, 2), 1.0), torch.full((200, 2), -0.5)
    guided = classifier_free_guidance(
        Conditional(gaussian, prediction), conditional, unconditional, scale
    )
    expected = gaussian(-0.5 + scale * 1.5, STD).denoiser(SCHEDULE, prediction)
    torch.testing.assert_close(guided(x_t, t), expected(x_t, t), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(30), DPMSolverPP(10)], ids=repr)
@pytest.mark.parametrize(("scale", "rows"), [(1.0, 6), (1, 6), (0.0, 6), (3.0, 12)])
def test_scale_one_costs_one_forward_and_others_one_of_twice_the_rows(
    gaussian, sampler, scale, rows
):
    network = Conditional(gaussian, "epsilon")
    guided = classifier_free_guidance(network, torch.ones(6, 2), torch.zeros(1, 2), scale)
    sampler.sample(guided, SCHEDULE, (6, 2), prediction="epsilon")
    assert network.rows == [rows] * (sampler.num_steps or 100)


def test_structured_encodings_are_joined_once():
    joined = []

    def denoise(x_t, t, encoded):
        joined.append(encoded)
        return x_t + encoded["state"][0] + encoded["state"][1]

    conditional = {"state": (torch.ones(3, 2), 2 * torch.ones(3, 1)), "mask": None}
    null = {"state": (torch.zeros(1, 2), torch.zeros(3, 1)), "mask": None}
    guided = classifier_free_guidance(denoise, conditional, null, 2.0)
    for t in (2, 1):
        output = guided(torch.zeros(3, 2), torch.full((3,), t))
        torch.testing.assert_close(output, torch.full((3, 2), 6.0))
    assert joined[0] is joined[1]
    assert joined[0]["state"][0].shape == (6, 2)


def test_guidance_leaves_autocast_before_it_magnifies():
    net = torch.nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        guided = classifier_free_guidance(
            lambda x, t, c: net(x + c), torch.ones(3, 2), torch.zeros(3, 2), 4.0
        )
        assert guided(torch.randn(3, 2), torch.ones(3, dtype=torch.int64)).dtype == torch.float32


def posterior(x_t, t):
    """Mean and variance of x_0 given x_t for data N(MEAN, STD²)."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    marginal = alpha**2 * STD**2 + sigma**2
    mean = MEAN + alpha * STD**2 / marginal * (x_t - alpha * MEAN)
    return mean, STD**2 * sigma**2 / marginal


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_linear_energy_shifts_a_gaussian(gaussian, prediction):
    # N(m, s²) · exp(k x_0) = N(m + k s², s²); log E[exp(k x_0) | x_t] = k E[x_0 | x_t] + const.
    k, scale = 1.5, 2.0
    guided = classifier_guidance(
        gaussian(MEAN, STD).denoiser(SCHEDULE, prediction),
        lambda x_t, t: k * posterior(x_t, t)[0].sum(-1),
        scale,
        schedule=SCHEDULE,
        prediction=prediction,
    )
    expected = gaussian(MEAN + scale * k * STD**2, STD).denoiser(SCHEDULE, prediction)
    x_t, t = at_every_time()
    torch.testing.assert_close(guided(x_t, t), expected(x_t, t), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_quadratic_energy_multiplies_two_gaussians(gaussian, prediction, mode):
    # y = 2 observed through noise of variance 0.4: log p(y | x_t) = log N(y; E[x_0], Var + 0.4).
    y, noise = 2.0, 0.4

    def log_likelihood(x_t, t):
        mean, variance = posterior(x_t, t)
        return -(0.5 * (y - mean) ** 2 / (variance + noise)).sum(-1)

    guided = classifier_guidance(
        gaussian(MEAN, STD).denoiser(SCHEDULE, prediction),
        log_likelihood,
        1.0,
        schedule=SCHEDULE,
        prediction=prediction,
    )
    precision = 1 / STD**2 + 1 / noise
    product = gaussian((MEAN / STD**2 + y / noise) / precision, precision**-0.5)
    x_t, t = at_every_time()
    expected = product.denoiser(SCHEDULE, prediction)(x_t, t)
    with mode():
        torch.testing.assert_close(guided(x_t, t), expected, rtol=1e-3, atol=2e-3)
        start = torch.linspace(-2, 2, 7)[:, None]
        samples = DPMSolverPP().sample(
            guided, SCHEDULE, start.shape, prediction=prediction, initial_noise=start
        )
    torch.testing.assert_close(samples, product.flow(start, SCHEDULE), rtol=0, atol=0.01)


def test_classifier_gradients_stay_within_the_row(gaussian):
    # Each row is its own: the same row alone is guided the same.
    guided = classifier_guidance(
        gaussian(MEAN, STD).denoiser(SCHEDULE, "v"),
        lambda x_t, t: -(x_t**4).sum(-1),
        0.7,
        schedule=SCHEDULE,
        prediction="v",
    )
    x_t, t = at_every_time(8)
    together = guided(x_t, t)
    alone = torch.cat([guided(x_t[i : i + 1], t[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone)
