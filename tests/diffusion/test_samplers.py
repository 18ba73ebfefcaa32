"""Options, edges and promises of the sampling loop."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.diffusion import DDIM, DDPM, DPMSolverPP, Schedule, make_sampler, time_grid

KINDS = [DDPM, DDIM, DPMSolverPP]
SCHEDULE = Schedule("cosine", 12)


def draw(sampler, denoise, shape=(6, 3), prediction="x0", schedule=SCHEDULE, **options):
    return sampler.sample(denoise, schedule, shape, prediction=prediction, **options)


def test_time_grid_falls_from_t_to_one():
    for trained in (1, 2, 3, 5, 12, 50, 128, 1000):
        for num_steps in {1, 2, 3, 5, 11, trained // 2, trained - 1, trained}:
            if not 1 <= num_steps <= trained:
                continue
            grid = time_grid(num_steps, trained)
            assert len(grid) == num_steps and grid[0] == trained
            assert num_steps == 1 or grid[-1] == 1
            assert (np.diff(grid) < 0).all()
    assert time_grid(9, 9).tolist() == list(range(9, 0, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_more_steps_than_trained_are_refused(kind):
    with pytest.raises(ConfigError, match=r"in 13 steps .* trained with 12: .* 1 … 12"):
        draw(kind(13), lambda x, t: x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("option", "value"),
    [("num_steps", 0), ("clip", 0.0), ("temperature", -0.5), ("extra_steps", -1)],
)
def test_options_out_of_range_are_refused(kind, option, value):
    with pytest.raises(ConfigError, match=f"sampler '{kind.name[:4]}.*{option} must be .*{value}"):
        kind(**{option: value})


def test_a_sampler_by_name():
    assert make_sampler("ddpm", variance="posterior", clip=1.0) == DDPM(
        variance="posterior", clip=1.0
    )
    assert make_sampler("ddim", num_steps=5, eta=0.5) == DDIM(5, eta=0.5)
    assert make_sampler("dpm++", num_steps=5) == DPMSolverPP(5)
    with pytest.raises(ConfigError, match=r"'ddpn'.*Did you mean 'ddpm'\?"):
        make_sampler("ddpn")
    with pytest.raises(ConfigError, match=r"no option 'tempature'.*Did you mean 'temperature'\?"):
        make_sampler("ddim", tempature=0.5)
    with pytest.raises(ConfigError, match=r"eta must be in \[0, 1\], got 1.5"):
        make_sampler("ddim", eta=1.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [None, 12, 4, 2, 1])
def test_times_come_as_int64_rows_once_a_step(kind, num_steps):
    seen = []

    def denoise(x, t):
        assert t.shape == (6,) and t.dtype == torch.int64 and (t == t[0]).all()
        seen.append(t[0].item())
        return 0.5 * x

    assert draw(kind(num_steps), denoise).isfinite().all()
    assert seen == time_grid(num_steps or 12, 12).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", [(), (3,), (4, 2), (2, 3, 5)])
def test_any_event_shape(kind, event):
    samples = draw(kind(3), lambda x, t: 0.5 * x, (2, *event))
    assert samples.shape == (2, *event) and samples.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_clip_bounds_every_estimate_of_the_data(kind):
    # An estimate far outside: with the clip the chain behaves as if it were the bound.
    far = draw(kind(clip=0.8), lambda x, t: torch.full_like(x, 50.0), generator=None)
    torch.testing.assert_close(far, torch.full_like(far, 0.8))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    clipped, plain = (
        draw(kind(clip=clip), denoise, generator=generator)
        for clip, denoise, generator in [
            (0.8, lambda x, t: 3 * x, generators[0]),
            (None, lambda x, t: (3 * x).clamp(-0.8, 0.8), generators[1]),
        ]
    )
    assert torch.equal(clipped, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_scales_all_injected_noise(kind, seeded):
    denoise = lambda x, t: 0.5 * x  # noqa: E731 (linear: samples are linear in the noise)
    cold = draw(kind(temperature=0.25), denoise, generator=seeded())
    warm = draw(kind(), denoise, generator=seeded())
    torch.testing.assert_close(cold, 0.25 * warm)
    initial = torch.randn(6, 3, generator=seeded())
    if kind is not DDPM:  # the others draw nothing but the initial noise
        given = draw(kind(temperature=0.25), denoise, initial_noise=initial)
        torch.testing.assert_close(given, cold)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_zero_is_deterministic(kind, gaussian):
    denoise = gaussian(0.7, 0.5).denoiser(SCHEDULE)
    first, second = (draw(kind(temperature=0.0), denoise) for _ in range(2))
    assert torch.equal(first, second)
    assert (first == first[0, 0]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [None, 3])
def test_extra_steps_denoise_further_at_time_one(kind, num_steps, gaussian, seeded):
    times = []
    exact = gaussian(0.7, 0.1).denoiser(SCHEDULE)

    def denoise(x, t):
        times.append(t[0].item())
        return exact(x, t)

    plain = draw(kind(num_steps), exact, generator=seeded())
    further = draw(kind(num_steps, extra_steps=10), denoise, generator=seeded())
    assert times == time_grid(num_steps or 12, 12).tolist() + [1] * 10
    for _ in range(10):
        plain = exact(plain, torch.ones(6, dtype=torch.int64))
    torch.testing.assert_close(further, plain)


def test_extra_steps_move_samples_to_higher_likelihood(gaussian, seeded):
    schedule, data = Schedule("vp", 5), gaussian(0.7, 0.3)
    plain, further = (
        draw(
            DDPM(extra_steps=extra),
            data.denoiser(schedule),
            (500, 1),
            schedule=schedule,
            generator=seeded(),
        )
        for extra in (0, 2)
    )
    assert (plain - 0.7).abs().mean() > 3 * (further - 0.7).abs().mean()


def test_what_is_known_is_set_before_every_step(seeded):
    """Half of each sample is set to 9, which the denoiser sees, and the step's time with it."""
    schedule, seen, times = Schedule("cosine", 6), [], []

    def before(x, step):
        times.append(step.t)
        return torch.cat([x[:, :1], torch.full_like(x[:, 1:], 9.0)], dim=1)

    def denoise(x, t):
        seen.append((x.clone(), t.tolist()))
        return torch.zeros_like(x)

    options = {"prediction": "x0", "generator": seeded(0)}
    free = DDPM().sample(denoise, schedule, (3, 2), **options)
    mine, seen[:] = seen[:], []
    options["generator"] = seeded(0)
    known = DDPM().sample(denoise, schedule, (3, 2), before=before, **options)
    assert times == [6, 5, 4, 3, 2, 1] and [t for _, t in seen] == [[t] * 3 for t in times]
    assert all((x[:, 1] == 9).all() for x, _ in seen)
    assert all(torch.equal(a[:, 0], b[:, 0]) for (a, _), (b, _) in zip(seen, mine, strict=True))
    assert torch.equal(known[:, 0], free[:, 0])


