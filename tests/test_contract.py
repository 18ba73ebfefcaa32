"""The one contract that every module passes; an algorithm's own entry is a line of ``MODULES``."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from lit_offrl.common.errors import EvaluationError
from lit_offrl.evaluation.evaluate import evaluate_module
from lit_offrl.modules import OfflineModule, load_module

# Options that make a module small; ``lit`` trains it on Pendulum-like data of 20 short episodes.
# What follows a colon only tells two entries of one module apart.
DVF = (
    "--model.init_args.width 16 --model.init_args.blocks 1 --model.init_args.latents 4"
    " --model.init_args.hidden [16] --model.init_args.num_samples 2 --model.init_args.history 2"
    " --model.init_args.diffusion_steps 8 --model.init_args.sampling_steps 2"
    " --trainer.gradient_clip_val 100"
)
DENOISER = "--model.init_args.width 16 --model.init_args.blocks 1 --model.init_args.hidden [8]"
PLAN = (
    "--model.init_args.width 16 --model.init_args.multipliers [4] --model.init_args.horizon 8"
    " --model.init_args.diffusion_steps 2 --model.init_args.ema_start 2"
    " --model.init_args.ema_every 2 --model.init_args.execute_steps 6"
    " --model.init_args.learning_rate 5e-5"
)
Q = (
    "--model.init_args.state_hidden [8] --model.init_args.latent_hidden [8]"
    " --model.init_args.joined [8,4] --model.init_args.num_latents 5"
    " --trainer.gradient_clip_val 1"
)
MODULES = {
    "BCModule": "--model.init_args.hidden [8]",
    "CQLModule": "--model.init_args.hidden [8,8] --model.init_args.num_actions 3",
    "TD3BCModule": "--model.init_args.hidden [8]",
    "ReBRACModule": "--model.init_args.hidden [8]",
    "BCQModule": "--model.init_args.hidden [8] --model.init_args.vae_hidden [8]",
    "DecisionTransformerModule": "--model.init_args.width 8 --model.init_args.blocks 1"
    " --model.init_args.context 4 --model.init_args.warmup_steps 3",
    "IQLModule": "--model.init_args.hidden [8] --model.init_args.dropout 0.1",
    "IQLModule:chunks": "--model.init_args.hidden [8] --model.init_args.chunk 3"
    " --model.init_args.n_step 4 --model.init_args.execute_steps 2",
    "ReBRACModule:chunks": "--model.init_args.hidden [8] --model.init_args.chunk 3",
    "ACDModule:chunks": f"{DENOISER} --model.init_args.chunk 2",
    "ACDModule:returns": f"{DENOISER} --model.init_args.chunk 2 --model.init_args.values returns"
    " --model.init_args.return_bins 9 --model.init_args.lookahead n_step"
    " --model.init_args.n_step 3 --model.init_args.failure_reward -20"
    " --model.init_args.condition positive --model.init_args.positive_share 0.4",
    "AWRModule": "--model.init_args.hidden [8] --model.init_args.bootstrap false",
    "ACGModule": "--model.init_args.hidden [8] --model.init_args.representation one_hot",
    "DiffusionBCModule": "--model.init_args.width 16 --model.init_args.blocks 1",
    "IDQLModule": f"{DENOISER} --model.init_args.num_samples 3",
    "FQLModule": "--model.init_args.hidden [8]",
    "IFQLModule": "--model.init_args.hidden [8] --model.init_args.num_samples 3",
    "DQLModule": f"{DENOISER} --model.init_args.num_samples 3"
    " --model.init_args.actor_ema_start 1 --model.init_args.actor_ema_every 2",
    "ACDModule": f"{DENOISER} --model.init_args.act_mode acd_f --model.init_args.num_samples 3",
    "DiffuserModule": f"{PLAN} --model.init_args.num_samples 2 --model.init_args.guide_stop 1",
    "DiffuserModule:goals": f"{PLAN} --model.init_args.guided false"
    " --model.init_args.multipliers [1] --model.init_args.goal_dims [0,1]"
    " --model.init_args.partial all",
    "DecisionDiffuserModule": f"{PLAN} --model.init_args.history 2"
    " --model.init_args.inverse_hidden [8]",
    "LDCQStage1Module": "--model.init_args.horizon 5 --model.init_args.width 16"
    " --model.init_args.gru_layers 1 --model.init_args.latent_dim 2",
    "LDCQStage2Module": "--model.init_args.stage1 STAGE1 --model.init_args.width 16",
    "LDCQStage2Module:goals": "--model.init_args.stage1 STAGE1 --model.init_args.width 16"
    " --model.init_args.goals hindsight --model.init_args.posteriors online",
    "LDCQStage3Module": f"--model.init_args.stage2 STAGE2 {Q}",
    "LDCQStage3Module:online": f"--model.init_args.stage2 STAGE2 {Q}"
    " --model.init_args.latents online --model.init_args.guidance 2",
    "LDCQStage3Module:bcq_h": "--model.init_args.prior gaussian"
    f" --model.init_args.stage1 STAGE1 {Q}",
    "DVFModule": DVF,
    "DVFModule:cached": f"{DVF} --model.init_args.values cached --model.init_args.warmup_steps 2",
    "DVFModule:returns": f"{DVF} --model.init_args.values cached --model.init_args.warmup_steps 2"
    " --model.init_args.extraction awr --model.init_args.advantage returns",
}
CASES = [(name, "PyBulletDataModule") for name in MODULES]
CASES += [(name, "D4RLDataModule") for name in ("BCModule", "CQLModule")]
ROBOTS = ("LeRobotDataModule", "RobomimicDataModule")
# rows alone, with next actions, and windows of an episode
BY_ROBOTS = ("BCModule", "ReBRACModule", "DecisionTransformerModule")
CASES += [(name, data) for data in ROBOTS for name in BY_ROBOTS]
# Further entries of a module, and of robots' data, are for CI: each is in the usual suite once.
SLOW = [(n, data) for n, data in CASES if ":" in n or (data in ROBOTS and n != "BCModule")]
MARKED = [
    pytest.param(case, id="-".join(case), marks=[pytest.mark.slow] * (case in SLOW))
    for case in CASES
]


@pytest.fixture(scope="session")
def stages(d4rl_file, tmp_path_factory):
    """Checkpoints that later stages take, by the word that stands for them above."""
    from lit_offrl.__main__ import main

    folder = tmp_path_factory.mktemp("stages")
    data = ("--data", "PyBulletDataModule", "--data.init_args.dataset", str(d4rl_file))
    quiet = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
    quiet += ("--trainer.enable_model_summary", "false", "--evaluation.episodes", "0")
    made: dict[str, str] = {}
    for word, name in (("STAGE1", "LDCQStage1Module"), ("STAGE2", "LDCQStage2Module")):
        options = replaced(MODULES[name], made)
        place = ("--checkpoint.dirpath", str(folder / word), "--trainer.accelerator", "cpu")
        words = ["fit", "--model", name, *data, *quiet, *place, "--trainer.max_steps", "2"]
        assert main([*words, *options]) == 0
        made[word] = str(folder / word / "last.ckpt")
    return made


def replaced(options, paths):
    """Split options into words, those that stand for checkpoints replaced by paths."""
    return [paths.get(word, word) for word in options.split()]


@pytest.fixture(params=MARKED)
def fit(request, lit):
    """Train the module under test; returns its last checkpoint."""
    case, data = request.param

    def run(name, *options):
        earlier = request.getfixturevalue("stages") if "STAGE" in MODULES[case] else {}
        options = (*replaced(MODULES[case], earlier), *options)
        assert lit("--checkpoint.dirpath", name, *options, module=run.module, data=data) == 0
        return Path(name) / "last.ckpt"

    run.module, _, kind = case.partition(":")
    run.aimed = kind == "goals"
    # of which a prior takes bfloat16: of fewer, casting the weights costs more than it saves
    run.many = ("--data.init_args.batch_size", "128") if "Stage2" in case else ()
    return run


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def refuses_what_no_state_can_be(policy, observations):
    for wrong, said in (
        (observations[:, :2], r"shape \(E, 3\), a row for each .* was given \(5, 2\)"),
        (observations[0], r"was given \(3,\): give those of one environment as observation"),
        (np.where(np.eye(5, 3) * [0, 1, 0], np.nan, observations), "nan in dimension 1 of obse"),
        (observations * 1e41, "inf in dimension 0 of observation 0"),  # in float32
        ([[0.0, 1.0, 2.0], [0.0]], r"takes observations as an array of shape \(E, 3\), a row for"),
    ):
        with pytest.raises(EvaluationError, match=said):
            policy.act(wrong)
    policy.act(observations.tolist())


def test_fits_scores_saves_loads_and_predicts(fit, folder, capsys, monkeypatch):
    from lit_offrl.__main__ import main

    # of its 200 steps, which all methods take alike
    monkeypatch.setattr(gymnasium.spec("Pendulum-v1"), "max_episode_steps", 20)
    goal = {"goal": [0.0, 0.0]} if fit.aimed else {}  # Pendulum names none
    path = fit("run", "--evaluation.episodes", "0" if goal else "2")
    assert goal or "Pendulum-v1, 2 episodes" in capsys.readouterr().out

    module = load_module(path)
    assert isinstance(module, OfflineModule) and type(module).__name__ == fit.module
    assert all(value.isfinite().all() for value in weights(path).values())
    observations = np.random.default_rng(0).normal(size=(5, 3))
    actions = module.policy(**goal).act(observations)
    assert actions.shape == (5, 1) and actions.dtype == np.float32
    assert np.abs(actions).max() <= 2.0
    refuses_what_no_state_can_be(module.policy(**goal), observations)

    records = [
        evaluate_module(load_module(path), episodes=2, seed=1, policy_options=goal)
        for _ in range(2)
    ]
    assert records[0].returns == records[1].returns

    assert main(["predict", "--ckpt_path", str(path), "--trainer.accelerator", "cpu"]) == 0
    with np.load("predictions.npz") as predicted:
        assert len(predicted["actions"]) == len(predicted["observations"]) > 0
        seen = predicted["observations"]
        again, once_more = (module.policy(**goal).act(seen) for _ in range(2))
        if np.array_equal(again, once_more):  # a policy that samples would not repeat itself
            np.testing.assert_allclose(predicted["actions"], again, rtol=1e-4, atol=1e-5)


def test_resumes_bit_for_bit(fit, same_state):
    """Weights, optimiser and curves, those of validations too."""
    every = ("--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "1")
    options = (*every, "--data.init_args.validation_batches", "1", "--trainer.max_steps")
    whole = fit("whole", *options, "6")
    cut = fit("cut", *options, "3")
    fit("cut", *options, "6", "--ckpt_path", str(cut))
    same_state(whole, cut)


def test_two_processes_train_as_one_with_their_batches_joined(fit, monkeypatch):
    common = ("--trainer.max_steps", "4", "--data.init_args.batch_size")
    alone = weights(fit("alone", *common, "32"))
    # Forked rather than started anew: imports take longer than these steps. Users are refused
    # that, as no forked process could save when a signal comes; none comes here.
    monkeypatch.setattr("lit_offrl.cli.main._require_launcher", lambda *_: None)
    two = ("--trainer.strategy", "ddp_fork", "--trainer.devices", "2")
    together = weights(fit("together", *common, "16", *two))
    for name, value in alone.items():
        torch.testing.assert_close(
            together[name], value, rtol=1e-4, atol=2e-5, msg=lambda text: f"{name}: {text}"
        )


def test_trains_in_bfloat16(fit, monkeypatch):
    """Losses, what is logged, gradients, weights and averages are float32 all the same."""
    metrics, gradients = set(), set()
    rates = OfflineModule.set_rates

    def watched(module, optimizer):
        metrics.update((name, value.dtype) for name, value in module.latest_metrics.items())
        trained = [part for part in module.parameters() if part.grad is not None]
        gradients.update(part.grad.dtype for part in trained)
        rates(module, optimizer)

    monkeypatch.setattr(OfflineModule, "set_rates", watched)
    path = fit("run", "--trainer.precision", "bf16-mixed", *fit.many)
    assert gradients == {torch.float32}
    assert any(name.startswith("train/loss/") for name, _ in metrics)
    assert {(name, dtype) for name, dtype in metrics if dtype != torch.float32} == set()
    full = weights(fit("full", *fit.many))
    half = weights(path)
    assert any(not torch.equal(half[name], full[name]) for name in full)
    assert all(value.isfinite().all() for value in half.values())
    assert all(half[name].dtype == full[name].dtype for name in full)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_resumes_bit_for_bit_and_trains_in_bfloat16(fit, same_state):
    # with steps of two kinds, both are captured as graphs by step 12
    gpu = ("--trainer.accelerator", "gpu", "--trainer.devices", "1")
    gpu += ("--trainer.log_every_n_steps", "15", "--trainer.max_steps")
    whole, cut = fit("whole", *gpu, "30"), fit("cut", *gpu, "15")
    fit("cut", *gpu, "30", "--ckpt_path", str(cut))
    same_state(whole, cut)
    half = weights(fit("half", *gpu, "30", "--trainer.precision", "bf16-mixed", *fit.many))
    full = weights(fit("full", *gpu, "30", *fit.many) if fit.many else whole)
    assert any(not torch.equal(half[name], full[name]) for name in full)
    assert all(value.isfinite().all() for value in half.values())
