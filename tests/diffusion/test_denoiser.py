from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from lit_offrl.diffusion import DDIM, Schedule, map_encoded, repeat_encoded


class Encoding(NamedTuple):
    state: torch.Tensor
    extra: tuple[torch.Tensor, None]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.condition_net = nn.Linear(3, 4)
        self.net = nn.Linear(2 + 1 + 4 + 1, 2)
        self.encoded_rows = []

    def encode(self, condition):
        self.encoded_rows.append(len(condition))
        return Encoding(self.condition_net(condition), (condition[:, :1], None))

    def denoise(self, x_t, t, encoded):
        return self.net(torch.cat([x_t, t[:, None] / 10, encoded.state, encoded.extra[0]], -1))


def test_each_state_is_encoded_once_a_sampling_call():
    network, schedule = Network(), Schedule("cosine", 10)
    states, samples_each = torch.randn(3, 3), 4
    with torch.no_grad():
        encoded = repeat_encoded(network.encode(states), samples_each)
        samples = DDIM().sample(
            partial(network.denoise, encoded=encoded),
            schedule,
            (12, 2),
            prediction="v",
            initial_noise=torch.ones(12, 2),
        )
    assert network.encoded_rows == [3]
    # State-major: the samples of one state are neighbours (here equal, having one noise).
    grouped = samples.reshape(3, samples_each, 2)
    torch.testing.assert_close(grouped, grouped[:, :1].expand_as(grouped))
    assert (grouped[0, 0] != grouped[1, 0]).any()


def test_encodings_keep_their_structure():
    encoded = {"a": Encoding(torch.ones(2, 1), (torch.zeros(2), None)), "b": None}
    repeated = repeat_encoded(encoded, 3)
    assert isinstance(repeated["a"], Encoding) and repeated["b"] is None
    assert repeated["a"].state.shape == (6, 1) and repeated["a"].extra[0].shape == (6,)
    with pytest.raises(TypeError, match="cannot hold a str"):
        map_encoded(lambda part: part, "states")
