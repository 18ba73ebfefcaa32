import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_offrl.nets import (
    FutureCondition,
    PerceiverDenoiser,
    StatePerceiverDenoiser,
    sinusoidal,
)

D, A, K = 3, 2, 5
KINDS = pytest.mark.parametrize("kind", [PerceiverDenoiser, StatePerceiverDenoiser])
SMALL = {"width": 16, "blocks": 2, "latents": 4, "cross_heads": 2, "self_heads": 4}


def make(policy="none", seed=0, kind=PerceiverDenoiser, **options):
    """A denoiser whose zero-initialised last layer is replaced, so that outputs differ."""
    torch.manual_seed(seed)
    options = SMALL | {"history": K if policy == "sequential" else 0} | options
    net = kind(D, policy=policy, **options)
    torch.nn.init.normal_(net.out[1].weight)
    return net


def condition(states, samples, seed=1):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(states, K, generator=g) > 0.4
    mask[0] = False
    return FutureCondition(
        states=torch.randn(states, D, generator=g),
        offsets=torch.randint(1, 2000, (states, samples), generator=g),
        policy=torch.arange(states) * 1000,
        history=torch.randn(states, K, D, generator=g),
        history_actions=torch.randn(states, K, A, generator=g),
        history_mask=mask,
    )


def repeated(c, samples):
    """The same rows as ``c``, each with a state, a policy and a history of its own."""
    rest = [None if x is None else x.repeat_interleave(samples, 0) for x in (c.states, *c[2:])]
    return FutureCondition(rest[0], c.offsets.reshape(-1, 1), *rest[1:])


MODES = [
    ("none", {}),
    ("scalar", {}),
    ("sequential", {}),
    ("sequential", {"action_dim": A}),
    ("sequential", {"latents": 40}),  # more latents than one group has
]


@KINDS
@pytest.mark.parametrize(("policy", "options"), MODES)
@pytest.mark.parametrize("samples", [2, 3, 8, 12])  # groups of 2, 1, 8 and 4 rows
def test_samples_of_one_state_equal_repeated_conditions(policy, options, samples, kind):
    net, c = make(policy, kind=kind, **options), condition(4, samples)
    x, t = torch.randn(4 * samples, D), torch.randint(1, 129, (4 * samples,))
    together = net.denoise(x, t, net.encode(c))
    apart = net.denoise(x, t, net.encode(repeated(c, samples)))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    assert together.std() > 0.1


@KINDS
@pytest.mark.parametrize("samples", [1, 8])
def test_rows_do_not_influence_each_other(samples, kind):
    net, c = make("sequential", kind=kind), condition(8, samples)
    x, t = torch.randn(8 * samples, D), torch.randint(1, 129, (8 * samples,))
    before = net(x, t, c)
    changed = x.clone()
    changed[5] += 10.0
    states = c.states.clone()
    states[7] += 10.0
    after = net(changed, t, c._replace(states=states))
    touched = torch.zeros(8 * samples, dtype=torch.bool)
    touched[5] = True
    touched[7 * samples :] = True
    assert torch.equal(before[~touched], after[~touched])
    assert ((before - after).abs().amax(-1)[touched] > 1e-3).all()


@pytest.mark.parametrize("policy", ["none", "scalar", "sequential"])
def test_permuting_states_permutes_predictions(policy):
    net, c = make(policy), condition(6, 4)
    x, t = torch.randn(6, 4, D), torch.randint(1, 129, (6, 4))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain = net(x.flatten(0, 1), t.flatten(), c).view(6, 4, D)
    shuffled = net(
        x[order].flatten(0, 1), t[order].flatten(), FutureCondition(*(f[order] for f in c))
    )
    torch.testing.assert_close(shuffled.view(6, 4, D), plain[order], atol=1e-5, rtol=1e-5)


