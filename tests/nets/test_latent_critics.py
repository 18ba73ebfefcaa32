import pytest
import torch

from lit_offrl.nets import LatentCritic


@pytest.fixture
def critic():
    torch.manual_seed(0)
    net = LatentCritic(3, 4, (16, 16), (12, 12), (10, 6))
    with torch.no_grad():
        for part in net.parameters():
            part += 0.3 * torch.randn(part.shape)
    return net


def test_the_papers_sizes():
    shapes = {name: tuple(part.shape) for name, part in LatentCritic(29, 16).named_parameters()}
    assert [shapes[f"state.linears.{i}.weight"] for i in (0, 1)] == [(2, 29, 256), (2, 256, 256)]
    assert [shapes[f"latent.linears.{i}.weight"] for i in (0, 1)] == [(2, 16, 128), (2, 128, 128)]
    assert shapes["join.weight"] == (2, 384, 128)
    assert shapes["rest.linears.0.weight"] == (2, 128, 32)
    assert shapes["out.weight"] == (2, 32, 1)


def test_many_latents_of_a_state_are_valued_as_one_after_the_other(critic):
    states, latents = torch.randn(5, 3), torch.randn(5, 7, 4)
    values = critic.many(states, latents)
    assert values.shape == (2, 5, 7)
    for i in range(7):
        torch.testing.assert_close(values[:, :, i], critic(states, latents[:, i]))
    with torch.no_grad():
        torch.testing.assert_close(critic.many(states, latents), values)
    torch.testing.assert_close(critic.minimum(states, latents), values.amin(0))


def test_members_are_independent(critic):
    critic(torch.randn(5, 3), torch.randn(5, 4))[0].sum().backward()
    assert all(part.grad[0].any() and not part.grad[1].any() for part in critic.parameters())


@pytest.mark.parametrize("number", [1, 5, 200])
@pytest.mark.parametrize("apart", [0.0, 1.0, 30.0])
def test_the_best_is_that_of_scoring_all(critic, number, apart):
    """However far the two critics lie apart, so that bounds are tight or worthless."""
    with torch.no_grad():
        critic.out.bias[0] += apart
    states, latents = torch.randn(40, 3), torch.randn(40, number, 4)
    expected, at = critic.minimum(states, latents).max(dim=1)
    values, chosen = critic.best(states, latents)
    torch.testing.assert_close(values, expected)
    assert torch.equal(chosen, at)


@pytest.mark.parametrize("lower", [None, 0, 1])
def test_the_best_scores_few_latents_twice(critic, monkeypatch, lower):
    """Where the critics agree, and where either of them is far below the other."""
    with torch.no_grad():
        for part in critic.parameters():
            part[1] = part[0]
        if lower is not None:
            critic.out.bias[lower] -= 30.0
    scored = []
    score = critic._score

    def counted(encoded, latents, members=(0, 1)):
        scored.append((tuple(members), latents.shape[:2].numel()))
        return score(encoded, latents, members)

    monkeypatch.setattr(critic, "_score", counted)
    critic.best(torch.randn(10, 3), torch.randn(10, 400, 4))
    first = lower or 0
    assert scored == [((0, 1), 60), ((first,), 4000), ((1 - first,), 80)]


def test_a_value_that_is_not_a_number_is_not_hidden(critic):
    states, latents = torch.randn(3, 3), torch.randn(3, 50, 4)
    latents[1, 20] = float("nan")
    values, _ = critic.best(states, latents)
    assert values.isnan().tolist() == [False, True, False]
