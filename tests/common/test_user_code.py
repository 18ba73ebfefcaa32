import json
import sys

import gymnasium
import h5py
import numpy as np
import pytest
import torch
import yaml

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError, EvaluationError
from lit_offrl.common.user_code import import_named
from lit_offrl.evaluation.envs import find_spec, name_env

ROBOT = """
import gymnasium, numpy as np
from pathlib import Path
Path("canary").touch()
class Reach(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3), {}
    def step(self, action):
        return self.np_random.uniform(-1, 1, 3), np.array([1.0]), False, False, {}
gymnasium.register("TestReach-v0", entry_point="my_test_robot:Reach", max_episode_steps=50)
gymnasium.register("TestEndless-v0", entry_point="my_test_robot:Reach")
"""
ID = "my_test_robot:TestReach-v0"


def forget():
    sys.modules.pop("my_test_robot", None)
    for name in ("TestReach-v0", "TestEndless-v0"):
        gymnasium.registry.pop(name, None)


@pytest.fixture
def robot(folder, monkeypatch):
    """A module with two environments in the working directory, which nobody has imported yet."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (folder / "my_test_robot.py").write_text(ROBOT)
    forget()
    yield folder
    forget()


@pytest.fixture
def log(robot, d4rl_file):
    """Copy the small dataset with another environment's name in it."""

    def write(**attributes):
        path = robot / "log.hdf5"
        path.write_bytes(d4rl_file.read_bytes())
        with h5py.File(path, "a") as file:
            del file.attrs["env_id"]
            file.attrs.update(attributes)
        return str(path)

    return write


def test_an_own_environment_is_named_with_its_module(robot, log, lit, capsys):
    data = ["--data.init_args.dataset", log(), "--data.init_args.env_id", ID]
    options = ["--checkpoint.dirpath", "run", "--evaluation.episodes", "2"]
    assert lit(*data, *options) == 0
    assert "50.0" in capsys.readouterr().out  # fit's table: 50 steps that pay 1
    checkpoint = ["--ckpt_path", "run/last.ckpt"]
    forget()
    (robot / "canary").unlink()
    evaluate = ["evaluate", *checkpoint, "--episodes", "2", "--output", "a.json"]
    assert main(evaluate) == 2  # the checkpoint's word is not the user's
    assert f"if you trust it, name it yourself (evaluate, collect and online: --env {ID}" in (
        capsys.readouterr().err
    )
    resume = ["--data.init_args.dataset", "log.hdf5", *checkpoint, "--trainer.max_steps", "8"]
    assert lit(*resume, "--evaluation.episodes", "2") == 2
    assert f"fit: --data.init_args.env_id {ID}" in capsys.readouterr().err
    assert not (robot / "canary").exists()
    assert main([*evaluate, "--env", ID]) == 0
    assert (robot / "canary").exists()
    collect = ["collect", "--env", ID, "--kind", "random", "--steps", "60"]
    assert main([*collect, "--output", "c.hdf5"]) == 0
    with h5py.File("c.hdf5") as file:
        assert file["rewards"][:].tolist() == [1.0] * 60
        assert np.flatnonzero(file["timeouts"]).tolist() == [49, 59]


def test_no_file_has_a_module_imported(robot, log, lit, capsys):
    data = ["--data.init_args.dataset", log(env_id=ID)]
    assert lit(*data, "--evaluation.episodes", "2") == 2
    assert f"--data.init_args.env_id {ID}" in capsys.readouterr().err
    assert not (robot / "canary").exists() and "my_test_robot" not in sys.modules


def test_an_id_whose_module_is_imported_is_found(robot):
    with pytest.raises(EvaluationError, match="is of a module that is not imported"):
        find_spec(ID)
    name_env(ID)
    assert find_spec(ID).id == "TestReach-v0"


