import json

import numpy as np
import onnx
import pytest
import torch

from lit_offrl import modules
from lit_offrl.commands.evaluate import main as evaluate
from lit_offrl.commands.export import main as export
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.files import file_sha256
from lit_offrl.common.randomness import GivenNoise, draw_one
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.export import export_policy, load_onnx
from lit_offrl.modules import load_module
from tests.helpers import EXPORT_ROUNDING, unchecked

ROWS = 1000
HIDDEN = {"hidden": (8,)}
DENOISER = {**HIDDEN, "width": 16, "blocks": 1, "diffusion_steps": 3}  # each is unrolled
CASES = {
    "DQLModule": {**DENOISER, "num_samples": 3},
    "FQLModule": HIDDEN,
}
OTHERS = {
    "ACDModule": {**DENOISER, "act_mode": "acd_f", "num_samples": 3, "omega": 1.0},
    "ACDModule:classifier": {**DENOISER, "guidance": "classifier", "omega": 1.0},
    "ACGModule": {**HIDDEN, "representation": "one_hot"},
    "AWRModule": {**HIDDEN, "bootstrap": False},
    "BCModule": HIDDEN,
    "BCQModule": {**HIDDEN, "vae_hidden": (8,), "num_samples": 3},
    "CQLModule": HIDDEN,
    "DiffusionBCModule": {"width": 16, "blocks": 1, "sampler": "dpm++", "sampling_steps": 3},
    "DVFModule": {"width": 16, "blocks": 1, "latents": 2, "hidden": (8,), "history": 2},
    "IDQLModule": {**DENOISER, "num_samples": 3},
    "IFQLModule": {**HIDDEN, "num_samples": 3, "sampler": "heun", "sampling_steps": 2},
    "IQLModule": {**HIDDEN, "normalize": True},
    "ReBRACModule": HIDDEN,
    "TD3BCModule": HIDDEN,
}
STRONG = {"ACDModule:strong": {**DENOISER, "diffusion_steps": 5, "omega": 3.0}}


@pytest.fixture(scope="module", autouse=True)
def any_number_of_rows():
    """A symbol for the number of rows is no integer, as the checks of signatures have it."""
    with unchecked():
        yield


def made(case):
    """A small module for Pendulum, of other weights than zeros, as if it had been trained."""
    torch.manual_seed(0)
    name, options = case.partition(":")[0], {**CASES, **OTHERS, **STRONG}[case]
    module = getattr(modules, name)(3, 1, (-2.0,), (2.0,), **options)
    module.normalizer.fit(torch.randn(100, 3))
    facts = {"env_id": "Pendulum-v1", "action_low": (-2.0,), "action_high": (2.0,)}
    module.spec = DatasetSpec("swings", 3, 1, sha256="ab" * 32, max_episode_steps=200, **facts)
    return module.eval()


def saved(module, path):
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    checkpoint["global_step"] = 7
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """The exported policy of a BCModule, for tests that only read it."""
    return made("BCModule").policy().export(tmp_path_factory.mktemp("cloned"))


def agrees(module, path):
    """The file's actions are those of the module's policy on the same noise, for any E."""
    exported, policy = load_onnx(path), module.policy()
    sizes = exported.facts.inputs
    for rows in (1, 2, 7, ROWS):
        observations = torch.randn(rows, 3)
        noise = torch.randn(rows, sizes.get("noise", 0))
        with GivenNoise(noise).used():
            wanted = policy.act(observations.numpy())
        given = {"observations": observations, "noise": noise}
        found = exported.decide(**{name: given[name].numpy() for name in sizes})["actions"]
        assert found.shape == (rows, 1) and found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=EXPORT_ROUNDING, rtol=0)


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_an_exported_decision_is_the_policys_own(case, tmp_path):
    module = made(case)
    path = module.policy().export(tmp_path)
    assert path == tmp_path / "policy.onnx"
    agrees(module, path)
    onnx.checker.check_model(path, full_check=True)
    facts = load_onnx(path).facts
    assert facts.method == case.partition(":")[0] and facts.spec["sha256"] == "ab" * 32
    assert facts.inputs["observations"] == 3 and facts.outputs == {"actions": 1}


@pytest.mark.slow
def test_strong_guidance_loses_no_more_digits_in_the_file_than_in_its_own_policy(tmp_path):
    """ω multiplies rounding errors: both are as far from float64 as from each other."""
    case = "ACDModule:strong"
    module = made(case)
    exported = load_onnx(module.policy().export(tmp_path))
    observations, noise = torch.randn(ROWS, 3), torch.randn(ROWS, exported.facts.inputs["noise"])
    with GivenNoise(noise).used():
        own = module.policy().act(observations.numpy())
    found = exported.decide(observations=observations.numpy(), noise=noise.numpy())["actions"]
    with torch.no_grad(), GivenNoise(noise.double()).used():
        exact, _ = made(case).double().policy().step(observations.double(), {})
    assert exact.dtype == torch.float64
    lost, own_lost = (np.abs(actions - exact.numpy()).max() for actions in (found, own))
    assert 0 < lost <= 4 * own_lost < 1e-3


def test_a_choice_by_given_numbers_has_the_softmaxs_probabilities():
    probabilities = torch.softmax(torch.tensor([[0.0, 1.0, 2.0, -40.0]]), dim=1)
    given = GivenNoise(torch.randn(40_000, 4, generator=torch.Generator().manual_seed(0)))
    with given.used():
        chosen = draw_one(probabilities.expand(40_000, -1))
    shares = torch.bincount(chosen, minlength=4) / 40_000
    torch.testing.assert_close(shares, probabilities[0], atol=0.01, rtol=0)
    torch.manual_seed(3)
    natively = draw_one(probabilities.expand(100, -1))
    torch.manual_seed(3)
    assert torch.equal(natively, probabilities.expand(100, -1).multinomial(1).squeeze(1))


