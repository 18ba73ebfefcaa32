"""Every file under configs/ through the real command line."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from lit_offrl.__main__ import main
from lit_offrl.cli.main import parse_options
from lit_offrl.experiments.job import Tracking
from lit_offrl.experiments.pipeline import read_pipeline

CONFIGS = Path(__file__).parent.parent / "configs"
# Of METHOD.yaml, which goes with any data/*.yaml.
METHODS = {"bc": "BC", "cql": "CQL", "dvf": "DVF", "iql": "IQL", "awr": "AWR", "acg": "ACG"}
METHODS |= {"diffusion_bc": "DiffusionBC", "idql": "IDQL", "dql": "DQL", "acd": "ACD"}
METHODS |= {"td3bc": "TD3BC", "bcq": "BCQ", "rebrac": "ReBRAC", "fql": "FQL", "ifql": "IFQL"}
METHODS |= {"diffuser": "Diffuser", "decision_diffuser": "DecisionDiffuser"}
METHODS |= {"decision_transformer": "DecisionTransformer"}
# A method with options of its own.
RECIPES = {"acd_recap": "ACD"}
STAGES = {f"ldcq_stage{number}": f"LDCQStage{number}" for number in (1, 2, 3)}
DATA = ("adroit", "antmaze", "kitchen", "locomotion", "maze2d", "mountain_car", "pybullet")
OGBENCH = ("cube_single", "cube_double", "scene", "puzzle_3x3", "puzzle_4x4", "pointmaze")
DATA += ("lerobot", "robomimic", "random_walk", *(f"ogbench_{name}" for name in OGBENCH))
# Of files that name their data; those of the first must have a column 'policy'.
OF_POLICIES = ("dvf_ope_mountain_car.yaml", "dvf_mountain_car.yaml", "dvf_maze2d_policies.yaml")
WHOLE = (*OF_POLICIES, "dvf_maze2d.yaml", "dvf_pybullet.yaml")
# Their data have a column 'policy': they are for `lit-offrl online`, which makes it.
ONLINE = {"dvf_online_pendulum.yaml": "DVFModule"}
# For `lit-offrl pipeline`; the files that they are built on.
PIPELINES = tuple(
    f"ldcq_{data}.yaml"
    for data in ("maze2d", "antmaze", "kitchen", "locomotion", "adroit", "random_walk")
)
# Two steps on four rows: enough to build and run everything at its real size.
FEW = ("--trainer.max_steps", "2", "--data.init_args.batch_size", "4", "--trainer.logger", "false")
FEW += ("--evaluation.episodes", "0", "--data.init_args.validation_batches", "1")
QUIET = ("--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false")
CPU = ("--trainer.accelerator", "cpu", "--trainer.devices", "1")


# What srun tells a task of a job with one.
SLURM = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "fit", "SLURM_PROCID": "0"}
SLURM |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}


@pytest.fixture(scope="module")
def several_file(d4rl_file, tmp_path_factory):
    """The small dataset, each of its 20 episodes of a policy of its own."""
    path = tmp_path_factory.mktemp("several") / "several.hdf5"
    shutil.copy(d4rl_file, path)
    with h5py.File(path, "a") as file:
        file["policy"] = np.repeat(np.arange(20, dtype=np.float32), 30)
    return path


@pytest.fixture
def fit(folder, d4rl_file, several_file):
    def run(*options):
        data = several_file if options[0] in OF_POLICIES else d4rl_file
        words = ["fit"]
        for name in (option for option in options if option.endswith(".yaml")):
            words += ["--config", str(CONFIGS / name)]
        words += ["--data.init_args.dataset", str(data), *FEW, *QUIET, *CPU]
        words += [option for option in options if not option.endswith(".yaml")]
        assert main([*words, "--checkpoint.dirpath", "run"]) == 0
        return torch.load("run/last.ckpt", weights_only=True)

    return run


def test_every_config_is_tested():
    found = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    own = {
        f"{name}.yaml" for name in (*METHODS, *RECIPES, *STAGES, *(f"data/{name}" for name in DATA))
    }
    trainers = ("cpu", "fast_cpu", "gpu", "ddp", "slurm")
    overlays = {"quick.yaml", "ogbench_quick.yaml", *(f"trainer/{name}.yaml" for name in trainers)}
    of_pipelines = {*PIPELINES, "ldcq_stages.yaml", "ldcq_quick.yaml", "acd_acting.yaml"}
    assert found == {*own, *WHOLE, *ONLINE, *overlays, *of_pipelines}


@pytest.mark.parametrize(
    "name", [*(name for name in METHODS if name != "dvf"), *RECIPES, "ldcq_stage1"]
)
@pytest.mark.slow
def test_a_method_at_its_real_size(fit, name):
    """DVF is among the experiments below."""
    # waypoints need positions and velocities, which Pendulum's observations are not
    actions = ("--model.init_args.controller", "actions", "--model.init_args.execute_steps", "1")
    checkpoint = fit(f"{name}.yaml", "data/maze2d.yaml", *actions * (name == "diffuser"))
    kind = {**METHODS, **RECIPES, **STAGES}[name]
    assert checkpoint["lit_offrl"]["class_path"].endswith(f".{kind}Module")
    assert checkpoint["global_step"] == 2


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.slow
def test_dvfs_experiments_at_their_real_size(fit, name):
    checkpoint = fit(name, "--model.init_args.num_samples", "1")
    assert checkpoint["lit_offrl"]["class_path"].endswith("DVFModule")
    assert checkpoint["global_step"] == 2


@pytest.mark.parametrize("data", DATA)
def test_tuned_values_are_what_fit_trains_with(data):
    """Each method with values of its own there, and one without."""
    tuned = yaml.safe_load((CONFIGS / "data" / f"{data}.yaml").read_text()).get("methods", {})
    files = {f"{kind}Module": name for name, kind in {**METHODS, **STAGES}.items()}
    assert tuned.keys() <= files.keys()
    for kind in {*tuned, "BCModule"}:
        stage = {"2": ["--model.init_args.stage1", "x"], "3": ["--model.init_args.stage2", "x"]}
        given = ["--config", files[kind], "--config", f"data/{data}", *stage.get(kind[9:10], [])]
        config = parse_options(["fit", *given])
        assert config.model.class_path.endswith(kind)
        for option, value in tuned.get(kind, {}).items():
            assert config[option] == value, option


@pytest.mark.parametrize(
    ("data", "name", "values"),
    [
        ("antmaze", "iql", {"beta": 10.0, "expectile": 0.9, "dropout": 0.0}),
        ("locomotion", "iql", {"beta": 3.0, "expectile": 0.7, "dropout": 0.0}),
        ("kitchen", "iql", {"beta": 0.5, "expectile": 0.7, "dropout": 0.1}),
        ("adroit", "awr", {"beta": 0.5, "dropout": 0.1}),
        ("antmaze", "dql", {"eta": 3.0, "backup_samples": 10}),
        ("kitchen", "ldcq_stage1", {"horizon": 20}),
        ("maze2d", "diffuser", {"horizon": 384, "diffusion_steps": 256, "execute_steps": None}),
        ("kitchen", "decision_diffuser", {"horizon": 56, "width": 128, "guidance": 1.2}),
        ("locomotion", "decision_transformer", {"target_return": 3600.0, "context": 20}),
        ("kitchen", "decision_transformer", {"target_return": 4.0, "return_scale": 1.0}),
        ("antmaze", "rebrac", {"gamma": 0.999, "critic_learning_rate": 5e-5, "critic_bc": 0.0}),
        ("locomotion", "rebrac", {"actor_bc": 0.01, "learning_rate": 1e-3, "layer_norm": "after"}),
        ("antmaze", "fql", {"alpha": 10.0, "q_agg": "mean", "hidden": [512] * 4}),
        ("adroit", "fql", {"alpha": 30000.0, "q_agg": "min", "sampling_steps": 10}),
        ("antmaze", "ifql", {"expectile": 0.9, "num_samples": 32, "layer_norm": "after"}),
        ("ogbench_cube_single", "fql", {"alpha": 300.0, "hidden": [512] * 4}),
        ("ogbench_puzzle_4x4", "fql", {"alpha": 1000.0, "gamma": 0.99, "learning_rate": 3e-4}),
        ("ogbench_pointmaze", "fql", {"alpha": 10.0, "q_agg": "min"}),
        ("ogbench_cube_double", "rebrac", {"actor_bc": 0.1, "critic_bc": 0.0}),
        ("ogbench_scene", "iql", {"beta": 10.0, "expectile": 0.9, "layer_norm": "after"}),
        ("ogbench_cube_single", "acd_recap", {"values": "returns", "positive_share": 0.3}),
        ("pybullet", "bcq", {"phi": 0.05, "soft_minimum": 0.75, "learning_rate": 1e-3}),
    ],
)
def test_values_of_the_papers(data, name, values):
    config = parse_options(["fit", "--config", name, "--config", f"data/{data}"])
    assert {option: config.model.init_args[option] for option in values} == values


def test_options_win_over_tuned_values_and_these_over_files_before_them(folder):
    Path("mine.yaml").write_text("model: {init_args: {beta: 2.0}}\n")
    antmaze = ["--config", "iql", "--config", "data/antmaze"]
    for more, beta in (
        (["--config", "mine.yaml"], 2.0),
        (["--model.init_args.beta", "4"], 4.0),
        (["--model.beta", "5"], 5.0),
    ):
        assert parse_options(["fit", *antmaze, *more]).model.init_args.beta == beta
    before = ["fit", "--config", "data/antmaze", "--config", "iql"]
    assert parse_options(before).model.init_args.beta == 10.0
    other = parse_options(["fit", *antmaze, "--config", "bc"])
    assert other.model.class_path.endswith("BCModule") and "beta" not in other.model.init_args


@pytest.mark.parametrize("name", ONLINE)
def test_a_round_of_the_online_mode_at_its_real_size(folder, name):
    words = ["online", "--config", str(CONFIGS / name), "--env", "Pendulum-v1", "--output", "run"]
    words += ["--rounds", "1", "--steps_per_round", "8", "--episodes", "1", "--num_envs", "1"]
    few = ("--trainer.max_steps", "2", "--model.init_args.warmup_steps", "1")
    assert main([*words, *few, "--trainer.logger", "false", *QUIET]) == 0
    checkpoint = torch.load("run/round-0/last.ckpt", weights_only=True)
    assert checkpoint["lit_offrl"]["class_path"].endswith(ONLINE[name])
    assert checkpoint["global_step"] == 2


@pytest.mark.slow
def test_a_pipeline_at_its_real_size(folder, d4rl_file, here, monkeypatch):
    monkeypatch.setattr("lit_offrl.experiments.executors.local.Children", lambda: here)
    few = ["trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    few += ["stage1.model.init_args.horizon=10"]  # so that not all windows end in a terminal
    few += ["data.init_args.batch_size=4", "data.init_args.validation_batches=1"]
    few += [f"{name}.model.init_args.num_latents=2" for name in ("stage3", "stage3_gaussian")]
    few += ["evaluate.episodes=1", "evaluate.max_episode_steps=2", "evaluate.num_envs=1"]
    few += ["ldgc.policy.goal=[0, 0]", "ldcp.policy.goal=[0, 0]", "ldcp.policy.num_latents=2"]
    words = ["pipeline", "--config", str(CONFIGS / PIPELINES[0]), "--dataset", str(d4rl_file)]
    words += ["--no-mlflow", "--output", "run", *(word for one in few for word in ("--set", one))]
    assert main(words) == 0
    checkpoint = torch.load("run/seed0/stage3/fit/last.ckpt", weights_only=True)
    assert checkpoint["lit_offrl"]["class_path"].endswith("LDCQStage3Module")
    records = {path.parent.name for path in Path("run/seed0").glob("*/evaluation.json")}
    assert records == {"ldcq", "bcq_h", "ldgc", "ldcp"}


def test_one_training_and_two_ways_to_act(folder, here, monkeypatch):
    monkeypatch.setattr("lit_offrl.experiments.executors.local.Children", lambda: here)
    few = [
        "trainer.max_steps=2",
        "trainer.enable_progress_bar=false",
        "data.init_args.batch_size=4",
    ]
    few += ["data.init_args.validation_batches=1", "acd_f.policy.num_samples=2"]
    few += ["evaluate.episodes=1", "evaluate.max_episode_steps=2", "evaluate.num_envs=1"]
    words = ["pipeline", "--config", str(CONFIGS / "acd_acting.yaml"), "--no-mlflow"]
    words += ["--output", "run", *(word for one in few for word in ("--set", one))]
    assert main(words) == 0
    for name in ("acd", "acd_f"):
        record = json.loads(Path(f"run/seed0/{name}/evaluation.json").read_text())
        assert record["policy_options"]["act_mode"] == name


def test_each_stage_of_a_pipeline_under_the_quick_overlay_is_one_that_fit_takes(folder):
    checked = set()
    for name in PIPELINES:
        pipeline = read_pipeline([CONFIGS / name, CONFIGS / "ldcq_quick.yaml"])
        jobs = pipeline.jobs(folder, Tracking(None, "all"), 0)
        stages = {job.name: job for job in jobs if job.is_fit}
        for stage in stages.values():
            options = stage.options.items()
            what = str(
                (stage.name, sorted(option for option in options if "dataset" not in option[0]))
            )
            if what not in checked:
                parse_options(stage.argv("0"))
            checked.add(what)
        names = {job.name for job in jobs if not job.is_fit}
        goals = {"ldgc", "ldcp"} if "stage2_goal" in stages else set()
        assert names == {"ldcq", "bcq_h"} | goals


def test_the_quick_overlay_composes(fit):
    quick = yaml.safe_load((CONFIGS / "quick.yaml").read_text())["model"]["init_args"]
    used = fit("dvf_pybullet.yaml", "quick.yaml")["hyper_parameters"]
    assert {name: used[name] for name in quick} == quick
    assert used["_class_path"].endswith("DVFModule") and used["gamma"] == 0.99


@pytest.mark.parametrize("name", ["cpu", "fast_cpu", "gpu", "ddp", "slurm"])
def test_a_trainer_overlay_composes_and_builds(fit, name, monkeypatch):
    for variable, value in SLURM.items() if name == "slurm" else ():
        monkeypatch.setenv(variable, value)
    # On one CPU process: whether it then runs on many is test_ddp's to say.
    fit("bc.yaml", "data/pybullet.yaml", f"trainer/{name}.yaml", "--trainer.num_nodes", "1")