@KINDS
@pytest.mark.parametrize("junk", [1e3, float("nan")])
@pytest.mark.parametrize("samples", [1, 8])
def test_masked_history_influences_nothing(junk, samples, kind):
    net, c = make("sequential", kind=kind, action_dim=A), condition(8, samples)
    x, t = torch.randn(8 * samples, D), torch.randint(1, 129, (8 * samples,))
    before = net(x, t, c)
    hidden = ~c.history_mask.unsqueeze(-1)
    dirty = c._replace(
        history=c.history.masked_fill(hidden, junk),
        history_actions=c.history_actions.masked_fill(hidden, junk),
    )
    assert torch.equal(net(x, t, dirty), before)
    # and what is not masked does count, state and action
    for name in ("history", "history_actions"):
        moved = net(x, t, c._replace(**{name: getattr(c, name) + 1.0}))
        seen = c.history_mask.any(-1).repeat_interleave(samples)
        assert ((moved - before).abs().amax(-1) > 1e-4).tolist() == seen.tolist()


@KINDS
def test_shorter_history_equals_a_masked_one(kind):
    net, c = make("sequential", kind=kind), condition(8, 2)
    x, t = torch.randn(16, D), torch.randint(1, 129, (16,))
    mask = torch.tensor([False, False, True, True, True]).expand(8, K)
    padded = net(x, t, c._replace(history_mask=mask))
    short = net(x, t, c._replace(history=c.history[:, 2:], history_mask=None))
    torch.testing.assert_close(padded, short, atol=1e-5, rtol=1e-5)


@KINDS
@pytest.mark.parametrize("field", ["states", "offsets", "policy"])
def test_every_part_of_the_condition_counts(field, kind):
    net, c = make("scalar", kind=kind), condition(4, 2)
    x, t = torch.randn(8, D), torch.full((8,), 7)
    moved = net(x, t, c._replace(**{field: getattr(c, field) + 1}))
    assert ((moved - net(x, t, c)).abs().amax(-1) > 1e-5).all()
    assert ((net(x, t + 1, c) - net(x, t, c)).abs().amax(-1) > 1e-5).all()


@KINDS
def test_one_time_for_all_rows_gives_what_separate_times_give(kind):
    net, c = make(kind=kind), condition(8, 1)
    x, encoded = torch.randn(8, D), net.encode(c)
    mixed = torch.full((8,), 7)
    mixed[0] = 9  # not shared, so each row is embedded for itself
    torch.testing.assert_close(
        net.denoise(x, torch.tensor([7]).expand(8), encoded)[1:], net.denoise(x, mixed, encoded)[1:]
    )


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_cost_does_not_depend_on_the_offset_and_sampling_skips_the_condition():
    net, c = make("sequential"), condition(8, 4)
    x, t = torch.randn(32, D), torch.full((32,), 5)
    near, far = (c._replace(offsets=torch.full((8, 4), o)) for o in (1, 5000))
    assert flops(lambda: net(x, t, near)) == flops(lambda: net(x, t, far)) > 0
    # K and V of s_t, the history and Δt are made in `encode` alone, once a state or sample
    encoded = net.encode(c)
    w, b = SMALL["width"], SMALL["blocks"]
    encoding = flops(lambda: net.encode(c))
    assert encoding >= 2 * (8 * (1 + K) + 32) * w * b * 2 * w
    assert flops(lambda: net.denoise(x, t, encoded)) == flops(lambda: net(x, t, c)) - encoding
    # a diffusion time that all rows share is embedded and projected once, not 32 times
    varied = torch.arange(1, 33)
    saved = flops(lambda: net.denoise(x, varied, encoded)) - flops(
        lambda: net.denoise(x, t, encoded)
    )
    assert saved == 31 * (2 * 2 * w * w + 2 * w * b * 2 * w)