def test_the_datas_step_limit_holds_where_the_environment_has_none(robot, log, lit, capsys):
    endless = "my_test_robot:TestEndless-v0"
    rolls = ["--evaluation.episodes", "2", "--data.init_args.env_id", endless]
    assert lit("--data.init_args.dataset", log(max_episode_steps=70), *rolls) == 0
    assert "70.0" in capsys.readouterr().out  # 70 steps that pay 1
    path = robot / "log.hdf5"
    with h5py.File(path, "a") as file:
        del file.attrs["max_episode_steps"]
    own = ["--checkpoint.dirpath", "unlimited"]
    assert lit("--data.init_args.dataset", str(path), *rolls, *own) == 0
    said = capsys.readouterr().out
    assert "no evaluation: my_test_robot:TestEndless-v0 has no step limit" in said
    checkpoint = ["--ckpt_path", "unlimited/last.ckpt", "--episodes", "2", "--env", endless]
    assert main(["evaluate", *checkpoint]) == 2
    assert "has no step limit, so its episodes may never end: give --max_episode_steps" in (
        capsys.readouterr().err
    )
    assert main(["evaluate", *checkpoint, "--max_episode_steps", "30"]) == 0
    for verb in (["collect", "--kind", "random", "--steps", "60"], ["online"]):
        assert main([*verb, "--env", endless, "--output", "c.hdf5"]) == 2
        assert "has no step limit" in capsys.readouterr().err
    assert not (robot / "c.hdf5").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import gymnasium\nx = 1 / 0\n", r"ZeroDivisionError: .* \(.*/broken_robot.py, line 2\)"),
        ("import no_such_package_x\n", r"named 'no_such_package_x' \(.*broken_robot.py, line 1\)"),
        ("a = 1\nb = (\n", r"SyntaxError: '\(' was never closed \(/.*broken_robot.py, line 2\)"),
        ("raise SystemExit(3)\n", r"SystemExit: 3 \(.*broken_robot.py, line 1\)"),
    ],
)
def test_an_error_in_a_users_module_names_its_line(robot, text, said):
    (robot / "broken_robot.py").write_text(text)
    with pytest.raises(ConfigError, match=f"--env broken_robot:A-v0: importing .*{said}"):
        name_env("broken_robot:A-v0")


def test_a_missing_module_and_a_missing_environment_are_told_apart(robot):
    with pytest.raises(ConfigError, match="there is no module 'my_robbot', neither in"):
        import_named("my_robbot", "--env my_robbot:A-v0")
    with pytest.raises(
        EvaluationError, match=r"no environment 'TestRech-v0'. Did you mean 'TestRe"
    ):
        name_env("my_test_robot:TestRech-v0")
    for half in (":TestReach-v0", "my_test_robot:", ":"):
        with pytest.raises(ConfigError, match=f"--env '{half}' is no id: give"):
            name_env(half)


METHOD = """
from pathlib import Path
from lit_offrl.modules import BCModule
Path("canary").touch()
class MyMethod(BCModule):
    pass
"""


def test_an_own_method_is_trained_scored_and_gone_on_with(robot, lit, capsys):
    """It lies in the working directory, and the user names it in each command."""
    own = ("--model.init_args.hidden", "[8]", "--checkpoint.dirpath", "run")
    (robot / "my_test_method.py").write_text(METHOD)
    assert lit(*own, module="my_test_method.MyMthod") == 2
    assert capsys.readouterr().err == (
        "lit-offrl: error: model: module 'my_test_method' has no class 'MyMthod'."
        " Did you mean 'MyMethod'?\n"
    )
    assert lit(*own, module="my_test_method.MyMethod") == 0
    evaluate = ["evaluate", "--ckpt_path", "run/last.ckpt", "--episodes", "1", "--no-mlflow"]
    evaluate += ["--output", "a.json", "--max_episode_steps", "3"]
    resume = ["fit", "--ckpt_path", "run/last.ckpt", "--trainer.max_steps", "8"]

    def renamed(name):  # a class that is imported already would be found: so it is another's
        (robot / f"{name}.py").write_text(METHOD)
        (robot / "canary").unlink()
        checkpoint = torch.load("run/last.ckpt", weights_only=True)
        ours = checkpoint["lit_offrl"]
        config = yaml.safe_load(ours["config"])
        ours["class_path"] = config["model"]["class_path"] = f"{name}.MyMethod"
        ours["config"] = yaml.safe_dump(config)
        torch.save(checkpoint, "run/last.ckpt")

    renamed("my_second_method")
    for words in (evaluate, resume):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "the class my_second_method.MyMethod cannot be imported" in said
        assert "give --import my_second_method." in said and not (robot / "canary").exists()
    assert main([*evaluate, "--import", "my_second_method"]) == 0
    command = json.loads((robot / "a.json").read_text())["command"]
    assert command.startswith("lit-offrl --import my_second_method evaluate ")
    renamed("my_third_method")
    assert main([*resume, "--model", "my_third_method.MyMethod"]) == 0
    renamed("my_fourth_method")
    (robot / "own.yaml").write_text("{model: {class_path: my_fourth_method.MyMethod}}")
    assert main([*resume[:-1], "9", "--config", "own.yaml"]) == 0
    assert main([*evaluate, "--import", "no_such_method"]) == 2
    assert "there is no module 'no_such_method'" in capsys.readouterr().err
