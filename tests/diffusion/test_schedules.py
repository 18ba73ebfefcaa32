import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from lit_offrl.common.errors import ConfigError
from lit_offrl.diffusion import Schedule

KINDS = ("linear", "cosine", "vp")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 128, 1000])
def test_alpha_bar_falls_from_one_towards_zero(kind, num_steps):
    alpha_bar = Schedule(kind, num_steps).alpha_bar
    assert alpha_bar.shape == (num_steps + 1,)
    assert alpha_bar.dtype == torch.float32
    assert alpha_bar[0] == 1
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[-1] > 0


def test_linear_keeps_its_betas_whatever_the_number_of_steps():
    for num_steps in (200, 1000):
        alpha_bar = Schedule("linear", num_steps).alpha_bar.double()
        beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
        torch.testing.assert_close(beta[0].item(), 1e-4, rtol=1e-2, atol=0)
        torch.testing.assert_close(beta[-1].item(), 0.02, rtol=1e-4, atol=0)
    # What its docstring warns of.
    assert Schedule("linear", 200).alpha_bar[-1].item() == pytest.approx(0.13, abs=0.005)


def test_cosine_follows_its_closed_form_up_to_the_cut():
    num_steps = 50
    t = np.arange(num_steps + 1)
    f = np.cos((t / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = Schedule("cosine", num_steps).alpha_bar.numpy()
    np.testing.assert_allclose(alpha_bar[:-1], (f / f[0])[:-1], rtol=1e-6)
    np.testing.assert_allclose(alpha_bar[-1], alpha_bar[-2] * 0.001, rtol=1e-5)


def test_vp_is_the_sde_at_every_step():
    # ᾱ(u) = exp(−0.1 u − (10 − 0.1) u²/2) at u = t/T, for any T: few steps still reach noise.
    for num_steps in (5, 100):
        u = np.arange(num_steps + 1) / num_steps
        expected = np.exp(-0.1 * u - 0.5 * 9.9 * u**2)
        np.testing.assert_allclose(Schedule("vp", num_steps).alpha_bar, expected, rtol=1e-6)


def test_levels_are_precise_where_little_noise_is_left():
    schedule = Schedule("linear", 1000)
    assert schedule.sigma(torch.tensor([1])).item() == pytest.approx(1e-2, rel=1e-6)
    assert schedule.snr(torch.tensor([1])).item() == pytest.approx(0.9999 / 1e-4, rel=1e-6)
    alpha, sigma = schedule.levels(np.array([0, 1]))
    np.testing.assert_allclose(sigma, [0, 1e-2], rtol=1e-12)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-15)


def test_q_sample_has_the_shape_and_the_law_it_says():
    schedule = Schedule("cosine", 10)
    t = torch.tensor([0, 4, 10])
    x0, noise = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    x_t = schedule.q_sample(x0, t, noise)
    assert schedule.alpha(t, 3).shape == schedule.sigma(t, 3).shape == (3, 1, 1)
    torch.testing.assert_close(x_t[0], x0[0])
    for row, step in enumerate(t.tolist()):
        alpha_bar = schedule.alpha_bar[step].item()
        expected = math.sqrt(alpha_bar) * x0[row] + math.sqrt(1 - alpha_bar) * noise[row]
        torch.testing.assert_close(x_t[row], expected)
    assert schedule.q_sample(x0.bfloat16(), t, noise.bfloat16()).dtype == torch.bfloat16


def test_casting_the_model_leaves_the_schedule_in_float32():
    model = nn.ModuleDict({"schedule": Schedule("vp", 5), "net": nn.Linear(2, 2)}).bfloat16()
    assert model["net"].weight.dtype == torch.bfloat16
    assert torch.equal(model["schedule"].alpha_bar, Schedule("vp", 5).alpha_bar)
    t = torch.tensor([1, 5])
    assert torch.equal(model["schedule"].sigma(t), Schedule("vp", 5).sigma(t))
    assert Schedule("vp", 5).to("meta").alpha_bar.device.type == "meta"


def test_a_checkpoint_restores_the_schedule_and_no_other():
    model = nn.ModuleDict({"schedule": Schedule("cosine", 128)})
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    assert list(stored) == ["schedule.alpha_bar"]

    same = nn.ModuleDict({"schedule": copy.deepcopy(model["schedule"])})
    same.load_state_dict(stored)
    assert torch.equal(same["schedule"].alpha_bar, model["schedule"].alpha_bar)

    other_length = nn.ModuleDict({"schedule": Schedule("cosine", 64)})
    with pytest.raises(ConfigError, match=r"'cosine' of 128 steps.*'cosine' of 64.*num_steps"):
        other_length.load_state_dict(stored)
    other_kind = nn.ModuleDict({"schedule": Schedule("vp", 128)})
    with pytest.raises(ConfigError, match=r"'cosine' of 128 steps.*'vp' of 128"):
        other_kind.load_state_dict(stored)
    with pytest.raises(ConfigError, match=r"'unknown' of 128 steps"):
        other_kind.load_state_dict({"schedule.alpha_bar": torch.linspace(1, 0, 129)})
    # Refused before anything was written.
    assert torch.equal(other_kind["schedule"].alpha_bar, Schedule("vp", 128).alpha_bar)


def test_wrong_arguments_are_one_clear_line():
    with pytest.raises(ConfigError, match=r"'cosin'.*Did you mean 'cosine'\?"):
        Schedule("cosin", 10)
    with pytest.raises(ConfigError, match="num_steps >= 1, got 0"):
        Schedule("vp", 0)