def test_latents_per_state_are_made_once_for_all_samples_and_solver_steps():
    """Encoding costs for 8 samples what it does for 1, but for Δt's tokens; reading is cheap."""
    kinds = StatePerceiverDenoiser, PerceiverDenoiser
    net, joint = (make("sequential", kind=kind) for kind in kinds)
    w, b = SMALL["width"], SMALL["blocks"]
    one, eight = (flops(lambda c=condition(8, n): net.encode(c)) for n in (1, 8))
    assert eight - one == 7 * 8 * 2 * 2 * w * w  # the embedding of the other Δt
    c, x, t = condition(1, 8), torch.randn(8, D), torch.full((8,), 5)
    read = flops(lambda: net.denoise(x, t, net.encode(c))) - flops(lambda: net.encode(c))
    weights = b * (2 + 2 * net.READ_RATIO) * w * w + 2 * D * w  # query, out, MLP; in and out
    assert read == 2 * (8 * weights + 2 * w * w)  # and the time's embedding, once
    whole = flops(lambda: joint.denoise(x, t, joint.encode(c)))
    assert read < 0.6 * (whole - flops(lambda: joint.encode(c)))


@KINDS
def test_starts_at_zero_and_gradients_reach_every_parameter(kind):
    torch.manual_seed(0)
    net = kind(D, **SMALL, policy="sequential", history=K, action_dim=A)
    c, x, t = condition(8, 1), torch.randn(8, D), torch.randint(1, 129, (8,))
    assert torch.equal(net(x, t, c), torch.zeros(8, D))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):  # the zero layer hides the others from the first gradient
        optimizer.zero_grad()
        (net(x, t, c) - x).square().mean().backward()
        optimizer.step()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_gradient_of_grouped_rows_is_the_gradient_of_each_row():
    net, c = make("sequential").double(), condition(8, 1)
    c = FutureCondition(*(f.double() if f.is_floating_point() else f for f in c))
    x, t = torch.randn(8, D, dtype=torch.float64), torch.randint(1, 129, (8,))
    net(x, t, c).square().sum().backward()
    together = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for i in range(8):
        net(
            x[i : i + 1], t[i : i + 1], FutureCondition(*(f[i : i + 1] for f in c))
        ).square().sum().backward()
    for got, p in zip(together, net.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad)


@KINDS
@pytest.mark.parametrize("policy", ["scalar", "sequential"])
def test_bfloat16_autocast(policy, kind):
    net, c = make(policy, kind=kind), condition(8, 4)
    x, t = torch.randn(32, D), torch.full((32,), 5)
    exact = net(x, t, c)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(x, t, c)
        rough.float().square().mean().backward()
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_offsets_near_and_far_are_told_apart():
    offsets = torch.tensor([1, 2, 3, 1000, 1001])
    e = sinusoidal(offsets, 64)
    distance = torch.cdist(e, e)
    assert distance[~torch.eye(5, dtype=torch.bool)].min() > 0.5


@KINDS
def test_overfits_a_conditional_regression(kind):
    # x_t + Δt / 4 * s_t: without s_t a third of the variance would stay, without Δt a twentieth
    torch.manual_seed(0)
    net = kind(2, width=32, blocks=2, latents=4)
    states, x = torch.rand(64, 2) * 2 - 1, torch.rand(64, 2) * 2 - 1
    offsets = torch.randint(1, 5, (64, 1))
    t, target = torch.ones(64, dtype=torch.int64), x + offsets / 4 * states
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (net(x, t, FutureCondition(states, offsets)) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * target.var()


def test_errors_say_what_is_missing():
    c = condition(2, 1)
    with pytest.raises(ValueError, match="`policy`"):
        make("scalar").encode(c._replace(policy=None))
    with pytest.raises(ValueError, match="`history`"):
        make("sequential").encode(c._replace(history=None))
    with pytest.raises(ValueError, match="k from 1 to 4"):
        make("sequential", history=4).encode(c)
    with pytest.raises(ValueError, match="history_actions"):
        make("sequential", action_dim=A).encode(c._replace(history_actions=None))
    with pytest.raises(ValueError, match="width is 18 and heads 2 and 4: give an even"):
        make(width=18)
    with pytest.raises(ValueError, match="history > 0"):
        make("sequential", history=0)