def test_an_exported_network_is_the_policys_own(cloned):
    agrees(made("BCModule"), cloned)


def test_the_commands_export_and_score_a_policy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = str(saved(made("BCModule"), tmp_path / "last.ckpt"))
    assert export(["--ckpt_path", path, "--output", "robot"]) == 0
    assert "policy: robot/policy.onnx" in capsys.readouterr().out
    how = ["--episodes", "5", "--max_episode_steps", "20", "--num_envs", "2"]
    assert evaluate(["--policy", "robot/policy.onnx", *how, "--output", "exported.json"]) == 0
    assert evaluate(["--ckpt_path", path, *how, "--output", "native.json"]) == 0
    exported, native = (EvaluationRecord.load(f"{name}.json") for name in ("exported", "native"))
    np.testing.assert_allclose(exported.returns, native.returns, rtol=1e-5)
    same = ("method", "dataset_sha256", "config_sha256", "training_steps", "checkpoint_rule")
    assert all(getattr(exported, name) == getattr(native, name) for name in same)
    assert exported.checkpoint_sha256 == file_sha256("robot/policy.onnx")
    facts = load_onnx("robot/policy.onnx").facts
    assert facts.checkpoint_sha256 == file_sha256(path) and facts.training_steps == 7


def test_a_policy_that_draws_repeats_itself_by_its_seed(tmp_path):
    path = export_policy(made("FQLModule").policy(), tmp_path)
    observations = np.ones((3, 3), np.float32)
    first, again, other = (load_onnx(path, seed).act(observations) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len(np.unique(first)) == 3  # noise of its own for each environment
    shared, alone = load_onnx(path, 1), load_onnx(path, 1)
    drawn = [shared.draw(2), shared.another().draw(2)]  # one session and one stream for both
    assert np.array_equal(drawn, [alone.draw(2), alone.draw(2)])
    assert shared.another()._session is shared._session


def test_weights_and_options_alone_make_the_module_again(tmp_path):
    module = made("DQLModule")
    path = module.policy(num_samples=2).export(tmp_path, "safetensors")
    again = load_module(path)
    assert type(again) is type(module) and again.spec == module.spec
    assert dict(again.hparams)["num_samples"] == 3
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert again.training is False and again.loaded_from == path


# ---- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable ONNX file"),
        (b"\x08\x07broken", "not a readable ONNX file"),
        ({}, "no policy of lit-offrl: export one by 'lit-offrl export'"),
        ({"lit_offrl": "{"}, "no policy of lit-offrl"),
        ({"lit_offrl": "[1]"}, "no policy of lit-offrl"),
        ({"lit_offrl": json.dumps({"method": "BCModule", "spec": {"name": 3}})}, "no policy of"),
    ],
)
def test_a_broken_or_foreign_file_is_one_line(content, message, tmp_path, monkeypatch):
    path = tmp_path / "policy.onnx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        model = identity()
        for key, value in content.items():
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, path)
    with pytest.raises(ConfigError, match=message) as error:
        evaluate(["--policy", str(path)])
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def identity():
    value = onnx.helper.make_tensor_value_info
    port = {name: value(name, onnx.TensorProto.FLOAT, ["E", 3]) for name in ("x", "y")}
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [port["x"]], [port["y"]])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])


def test_facts_that_are_not_the_graphs_are_refused(tmp_path, cloned):
    other, path = identity(), tmp_path / "policy.onnx"
    other.metadata_props.extend(onnx.load(cloned).metadata_props)
    onnx.save(other, path)
    with pytest.raises(ConfigError, match=r"its graph has {'x': 3} where its facts have {'observ"):
        load_onnx(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "takes one of --ckpt_path, a checkpoint, and --policy, an exported policy"),
        (["--ckpt_path", "a.ckpt", "--policy", "b.onnx"], "takes one of --ckpt_path"),
        (["--policy", "b.onnx", "--policy.omega", "1"], "give them to 'lit-offrl export'"),
        (["--policy", "b.onnx"], "b.onnx: no such exported policy"),
    ],
)
def test_wrong_arguments_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        evaluate(words)


def test_what_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime.*pip install 'lit-offrl\[export\]'"):
        load_onnx(path)


def test_observations_that_no_state_can_be_are_refused(cloned):
    policy = load_onnx(cloned)
    with pytest.raises(EvaluationError, match=r"observations of shape \(E, 3\)"):
        policy.act(np.zeros((2, 4)))
    with pytest.raises(EvaluationError, match="nan in dimension 0 of observation 1"):
        policy.act(np.array([[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0]]))
    with pytest.raises(EvaluationError, match="the exported policy takes"):
        policy.decide(observations=np.zeros((2, 4)))


def test_what_was_never_trained_or_made_by_hand_is_refused(tmp_path):
    module = made("BCModule")
    policy = module.policy()
    with pytest.raises(ConfigError, match="format is 'pickle'; choose onnx"):
        policy.export(tmp_path, "pickle")
    module.spec = None
    with pytest.raises(ConfigError, match="never trained on a dataset"):
        policy.export(tmp_path)
    policy.made_by = None
    with pytest.raises(ConfigError, match="made by hand"):
        policy.export(tmp_path)
