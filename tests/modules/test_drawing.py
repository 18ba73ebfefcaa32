"""How the family of diffusion actors draws: its authors' rules, the policy's options, old files."""

import pytest
import torch

from lit_offrl.common.errors import ConfigError
from lit_offrl.common.renames import (
    BEFORE,
    translated_config,
    translated_hyperparameters,
    values_before,
)
from lit_offrl.diffusion import DDIM, DDPM
from lit_offrl.modules import (
    ACDModule,
    BCModule,
    DiffusionBCModule,
    DQLModule,
    DVFModule,
    IDQLModule,
)
from lit_offrl.modules.diffusion_actor import Drawing
from lit_offrl.modules.ldcq.options import Sampling
from lit_offrl.nets import MLPDenoiser, ResNetDenoiser

SMALL = {"width": 16, "blocks": 1}
CRITICS = SMALL | {"hidden": (8,)}
RULES = [
    (DiffusionBCModule, SMALL, ("sample", "beta")),
    (IDQLModule, CRITICS, ("sample", "beta")),
    (ACDModule, CRITICS, ("sample", "beta")),
    (DQLModule, CRITICS, ("estimate", "posterior")),
]


@pytest.mark.parametrize(("kind", "options", "rule"), RULES)
def test_each_method_has_its_authors_rule_and_its_policy_may_have_another(kind, options, rule):
    clipping, variance = rule
    module = kind(2, 1, **options)
    assert module.actor.sampler == DDPM(clip=1.0, clipping=clipping, variance=variance)
    assert module.acting_sampler() == module.actor.sampler
    other = {"clipping": "none", "variance": "beta", "temperature": 0.5, "sampling_steps": 2}
    assert module.acting_sampler(**other) == DDPM(2, clip=1.0, clipping="none", temperature=0.5)
    ddim = module.acting_sampler(sampler="ddim", clipping=None)
    assert ddim == DDIM(clip=1.0, clipping=clipping)
    assert {"clipping", "variance", "temperature"} <= kind.policy_options().keys()

    observations = torch.randn(50, 2).numpy()
    cold = module.policy(temperature=0.0)
    assert (cold.act(observations) == cold.act(observations)).all()
    with torch.no_grad():
        for net in (module.actor.average, module.actor.denoiser):
            [*net.parameters()][-1].fill_(-9.0)  # the last bias: leaves the actions' range
    assert abs(module.policy(clipping="none").act(observations)).max() == 1.0
    with pytest.raises(ConfigError, match="clipping is 'clip'; choose sample, estimate or none"):
        module.policy(clipping="clip")
    with pytest.raises(ConfigError, match="6 steps from a diffusion model trained with 5"):
        module.policy(sampling_steps=6)
    with pytest.raises(ConfigError, match="temperature is -1"):
        kind(2, 1, temperature=-1.0, **options)


def test_the_temperature_is_for_acting():
    module = DQLModule(2, 1, temperature=0.0, **CRITICS)
    assert module.acting_sampler().temperature == 0.0 and module.actor.sampler.temperature == 1.0


def test_a_checkpoint_without_the_options_keeps_what_held_before_them():
    before = {"clipping": "estimate", "variance": "beta"}
    more = {"denoiser": "residual", "activation": "relu", "climbed": "rows", "acts": "average"}
    assert values_before(DQLModule).items() >= (before | more).items()
    for kind, _, _ in RULES:
        name = f"lit_offrl.modules.{kind.__name__}"
        assert translated_hyperparameters({"width": 8}, name).items() >= before.items()
        given = {"clipping": "none", "variance": "posterior"}
        assert translated_hyperparameters(given, name).items() >= given.items()
        part = {"class_path": name, "init_args": {"width": 8}}
        stored = translated_config({"model": part}, stored=True)["model"]["init_args"]
        assert stored.items() >= before.items()
        assert translated_config({"model": part})["model"]["init_args"] == {"width": 8}
    assert translated_hyperparameters({}, "lit_offrl.modules.BCModule") == {}
    assert values_before(BCModule) == values_before("other.ACDModule") == values_before(None) == {}


def test_a_class_of_ones_own_keeps_it_but_for_what_it_says_itself():
    class Mine(ACDModule):
        pass

    class Clips(ACDModule):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, clipping="none", **kwargs)

    assert values_before(Mine) == BEFORE["ACDModule"]
    assert values_before(Clips) == {"variance": "beta"}


def test_drawing_refuses_what_it_cannot_be():
    with pytest.raises(ConfigError, match="variance is 'gamma'"):
        Drawing(variance="gamma")


def test_ldcq_and_dvf_have_the_posteriors_variance_too():
    assert Sampling("ddpm").make() == DDPM(10)
    assert Sampling("ddpm", variance="posterior").make() == DDPM(10, variance="posterior")
    with pytest.raises(ConfigError, match="variance is 'gamma'"):
        Sampling(variance="gamma")
    options = {"width": 8, "blocks": 1, "heads": 2, "latents": 2, "hidden": (8,)}
    module = DVFModule(3, 1, sampler="ddpm", variance="posterior", **options)
    assert module.occupancy.sampler == DDPM(10, clip=1.0, variance="posterior")


def test_stored_latents_keep_their_names_but_for_the_posteriors_variance():
    assert "variance" not in Sampling("ddpm").named()
    assert Sampling(variance="posterior").named() == Sampling().named()  # DPM-Solver++ has no noise
    assert Sampling("ddpm", variance="posterior").named()["variance"] == "posterior"


@pytest.mark.parametrize("kind", [MLPDenoiser, ResNetDenoiser])
def test_many_rows_are_denoised_in_parts_without_gradients_and_alike(kind, monkeypatch):
    torch.manual_seed(0)
    net = kind(2, 3, 5, width=8, blocks=2).eval()
    net._together = 4
    body, parts = net.body, []
    monkeypatch.setattr(net, "body", lambda rows: parts.append(len(rows)) or body(rows))
    given = torch.randn(10, 2), torch.arange(10) % 5 + 1, torch.randn(10, 3)
    whole = net(*given)
    with torch.no_grad():
        torch.testing.assert_close(net(*given), whole)
    assert parts == [10, 4, 4, 2] and whole.requires_grad
