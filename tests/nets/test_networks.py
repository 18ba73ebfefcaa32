import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.randomness import ShardedGenerator
from lit_offrl.nets import (
    MLP,
    DenseNetMLP,
    DeterministicPolicy,
    Dropout,
    EnsembleCritic,
    EnsembleDenseNetMLP,
    EnsembleMLP,
    GaussianPolicy,
    NumberEmbedding,
    TanhGaussianPolicy,
    VelocityNet,
    critics,
    frozen_copy,
    glorot_,
    polyak_update_,
    sinusoidal,
    symexp,
    symlog,
)
from lit_offrl.nets.action_vae import ActionVAE, Perturbation
from lit_offrl.nets.mlp import Mish
from lit_offrl.nets.policies import BoundedActions
from lit_offrl.nets.transformer import ActionTransformer


def test_sinusoidal_known_values():
    got = sinusoidal(torch.tensor([0, 3]), 4, max_period=100.0)
    # wavelengths 2π · (1, 100 ** 0.5)
    want = [
        [1.0, 1.0, 0.0, 0.0],
        [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)],
    ]
    torch.testing.assert_close(got, torch.tensor(want))
    assert sinusoidal(torch.zeros(2, 5), 8).shape == (2, 5, 8)
    with pytest.raises(ValueError, match="even"):
        sinusoidal(torch.zeros(2), 7)


def test_sinusoidal_angles_stay_in_float32_whatever_the_precision():
    steps = torch.tensor([1000, 1001])
    exact = sinusoidal(steps.double(), 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sinusoidal(steps, 32).dtype == torch.float32
        torch.testing.assert_close(sinusoidal(steps, 32).double(), exact, atol=2e-4, rtol=0)
    half = NumberEmbedding(16).bfloat16()(steps)
    assert half.dtype == torch.bfloat16 and half.shape == (2, 16)


def test_symexp_inverts_symlog():
    x = torch.cat([torch.linspace(-1e4, 1e4, 1001), torch.logspace(-6, 4, 50)])
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(symlog(torch.tensor([math.e - 1, 0.0, 1 - math.e])),
                               torch.tensor([1.0, 0.0, -1.0]))  # fmt: skip


def test_symlog_has_gradient_one_at_zero():
    x = torch.tensor([1e-4, -1e-4], requires_grad=True)
    symlog(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rows", [1, 32])
def test_mish_is_pytorchs_whether_numbers_are_few_or_many(rows):
    numbers = torch.cat([torch.linspace(-30, 30, 1021), torch.tensor([-200.0, 0.0, 200.0])])
    ours = numbers.repeat(rows, 1).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    weights = torch.linspace(-1, 1, 1024)
    out, expected = Mish()(ours), torch.nn.functional.mish(theirs)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(out.double(), expected, rtol=3e-6, atol=1e-12)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(Mish()(ours), out)


@pytest.mark.parametrize("rows", [1, 32])
def test_mish_of_bfloat16_is_rounded_once(rows):
    ours = torch.linspace(-30, 30, 1024).repeat(rows, 1).bfloat16().requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    out, expected = Mish()(ours), torch.nn.functional.mish(theirs)
    out.sum().backward()
    expected.sum().backward()
    assert out.dtype == ours.grad.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-12)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2**-8, atol=1e-6)


