"""Every method acts within the bounds that it is given, also where its networks ask for more."""

import numpy as np
import pytest
import torch

from lit_offrl import modules
from lit_offrl.common.errors import ConfigError

SMALL = {"hidden": [8]}
DENOISER = {"width": 16, "blocks": 1}
METHODS = {
    "BCModule": SMALL,
    "CQLModule": {"hidden": [8, 8]},
    "IQLModule": SMALL,
    "AWRModule": SMALL,
    "ACGModule": SMALL,
    "DiffusionBCModule": DENOISER,
    "IDQLModule": {**DENOISER, **SMALL, "num_samples": 3},
    "DQLModule": {**DENOISER, **SMALL, "num_samples": 3},
    "ACDModule": {**DENOISER, **SMALL},
    "FQLModule": SMALL,
    "IFQLModule": {**SMALL, "num_samples": 3},
    "DVFModule": {**DENOISER, **SMALL, "latents": 4, "num_samples": 2, "sampling_steps": 2},
    "LDCQStage1Module": {"horizon": 3, "width": 8, "gru_layers": 1, "latent_dim": 2},
}


def acts(name, **bounds):
    """Actions (200, 1) of an untrained method whose weights are blown up."""
    torch.manual_seed(0)
    module = getattr(modules, name)(3, 1, **bounds, **METHODS[name]).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(5.0)
    observations = np.random.default_rng(0).normal(0, 3, (200, 3)).astype(np.float32)
    return module.policy().act(observations)


@pytest.mark.parametrize("name", METHODS)
def test_actions_stay_within_the_bounds_and_use_them(name):
    acted = acts(name, action_low=(-2.0,), action_high=(3.0,))
    assert acted.shape == (200, 1)
    assert acted.min() >= -2 - 1e-5 and acted.max() <= 3 + 1e-5
    assert acted.min() < -1 or acted.max() > 1
    acted = acts(name)
    assert acted.min() >= -1 - 1e-5 and acted.max() <= 1 + 1e-5  # as documented


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("low", [(-1.0, -1.0), (1.0,), (float("nan"),), (float("-inf"),)])
def test_what_are_no_bounds_is_refused(name, low):
    with pytest.raises(ConfigError, match="low below high"):
        acts(name, action_low=low, action_high=(1.0,))
