"""A mistake in the options of the last method is found before the first cell begins."""

import shutil
from pathlib import Path

import gymnasium
import h5py
import pytest
import yaml

BC = ["bc", "data/adroit"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"config": BC, "options": {"model.init_args.hiden": 1}},
            "late/tiny/seed0: BCModule has no option 'hiden'. Did you mean 'hidden'?",
        ),
        (
            {"pipeline": "two.yaml", "options": {"second.trainer.max_step": 1}},
            "late/tiny/seed0: there is no option '--trainer.max_step'. Did you mean",
        ),
        (
            {"pipeline": "two.yaml", "options": {"two.policy.plan": True}},
            "late/tiny/seed0: The policy of BCModule has no option 'plan' (it has execute_steps).",
        ),
    ],
)
def test_options_are_parsed_before_anything_begins(folder, d4rl_file, capsys, method, message):
    from lit_offrl.__main__ import main

    stages = {"first": {"config": BC}, "second": {"config": BC}}
    (folder / "two.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    content = {"methods": {"early": {"config": BC}, "late": method}, "seeds": [0, 1]}
    content["datasets"] = {"tiny": str(d4rl_file)}
    (folder / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["sweep", "--config", "grid.yaml"]) == 2
    err = capsys.readouterr().err
    assert f"lit-offrl: error: {message}" in err and err.count("\n") == 1
    assert not Path("sweeps").exists() and not Path("mlflow.db").exists()


@pytest.mark.parametrize("kind", ["config", "pipeline"])
def test_data_without_an_environment_are_refused_before_anything_begins(
    folder, d4rl_file, capsys, kind
):
    from lit_offrl.__main__ import main

    log = folder / "robot.hdf5"
    shutil.copy(d4rl_file, log)
    with h5py.File(log, "a") as file:
        del file.attrs["env_id"]
        del file.attrs["max_episode_steps"]
    (folder / "one.yaml").write_text(yaml.safe_dump({"stages": {"clone": {"config": BC}}}))
    method = {kind: {"config": BC, "pipeline": "one.yaml"}[kind]}
    content = {"methods": {"bc": method}, "datasets": {"robot": str(log)}, "seeds": [0]}

    def sweep(*words, **changes):
        (folder / "grid.yaml").write_text(yaml.safe_dump({**content, **changes}))
        assert main(["sweep", "--config", "grid.yaml", *words]) == 2
        assert not Path("sweeps").exists() and not Path("mlflow.db").exists()
        return capsys.readouterr().err

    said = sweep()
    assert "bc/robot/seed0: Nothing says which environment the dataset 'robot' is from" in said
    assert "'evaluate: false' trains alone" in said and said.count("\n") == 1
    assert sweep("--dry_run") == said
    assert "There is no environment 'Pendulm-v1'" in sweep(evaluate={"env": "Pendulm-v1"})
    gymnasium.register("Unlimited-v0", "gymnasium.envs.classic_control:PendulumEnv")
    try:
        assert "'Unlimited-v0' has no step limit" in sweep(evaluate={"env": "Unlimited-v0"})
    finally:
        del gymnasium.registry["Unlimited-v0"]