def test_the_quick_mish_refuses_a_second_derivative():
    numbers = torch.ones(1 << 14, requires_grad=True)
    (slope,) = torch.autograd.grad(Mish()(numbers).square().sum(), numbers, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_mlp_layers_in_order():
    net = MLP(3, (8, 5), 2, activation="mish", layer_norm=True, dropout=0.1)
    hidden = [nn.Linear, nn.LayerNorm, Mish, Dropout]
    assert [type(m) for m in net] == [*hidden, *hidden, nn.Linear]
    assert net(torch.randn(4, 6, 3)).shape == (4, 6, 2)
    assert [type(m) for m in MLP(3, (), 2)] == [nn.Linear]
    with pytest.raises(ValueError, match=r"relu.*'swich'"):
        MLP(3, (8,), 2, activation="swich")


def test_densenet_sees_the_input_and_all_earlier_features():
    net = DenseNetMLP(5, (8, 6), 2)
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linears] == [(8, 5), (6, 13), (2, 19)]
    assert sum(isinstance(m, nn.LayerNorm) for m in net.modules()) == 2
    x = torch.randn(7, 5)
    first = torch.relu(net.hidden[0][1](linears[0](x)))
    second = torch.relu(net.hidden[1][1](linears[1](torch.cat([x, first], -1))))
    torch.testing.assert_close(net(x), linears[2](torch.cat([x, first, second], -1)))
    assert sum(p.numel() for p in DenseNetMLP(10).parameters()) == (
        (10 + 1) * 256 + (266 + 1) * 256 + 2 * 2 * 256 + (522 + 1)
    )


