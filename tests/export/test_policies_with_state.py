import numpy as np
import onnx
import pytest
import torch

from lit_offrl import modules
from lit_offrl.commands.serve import ServeOptions
from lit_offrl.commands.serve import _exported as served_policy
from lit_offrl.common.randomness import GivenNoise
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.evaluate import evaluate_exported, evaluate_module
from lit_offrl.export import load_onnx
from lit_offrl.export.facts import PolicyFacts
from lit_offrl.serving.clients import Clients, Step
from tests.helpers import EXPORT_ROUNDING, unchecked

HIDDEN = {"hidden": (8,)}
DENOISER = {**HIDDEN, "width": 8, "blocks": 1, "diffusion_steps": 3}
PLAN = {"width": 16, "multipliers": (4,), "horizon": 8, "diffusion_steps": 2}
SKILL = {"horizon": 3, "width": 8, "gru_layers": 1, "latent_dim": 2}
PRIOR = {"width": 8, "widths": (8, 4, 8), "diffusion_steps": 5}
DRAWN = {"sampling_steps": 2}
Q = {
    "state_hidden": (8,),
    "latent_hidden": (8,),
    "joined": (8, 4),
    "num_latents": 5,
    "sampling_steps": 2,
}
CASES = {
    "ReBRACModule": ({**HIDDEN, "chunk": 3, "execute_steps": 2}, {}),
    "LDCQStage1Module": (SKILL, {"sample_actions": True}),
}
OTHERS = {
    "ACDModule": ({**DENOISER, "chunk": 2, "omega": 1.0}, {}),
    "DQLModule": ({**DENOISER, "chunk": 2, "num_samples": 3}, {}),
    "IQLModule": ({**HIDDEN, "chunk": 3}, {}),
    "DecisionTransformerModule": ({"width": 8, "blocks": 1, "context": 4}, {"target_return": 5.0}),
    "DecisionDiffuserModule": (
        {**PLAN, "history": 2, "execute_steps": 3, "inverse_hidden": (8,)},
        {},
    ),
    "DiffuserModule:goals": (
        {**PLAN, "guided": False, "goal_dims": (0, 1), "execute_steps": 3, "num_samples": 1},
        {},
    ),
    "DiffuserModule:guided": (
        {**PLAN, "num_samples": 3, "guide_scale": 1.0, "guide_stop": 0}
        | {"guide_steps": 1, "execute_steps": 3},
        {},
    ),
    "LDCQStage2Module": (PRIOR, DRAWN),
    "LDCQStage2Module:goal": ({**PRIOR, "goals": "hindsight"}, {**DRAWN, "guidance": 2.0}),
    "LDCQStage2Module:plan": (PRIOR, {**DRAWN, "plan": True, "num_latents": 3}),
    "LDCQStage3Module": (Q, DRAWN),
    "LDCQStage3Module:gaussian": ({**Q, "prior": "gaussian"}, {}),
}


@pytest.fixture(scope="module", autouse=True)
def any_number_of_rows():
    """A symbol for the number of rows is no integer, as the checks of signatures have it."""
    with unchecked():
        yield


def trained(kind, **options):
    """A small module for Pendulum, as if it had been trained."""
    torch.manual_seed(0)
    module = kind(3, 1, (-2.0,), (2.0,), **options)
    for normalizer in (module.normalizer, getattr(module, "action_normalizer", None)):
        if normalizer is not None:
            sizes = normalizer.state_dict().values()
            normalizer.fit(torch.randn(100, max(part.numel() for part in sizes)))
    facts = {"env_id": "Pendulum-v1", "action_low": (-2.0,), "action_high": (2.0,)}
    module.spec = DatasetSpec("swings", 3, 1, sha256="ab" * 32, max_episode_steps=200, **facts)
    return module.eval()


def saved(module, path):
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def made(case, folder):
    """The module of a case, and the options of its policy."""
    name = case.partition(":")[0]
    options, acting = {**CASES, **OTHERS}[case]
    if name in ("LDCQStage2Module", "LDCQStage3Module"):
        stage1 = saved(trained(modules.LDCQStage1Module, **SKILL), folder / "1.ckpt")
        stages = {"stage1": stage1}
        if name == "LDCQStage3Module" and options.get("prior") != "gaussian":
            stage2 = trained(modules.LDCQStage2Module, **PRIOR, stage1=stage1)
            stages = {"stage2": saved(stage2, folder / "2.ckpt")}
        options = {**options, **stages}
    return trained(getattr(modules, name), **options), acting