def test_initial_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 3\), not \(6, 3\)"):
        draw(DDIM(), lambda x, t: x, initial_noise=torch.zeros(1, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_draw_the_samples_of_one_process(kind, gaussian):
    denoise = gaussian(0.7, 0.5).denoiser(SCHEDULE)
    sampler = kind(eta=0.5) if kind is DDIM else kind()
    whole, first, second = (
        draw(
            sampler,
            denoise,
            (rows, 3),
            generator=ShardedGenerator(7, 42, rank=rank, world_size=world_size),
        )
        for rows, rank, world_size in [(8, 0, 1), (4, 0, 2), (4, 1, 2)]
    )
    assert torch.equal(whole, torch.cat([first, second]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_gradients_flow_through_the_whole_chain(kind, prediction, seeded):
    def total(scale):
        samples = draw(
            kind(),
            lambda x, t: scale * x,
            prediction=prediction,
            generator=seeded(1),
            dtype=torch.float64,
        )
        return samples.sum()

    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(total(scale), scale)
    with torch.no_grad():
        difference = (total(scale + 1e-6) - total(scale - 1e-6)) / 2e-6
    torch.testing.assert_close(gradient, difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_state_stays_in_float32(kind):
    net, inputs = torch.nn.Linear(3, 3), []

    def denoise(x, t):
        inputs.append(x.dtype)
        output = net(x)
        assert output.dtype == torch.bfloat16
        return output

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        samples = draw(kind(), denoise, prediction="v")
    assert samples.dtype == torch.float32 and samples.isfinite().all()
    assert set(inputs) == {torch.float32}


class Operations(TorchDispatchMode):
    """Records the names of all operations between two steps of the loop."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_never_waits_for_the_device(kind):
    # On the meta device there are no values: reading one back (a wait for a real device) fails.
    schedule = Schedule("cosine", 12).to("meta")
    sampler = kind(clip=1.0, extra_steps=2)
    samples = draw(sampler, lambda x, t: 0.5 * x, prediction="v", schedule=schedule)
    assert samples.device.type == "meta" and samples.shape == (6, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_a_handful_of_operations(kind):
    counts = []
    with Operations() as operations:

        def denoise(x, t):
            counts.append(len(operations.names))
            return x

        draw(kind(), denoise, prediction="v")
    # v to x_0 takes 3, the step 3, the state before or fresh noise 3, the row of times 2.
    assert max(np.diff(counts)) <= 11
    assert not any("item" in name or "local_scalar" in name for name in operations.names)