@pytest.mark.parametrize("layer_norm", [False, True, "after"])
def test_ensemble_equals_separate_stacks(layer_norm):
    torch.manual_seed(0)
    ensemble = EnsembleMLP(3, 4, (16, 8), 2, layer_norm=layer_norm)
    for p in ensemble.parameters():
        nn.init.normal_(p)
    x = torch.randn(5, 4)
    together = ensemble(x)
    assert together.shape == (3, 5, 2)
    for i in range(3):
        stack = MLP(4, (16, 8), 2, layer_norm=layer_norm)
        layers = zip(
            [m for m in stack if list(m.parameters())],
            [m for m in ensemble.layers if list(m.parameters())],
            strict=True,
        )
        with torch.no_grad():
            for one, many in layers:
                one.weight.copy_(many.weight[i].t() if many.weight.shape[1] > 1
                                 else many.weight[i, 0])  # fmt: skip
                one.bias.copy_(many.bias[i, 0])
        torch.testing.assert_close(together[i], stack(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_norms_stand_before_or_after_activations(activation):
    torch.manual_seed(0)
    x, units = torch.randn(5, 4), {"relu": nn.functional.relu, "gelu_tanh": jax_gelu}[activation]
    for layer_norm, joined in (
        (False, lambda norm, x: units(x)),
        (True, lambda norm, x: units(norm(x))),
        ("after", lambda norm, x: norm(units(x))),
    ):
        net = MLP(4, (16, 8), 2, activation, layer_norm)
        for p in net.parameters():
            nn.init.normal_(p)
        linears = [m for m in net if isinstance(m, nn.Linear)]
        norms = [m for m in net if isinstance(m, nn.LayerNorm)] or [None] * 2
        expected = x
        for linear, norm in zip(linears, norms, strict=False):
            expected = joined(norm, linear(expected))
        torch.testing.assert_close(net(x), linears[-1](expected), atol=1e-4, rtol=1e-4)


def jax_gelu(x):
    """GELU as JAX has it unless it is asked for the exact one."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_glorot_takes_both_sizes_of_every_layer():
    torch.manual_seed(0)
    nets = nn.ModuleList([MLP(20, (300,), 4), EnsembleMLP(2, 20, (300,), 4)])
    glorot_(nets)
    single, many = (
        [m for m in part if "weight" in m._parameters] for part in (nets[0], nets[1].layers)
    )
    for layer, (before, after) in zip([*single, *many], [(20, 300), (300, 4)] * 2, strict=True):
        bound = math.sqrt(6 / (before + after))
        assert 0.98 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_a_velocity_encodes_its_condition_apart():
    """The sum of parts is one network of condition, x_t and t joined; gradients reach all of it."""
    torch.manual_seed(0)
    net = VelocityNet(2, 3, (16, 8), "gelu_tanh")
    x, t, condition = torch.randn(5, 2), torch.rand(5), torch.randn(5, 3)
    joined = torch.cat([condition, x, t[:, None]], dim=1)
    expected = net.rest(jax_gelu(net.first(joined)))
    torch.testing.assert_close(net(x, t, condition), expected)
    encoded = net.encode(condition)
    torch.testing.assert_close(net.velocity(x, t[:1].expand(5), encoded)[0], expected[0])
    apart, whole = (
        torch.autograd.grad(out.square().sum(), list(net.parameters()))
        for out in (net(x, t, condition), expected)
    )
    torch.testing.assert_close(apart, whole)
    with pytest.raises(ConfigError, match=r"hidden is \[\]: give at least one"):
        VelocityNet(2, 3, ())


def test_ensemble_members_begin_apart_and_like_linear_layers():
    torch.manual_seed(0)
    layer = EnsembleMLP(2, 100, (400,), 1).layers[0]
    assert (layer.weight[0] - layer.weight[1]).abs().mean() > 0.05
    reference = nn.Linear(100, 400)
    for tensor, like in ((layer.weight, reference.weight), (layer.bias, reference.bias)):
        assert tensor.abs().max() <= 0.1 and like.abs().max() <= 0.1
        torch.testing.assert_close(tensor.std(), like.std(), rtol=0.1, atol=0)


def test_ensemble_members_do_not_share_gradients():
    ensemble = EnsembleMLP(2, 3, (8,), 1, layer_norm=True)
    ensemble(torch.randn(4, 3))[0].sum().backward()
    assert all(p.grad[0].any() and not p.grad[1].any() for p in ensemble.parameters())


def test_dense_ensemble_equals_separate_densenets():
    torch.manual_seed(0)
    ensemble = EnsembleDenseNetMLP(3, 4, (16, 8), 2)
    for p in ensemble.parameters():
        nn.init.normal_(p)
    x = torch.randn(5, 4)
    got = ensemble(x)
    for i in range(3):
        net = DenseNetMLP(4, (16, 8), 2)
        linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
        norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm)]
        with torch.no_grad():
            for one, many in zip(linears, ensemble.linears, strict=True):
                one.weight.copy_(many.joined.weight[i].t())
                one.bias.copy_(many.joined.bias[i, 0])
            for one, many in zip(norms, ensemble.norms, strict=True):
                one.weight.copy_(many.weight[i, 0])
                one.bias.copy_(many.bias[i, 0])
        torch.testing.assert_close(got[i], net(x), atol=1e-4, rtol=1e-4)
    ensemble(x)[0].sum().backward()
    assert all(p.grad[0].any() and not p.grad[1:].any() for p in ensemble.parameters())


@pytest.mark.parametrize("dense", [False, True])
def test_critics_of_many_actions_and_critics_that_stand_still(dense):
    torch.manual_seed(0)
    critic = EnsembleCritic(3, 2, (8,), dense=dense)
    s, a = torch.randn(4, 3), torch.randn(4, 5, 2, requires_grad=True)
    many = critic.many(s, a)
    assert many.shape == (2, 4, 5)
    for k in range(5):
        torch.testing.assert_close(many[..., k], critic(s, a[:, k]))
    still = critic.frozen(s, a[:, 0])
    torch.testing.assert_close(still, critic(s, a[:, 0]))
    still.sum().backward()
    assert a.grad[:, 0].any() and all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize(("layer_norm", "dense"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_critics_learn_as_separate_networks_do(size, layer_norm, dense):
    """Values, gradients, the norm that clipping sees, a step of Adam, and targets that follow."""
    torch.manual_seed(0)
    critic = EnsembleCritic(3, 2, (16, 8), layer_norm, size, dense)
    target = frozen_copy(critic)
    nets = [
        DenseNetMLP(5, (16, 8)) if dense else MLP(5, (16, 8), 1, layer_norm=layer_norm)
        for _ in range(size)
    ]
    slow = [frozen_copy(net) for net in nets]

    def pairs(ensemble, members, of=lambda tensor: tensor):
        """Each member's tensors, and where the ensemble has them, both ``(in,) out``."""
        layers = [each for each in ensemble.modules() if "weight" in each._parameters]
        if dense:  # linears and LayerNorms in turn, as in a network
            layers = [one for pair in zip(layers[:2], layers[3:], strict=True) for one in pair]
            layers.append(ensemble.members.linears[-1].joined)
        for i, net in enumerate(members):
            own = [each for each in net.modules() if "weight" in each._parameters]
            for one, many in zip(own, layers, strict=True):
                weight = of(one.weight).t() if one.weight.ndim == 2 else of(one.weight)[None]
                yield weight, of(many.weight)[i]
                yield of(one.bias)[None], of(many.bias)[i]

    with torch.no_grad():
        for each in critic.parameters():
            each.add_(0.1 * torch.randn(each.shape))
        for copies, ensemble in ((nets, critic), (slow, target)):
            for one, many in pairs(ensemble, copies):
                one.copy_(many)
    own = [each for net in nets for each in net.parameters()]
    groups = [list(critic.parameters()), own]
    adams = [torch.optim.AdamW(group, lr=1e-2, weight_decay=0.1) for group in groups]
    s, a, goal = torch.randn(64, 3), torch.randn(64, 2), torch.randn(64)
    for _ in range(3):
        together = critic(s, a)
        apart = torch.stack([net(torch.cat([s, a], 1)).squeeze(1) for net in nets])
        torch.testing.assert_close(together, apart)
        for adam, values in zip(adams, (together, apart), strict=True):
            adam.zero_grad()
            (values - goal).square().mean(dim=1).sum().backward()
        for one, many in pairs(critic, nets, lambda tensor: tensor.grad):
            torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-6)
        norms = [float(nn.utils.clip_grad_norm_(group, 0.1)) for group in groups]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0.1
        for adam in adams:
            adam.step()
        polyak_update_(target, critic, 0.3)
        for follower, net in zip(slow, nets, strict=True):
            polyak_update_(follower, net, 0.3)
    for copies, ensemble in ((nets, critic), (slow, target)):
        for one, many in pairs(ensemble, copies):
            torch.testing.assert_close(many, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [EnsembleMLP, EnsembleDenseNetMLP])
@pytest.mark.parametrize("each_its_own", [False, True])
def test_members_that_run_one_after_another_do_as_together(kind, each_its_own, monkeypatch):
    torch.manual_seed(0)
    ensemble = kind(3, 4, (16, 8))
    x = torch.randn(*(3,) * each_its_own, 50, 4, requires_grad=True)
    found, passes, run = [], [], ensemble.run
    monkeypatch.setattr(ensemble, "run", lambda rows, some: passes.append(some) or run(rows, some))
    for limit in (50 * 16 + 1, 50 * 16):
        monkeypatch.setattr(critics, "_CACHED", limit)
        out = ensemble(x)
        inputs = (x, *ensemble.parameters())
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    assert passes == [slice(None), slice(0, 1), slice(1, 2), slice(2, 3)]
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(together, apart)


def test_a_pass_of_all_critics_takes_no_slices_of_their_weights():
    """The gradient of each would be a tensor of zeros and a copy."""
    values = EnsembleCritic(3, 2, (8,), layer_norm=True)(torch.randn(4, 3), torch.randn(4, 2))
    names, left = set(), [values.grad_fn]
    while left:
        node = left.pop()
        names.add(node.name())
        left += [after for after, _ in node.next_functions if after is not None]
    assert "BaddbmmBackward0" in names and "SliceBackward0" not in names


@pytest.mark.parametrize("activation", ["relu", "gelu", "mish"])
@pytest.mark.parametrize("kind", [MLP, DenseNetMLP])
def test_networks_write_over_nothing_of_their_callers(kind, activation):
    torch.manual_seed(0)
    net, x = kind(4, (8, 8), 2, activation=activation), torch.randn(5, 4, requires_grad=True)
    before = x.detach().clone()
    out = net(x)
    out.sum().backward()
    assert torch.equal(x, before)
    found = [x.grad, *(each.grad for each in net.parameters())]
    for each in net.modules():
        if isinstance(each, nn.ReLU):
            assert each.inplace
            each.inplace = False
    x.grad = None
    net.zero_grad()
    again = net(x)
    again.sum().backward()
    assert torch.equal(out, again)
    for one, other in zip(found, [x.grad, *(p.grad for p in net.parameters())], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [MLP, DenseNetMLP, EnsembleMLP, EnsembleDenseNetMLP])
def test_under_autocast_hidden_layers_are_rounded_and_the_last_is_not(kind):
    torch.manual_seed(0)
    net = kind(4, (64, 64), 3) if kind in (MLP, DenseNetMLP) else kind(2, 4, (64, 64), 3)
    x, products = torch.randn(50, 4), []

    class Products(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function in (nn.functional.linear, torch.baddbmm):
                products.append(out.dtype)
            return out

    full = net(x)
    with torch.autocast("cpu", torch.bfloat16), Products():
        mixed = net(x)
    last = 3 if kind is EnsembleDenseNetMLP else 1  # the products with x and the features
    assert mixed.dtype == torch.float32 and set(products[-last:]) == {torch.float32}
    assert set(products[:-last]) == {torch.bfloat16}
    assert not torch.equal(mixed, full)
    torch.testing.assert_close(mixed, full, rtol=0, atol=0.01)
    mixed.square().sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in net.parameters())


def test_an_mlp_that_gives_features_rounds_them_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert MLP(4, (8,), 3, precise=False)(torch.randn(5, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_last_layer_is_of_the_weights_type_without_autocast(dtype):
    """As Lightning's true precisions have it."""
    critic = EnsembleCritic(3, 2, (8,)).to(dtype)
    assert critic(torch.randn(4, 3, dtype=dtype), torch.randn(4, 2, dtype=dtype)).dtype == dtype
    assert MLP(3, (8,), 2).to(dtype)(torch.randn(4, 3, dtype=dtype)).dtype == dtype


def test_the_least_of_two_critics():
    critic = EnsembleCritic(3, 2, (8,))
    s, a = torch.randn(64, 3), torch.randn(64, 2)
    q = critic(s, a)
    assert q.shape == (2, 64)
    assert torch.equal(critic.minimum(s, a), torch.minimum(q[0], q[1]))
    assert 0 < (q[0] < q[1]).sum() < 64


def test_polyak_direction_value_and_buffers():
    online, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        online.weight.fill_(10.0)
        target.weight.fill_(2.0)
        online.running_mean.fill_(7.0)
    polyak_update_(target, online, 0.005)
    # (1 − 0.005) · 2 + 0.005 · 10
    torch.testing.assert_close(target.weight, nn.Parameter(torch.full((2,), 2.04)))
    assert torch.equal(target.running_mean, torch.full((2,), 7.0))
    assert torch.equal(online.weight, torch.full((2,), 10.0))
    polyak_update_(target, online, 1.0)
    assert torch.equal(target.weight, online.weight)
    polyak_update_(target, nn.BatchNorm1d(2), 0.0)
    assert torch.equal(target.weight, online.weight)


def test_polyak_moves_the_weights_that_are_there_now_and_each_once():
    """Whatever has been replaced, copied, wrapped or shared since the last call."""
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    online[2].bias = online[1].bias = nn.Parameter(torch.randn(3))  # shared by two layers
    target = frozen_copy(online)

    def moved(slow, fast, call):
        expected = [torch.lerp(a, b, 0.3) for a, b in zip(slow.parameters(), fast.parameters())]
        call()
        assert len(expected) == 5
        assert all(map(torch.equal, slow.parameters(), expected))

    def move(slow, fast):
        with torch.no_grad():
            for weight in fast.parameters():
                weight.add_(torch.randn(weight.shape))
        moved(slow, fast, lambda: polyak_update_(slow, fast, 0.3))

    move(target, online)
    online[0] = nn.Linear(2, 3)
    move(target, online)
    online.load_state_dict({k: v + 1 for k, v in online.state_dict().items()}, assign=True)
    online[2].bias = online[1].bias
    move(target, online)
    move(frozen_copy(target), copy.deepcopy(online))
    moved(target, online, lambda: polyak_update_(target, nn.ModuleList([online]), 0.3))


def test_polyak_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="tau"):
        polyak_update_(nn.Linear(1, 1), nn.Linear(1, 1), 1.5)
    with pytest.raises(ValueError, match="2 parameters, online 1"):
        polyak_update_(nn.Linear(1, 1), nn.Linear(1, 1, bias=False), 0.1)


def test_frozen_copy_is_apart_and_has_no_gradients():
    net = MLP(2, (4,), 1, dropout=0.5)
    copy = frozen_copy(net)
    x = torch.randn(3, 2)
    assert torch.equal(copy(x), net.eval()(x))
    assert not copy.training and not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in net.parameters())
    with torch.no_grad():
        net[0].weight += 1.0
    assert not torch.equal(copy[0].weight, net[0].weight)


BOUNDS = {"low": (-2.0, 0.0), "high": (2.0, 1.0)}


def test_what_acts_within_bounds_has_them_from_one_place():
    sizes = {"max_timesteps": 4, "width": 4, "blocks": 1, "heads": 1}
    kinds = {
        **{DeterministicPolicy: {}, GaussianPolicy: {}, TanhGaussianPolicy: {}, Perturbation: {}},
        ActionVAE: {"latent_dim": 1},
        ActionTransformer: {**sizes, "dropout": 0.0, "activation": "relu"},
    }
    for kind, options in kinds.items():
        net = kind(observation_dim=3, action_dim=2, low=(-1.0, 0.0), high=(3.0, 4.0), **options)
        assert isinstance(net, BoundedActions)
        assert {name: each.tolist() for name, each in net.named_buffers(recurse=False)} == {
            "centre": [1.0, 2.0],
            "scale": [2.0, 2.0],
        }
        with pytest.raises(ConfigError, match=r"action_low is .* give 2 finite numbers each"):
            kind(observation_dim=3, action_dim=2, low=(0.0, 4.0), high=(1.0, 4.0), **options)


@pytest.mark.parametrize("kind", [DeterministicPolicy, GaussianPolicy])
def test_mean_action_fills_the_bounds(kind):
    torch.manual_seed(0)
    policy = kind(3, 2, hidden=(8,), **BOUNDS)
    with torch.no_grad():
        policy.net[-1].weight.mul_(1e6)
    actions = policy(torch.randn(256, 3))
    torch.testing.assert_close(actions.amin(0), torch.tensor([-2.0, 0.0]))
    torch.testing.assert_close(actions.amax(0), torch.tensor([2.0, 1.0]))
    with torch.no_grad():
        policy.net[-1].weight.zero_()
        policy.net[-1].bias.zero_()
    torch.testing.assert_close(policy(torch.randn(1, 3)), torch.tensor([[0.0, 0.5]]))


def test_gaussian_log_prob_and_entropy_against_torch():
    policy = GaussianPolicy(3, 2, hidden=(8,), **BOUNDS)
    with torch.no_grad():
        policy.raw_log_std.copy_(torch.tensor([-1.0, 9.0]))  # the second is clamped to 2
    s, a = torch.randn(16, 3), torch.rand(16, 2)
    oracle = Normal(policy(s), torch.tensor([-1.0, 2.0]).exp())
    torch.testing.assert_close(policy.log_prob(s, a), Independent(oracle, 1).log_prob(a))
    torch.testing.assert_close(policy.entropy(), oracle.entropy()[0])


def test_perturbed_actions_have_sigma_and_stay_inside():
    policy = GaussianPolicy(3, 2, hidden=(8,), **BOUNDS)
    with torch.no_grad():
        policy.raw_log_std.fill_(math.log(0.1))
    mean = torch.tensor([[0.5, 0.5]])
    torch.testing.assert_close(
        policy.perturb(mean, torch.tensor([[1.0, -2.0]])), torch.tensor([[0.6, 0.3]])
    )
    torch.testing.assert_close(
        policy.perturb(mean, torch.tensor([[99.0, -99.0]])), torch.tensor([[2.0, 0.0]])
    )


def test_squashed_gaussian_density_integrates_to_one():
    torch.manual_seed(0)
    policy = TanhGaussianPolicy(3, 2, hidden=(8,), **BOUNDS)
    low, high = torch.tensor(BOUNDS["low"]), torch.tensor(BOUNDS["high"])
    steps = (torch.arange(500) + 0.5) / 500
    grid = torch.cartesian_prod(*(low + (high - low) * steps[:, None]).unbind(1))
    density = policy.log_prob(torch.randn(1, 3).expand(len(grid), 3), grid).exp()
    assert (density.mean() * (high - low).prod()).item() == pytest.approx(1.0, abs=5e-3)


def test_squashed_gaussian_against_torch():
    torch.manual_seed(0)
    policy = TanhGaussianPolicy(3, 2, hidden=(8,), **BOUNDS)
    s, noise = torch.randn(16, 3), torch.rand(16, 2) - 0.5  # where tanh still has digits
    mean, log_std = policy.moments(s)
    actions, density = policy.draw(mean, log_std, noise)
    squash = [TanhTransform(), AffineTransform(policy.centre, policy.scale)]
    oracle = TransformedDistribution(Normal(mean, log_std.exp()), squash)
    torch.testing.assert_close(density, oracle.log_prob(actions).sum(-1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(policy.log_prob(s, actions), density, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(policy(s), policy.draw(mean, log_std, torch.zeros(1, 2))[0])
    ends = torch.tensor([BOUNDS["low"], BOUNDS["high"]])
    assert policy.log_prob(s[:2], ends).isfinite().all()
    far = policy.draw(mean, log_std, torch.full((1, 2), 60.0))
    assert far[1].isfinite().all() and (far[0] <= ends[1]).all()


@pytest.mark.parametrize(
    "bounds",
    [
        {"low": (0.0,), "high": (1.0, 1.0)},
        {"low": (0.0, 1.0), "high": (1.0, 1.0)},
        {"low": (0.0, 0.0), "high": (1.0, float("inf"))},
    ],
)
def test_bad_action_bounds_are_refused(bounds):
    for kind in (DeterministicPolicy, TanhGaussianPolicy):
        with pytest.raises(ValueError, match="2 finite numbers"):
            kind(3, 2, **bounds)


def test_policies_keep_their_bounds_in_a_checkpoint():
    trained, fresh = GaussianPolicy(3, 2, hidden=(8,), **BOUNDS), GaussianPolicy(3, 2, hidden=(8,))
    fresh.load_state_dict(trained.state_dict())
    s = torch.randn(4, 3)
    assert torch.equal(fresh(s), trained(s))


def test_dropout_draws_its_masks_from_the_steps_noise():
    drop, x = Dropout(0.25), torch.ones(400, 10)
    drop.noise = ShardedGenerator(1)
    dropped = drop(x)
    drop.noise = ShardedGenerator(1)
    assert torch.equal(drop(x), dropped)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert abs((dropped == 0).float().mean() - 0.25) < 0.03
    halves = []
    for rank in range(2):  # two processes see what one would
        drop.noise = ShardedGenerator(1, rank=rank, world_size=2)
        halves.append(drop(x[:200]))
    assert torch.equal(torch.cat(halves), dropped)
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match="dropout"):
        Dropout(1.0)