def agrees(module, acting, path):
    """Step by step on the same noise, while episodes begin at different times."""
    exported, policy = load_onnx(path), module.policy(**acting)
    sizes, random = exported.facts.inputs, np.random.default_rng(0)
    for rows in (1, 5):
        exported.reset()
        policy.reset()
        for step in range(9):
            if step == 4:
                mask = np.arange(rows) % 2 == 1
                exported.reset(mask)
                policy.reset(mask)
            noise = random.standard_normal((rows, sizes.get("noise", 0)), np.float32)
            exported.draw = lambda number, noise=noise: noise
            if "goals" in sizes:
                goals = random.normal(size=(rows, sizes["goals"])).astype(np.float32)
                exported.aim(goals)
                policy.aim(goals)
            observations = random.normal(size=(rows, 3))
            with GivenNoise(torch.from_numpy(noise)).used():
                wanted = policy.act(observations)
            np.testing.assert_allclose(
                exported.act(observations), wanted, atol=EXPORT_ROUNDING, rtol=0
            )
            if "rewards" in sizes:
                rewards = random.normal(size=rows).astype(np.float32)
                exported.earn(rewards)
                policy.earn(rewards)


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_an_exported_policy_remembers_what_its_own_does(case, tmp_path):
    module, acting = made(case, tmp_path)
    path = module.policy(**acting).export(tmp_path / "robot")
    agrees(module, acting, path)
    exported = load_onnx(path)
    facts, graph = exported.facts, onnx.load(path).graph
    assert facts.inputs["state"] == facts.outputs["next_state"] > 0
    assert [port.name for port in graph.output] == ["actions", "next_state"]
    for port in (*graph.input, *graph.output):
        assert port.type.tensor_type.shape.dim[0].dim_param == "E"
    # what only a new choice needs is computed where one is due
    lasting = case != "DecisionTransformerModule"
    conditions = [node for node in graph.node if node.op_type == "If"]
    assert len(conditions) == lasting
    for node in conditions:
        branch = next(one.g for one in node.attribute if one.name == "then_branch")
        assert {"Gemm", "MatMul", "Conv"} & {inner.op_type for inner in branch.node}
    page = (path.parent / "README.md").read_text()
    assert "next_state" in page and "decisions a second" in page


@pytest.mark.slow
def test_an_exported_policy_with_chunks_earns_what_its_own_does(tmp_path):
    module, _ = made("ReBRACModule", tmp_path)
    path = module.policy().export(tmp_path / "robot")
    how = {"episodes": 5, "seed": 1, "num_envs": 2, "max_episode_steps": 20}
    found = evaluate_exported(load_onnx(path), **how).returns
    np.testing.assert_allclose(found, evaluate_module(module, **how).returns, rtol=1e-4)


@pytest.mark.slow
def test_a_served_export_keeps_each_clients_chunk(tmp_path):
    """What ``serve --policy`` acts by, for clients that begin at different times."""
    module, _ = made("ReBRACModule", tmp_path)
    make, _ = served_policy(ServeOptions(policy=module.policy().export(tmp_path)), {})
    clients, random = Clients(make), np.random.default_rng(0)
    own = [module.policy(), module.policy()]
    assert clients.remembers
    for step in range(7):
        for late, policy in enumerate(own[: step + 1]):
            observations = random.normal(size=(2, 3)).astype(np.float32)
            asked = Step(observations=observations, client=f"client-{late}", reset=step == late)
            (found,) = clients.act([asked])
            np.testing.assert_allclose(
                found, policy.act(observations), atol=EXPORT_ROUNDING, rtol=0
            )
    assert len(clients) == 2


def test_the_same_graph_runs_in_pytorch(tmp_path):
    module, _ = made("ReBRACModule", tmp_path)
    path = module.policy().export(tmp_path, "torch_export")
    program = torch.export.load(path).module()
    facts = PolicyFacts.from_json((tmp_path / "policy.json").read_text(), path)
    policy, state = module.policy(), torch.zeros(4, facts.inputs["state"])
    for _ in range(5):
        observations = torch.randn(4, 3)
        actions, state = program(observations, state)
        wanted = policy.act(observations.numpy())
        np.testing.assert_allclose(actions.numpy(), wanted, atol=EXPORT_ROUNDING, rtol=0)
