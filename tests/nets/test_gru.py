"""The hand-made GRU layer of CPUs beside PyTorch's own."""

import pytest
import torch
from torch import nn

from lit_offrl.nets.gru import run_gru


def gradients(layer, x, run):
    """Outputs, and the gradients of a weighted sum of them, of x and of all weights."""
    x = x.clone().requires_grad_()
    out = run(x)
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=x.dtype).view(out.shape)
    found = torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])
    return [out.detach(), *found]


@pytest.mark.parametrize("steps", [1, 5])
def test_states_and_gradients_are_pytorchs(steps):
    torch.manual_seed(0)
    layer = nn.GRU(3, 4, bidirectional=True).double()
    x = torch.randn(steps, 6, 3, dtype=torch.float64)
    ours = gradients(layer, x, lambda x: run_gru(layer, x))
    theirs = gradients(layer, x, lambda x: layer(x)[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(run_gru(layer, x), theirs[0], rtol=1e-12, atol=1e-12)


def test_under_autocast_it_is_as_near_as_pytorchs_own():
    torch.manual_seed(0)
    layer, x = nn.GRU(16, 32, bidirectional=True), torch.randn(20, 64, 16)
    exact = gradients(layer, x, lambda x: layer(x)[0])

    def apart(run):
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(layer, x, run)
        both = zip(found, exact, strict=True)
        return [float((a - b).abs().max() / b.abs().max()) for a, b in both]

    ours, theirs = apart(lambda x: run_gru(layer, x)), apart(lambda x: layer(x)[0])
    assert 0 < max(ours) < 1.5 * max(theirs) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert run_gru(layer, x).dtype == torch.bfloat16


def test_a_gradient_that_is_not_wanted_is_not_computed():
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 4, bidirectional=True), torch.randn(5, 6, 3)
    run_gru(layer, x).sum().backward()
    assert x.grad is None and all(part.grad is not None for part in layer.parameters())
