"""The command on a tiny module: what it writes, what it refuses."""

import json
import shutil

import h5py
import numpy as np
import pytest
import yaml

from lit_offrl.__main__ import main
from lit_offrl.studies import candidates

SMALL = {"width": 8, "blocks": 1, "heads": 2, "latents": 2, "hidden": [8], "history": 2}
SMALL |= {"diffusion_steps": 4, "sampling_steps": 2, "num_samples": 2, "warmup_steps": 2}
SMALL |= {"gamma": 0.9}
QUICK = ["--fqe_steps", "20", "--starts", "3", "--samples", "4", "--no-mlflow"]


@pytest.fixture(scope="module")
def trained(d4rl_file, tmp_path_factory):
    """Checkpoints by φ's kind, and their data: 20 episodes of policies 0 … 4 in turn."""
    folder = tmp_path_factory.mktemp("ope")
    data = folder / "several.hdf5"
    shutil.copy(d4rl_file, data)
    with h5py.File(data, "a") as file:
        file["policy"] = np.repeat(np.arange(20) % 5, 30).astype(np.float32)
    for kind in ("scalar", "sequential"):
        config = {
            "model": {
                "class_path": "DVFModule",
                "init_args": {**SMALL, "policy_representation": kind},
            },
            "data": {
                "class_path": "D4RLDataModule",
                "init_args": {"dataset": str(data), "hold_out_policies": [1, 3], "batch_size": 32},
            },
            "trainer": {"accelerator": "cpu", "max_steps": 2, "logger": False},
            "evaluation": {"episodes": 0},
            "checkpoint": {"dirpath": str(folder / kind)},
        }
        config["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", str(folder / "config.yaml")]) == 0
    return folder


@pytest.fixture
def ope(trained, folder, monkeypatch):
    """Run the command on one of the checkpoints; how well policies are cloned is of no interest."""
    monkeypatch.setattr(candidates, "_STEPS", 20)

    def run(*options, kind="scalar"):
        path = str(trained / kind / "last.ckpt")
        return main(["ope", "--ckpt_path", path, *QUICK, "--output", "out", *options])

    return run


def record():
    with open("out/ope.json") as file:
        return json.load(file)


@pytest.mark.parametrize("kind", ["scalar", "sequential"])
def test_policies_held_out_are_valued_by_both_estimators(ope, trained, kind, capsys):
    assert ope(kind=kind) == 0
    said = capsys.readouterr().out
    assert "FQE: best" in said and "DVF: best" in said and "Spearman" in said
    found = record()
    assert [one["policy"] for one in found["candidates"]] == [1, 3]
    assert not any(one["seen_in_training"] for one in found["candidates"])
    assert found["dataset_handling"] == ["episodes of the policies 1, 3 were held out"]
    assert found["dataset_sha256"] == found["trained_on_sha256"]
    assert np.shape(found["fqe_trace"]) == (10, 2) and found["fqe"]["steps"] == 20
    with h5py.File(trained / "several.hdf5") as file:
        paid = file["rewards"][:].reshape(20, 30)[1::5].astype(np.float64)
    skip = 2 if kind == "sequential" else 0
    returns = (paid[:, skip:] * 0.9 ** np.arange(30 - skip)).sum(1)
    assert found["candidates"][0]["truth"] == pytest.approx(returns.mean())
    assert found["candidates"][0]["truth_episodes"] == 4
    for name in ("dvf", "fqe"):
        values = np.array([one[name] for one in found["candidates"]])
        truth = np.array([one["truth"] for one in found["candidates"]])
        absolute = found["summary"][name]["mean_absolute_error"]
        assert absolute == pytest.approx(np.abs(values - truth).mean())
    with open("out/ope.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert ope(kind=kind) == 0  # the same command gives the same numbers
    assert record()["candidates"] == found["candidates"]


def test_a_checkpoint_may_act_and_its_truth_is_unknown_or_rolled_out(ope, trained):
    path = trained / "scalar" / "last.ckpt"
    assert ope("--policies", f"0,2={path}", "--baseline", "none") == 0
    found = record()
    logged, acting = found["candidates"]
    assert logged["seen_in_training"] and acting["label"] == "2=last.ckpt"
    assert acting["truth"] is None and acting["fqe"] is None and found["fqe"] is None
    assert found["summary"]["dvf"]["spearman"] is None  # one known truth has no rank
    assert ope("--policies", f"0,2={path}", "--truth", "rollouts", "--episodes", "2") == 0
    assert record()["candidates"][1]["truth_episodes"] == 2
    assert record()["candidates"][0] == {
        **logged, "fqe": pytest.approx(0, abs=1e9), "fqe_error": pytest.approx(0, abs=1e9)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policies", "7"], "never has the value 7"),
        (["--policies", "two"], "'two' is no policy"),
        (["--policies", "1=none.ckpt"], "none.ckpt: no such checkpoint"),
        (["--starts", "0"], "starts is 0"),
        (["--fqe_steps", "0"], "steps is 0"),
        (["--data", "none.hdf5"], "none.hdf5"),
        (["--ckpt_path", "none.ckpt"], "none.ckpt: no such checkpoint"),
        (["--output", __file__], "cannot be made (File exists)"),
    ],
)
def test_mistakes_are_one_line(ope, options, said, capsys):
    assert ope(*options) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_checkpoints_need_a_scalar_representation(ope, trained, capsys):
    path = trained / "scalar" / "last.ckpt"
    assert ope("--policies", f"2={path}", kind="sequential") == 2
    assert "φ is the states that a policy came through" in capsys.readouterr().err


def test_data_without_the_column_are_refused(ope, d4rl_file, capsys):
    assert ope("--data", str(d4rl_file), "--policies", "1") == 2
    assert "has no column 'policy'" in capsys.readouterr().err


def test_any_checkpoint_is_valued_beside_the_datas_own_policy(lit, d4rl_file, capsys):
    """On data without a column 'policy'."""
    for name, more in (("a", ()), ("b", ("--seed_everything", "1"))):
        assert lit("--checkpoint.dirpath", name, *more) == 0
    quick = ["--fqe_steps", "20", "--starts", "7", "--no-mlflow", "--output", "out"]
    paths = ["--ckpt_path", "a/last.ckpt", "--against", "b/last.ckpt"]
    capsys.readouterr()
    assert main(["ope", *paths, *quick, "--gamma", "0.9"]) == 0
    said = capsys.readouterr().out
    assert "a/last.ckpt" in said and "b/last.ckpt" in said and "the data's own policy" in said
    found = record()
    assert [one["training_seed"] for one in found["policies"]] == [0, 1]
    assert [one["checkpoint_rule"] for one in found["policies"]] == ["last", "last"]
    assert all(len(one["trace"]) == 10 for one in found["policies"])
    assert found["held_out"] and found["initial_states"] == 2 and found["gamma"] == 0.9
    with h5py.File(d4rl_file) as file:  # the two episodes held out, whichever those are
        rewards = file["rewards"][:].reshape(20, 30).astype(np.float64)
    returns = rewards @ 0.9 ** np.arange(30)
    pairs = (returns[:, None] + returns[None]) / 2
    assert np.isclose(pairs, found["behaviour"]["mean"]).any()

    for words, why in (
        (["--policies", "1"], "--policies goes with DVF's values of other policies"),
        (["--truth", "rollouts"], "--truth goes with DVF's values"),
        (["--starts", "0"], "starts is 0"),
        (["--against", "a/last.ckpt"], "is named twice"),
    ):
        assert main(["ope", "--ckpt_path", "a/last.ckpt", *quick, *words]) == 2
        assert why in capsys.readouterr().err


def test_a_dvf_beside_another_checkpoint_is_valued_as_any(ope, trained):
    assert ope("--against", str(trained / "sequential/last.ckpt")) == 0
    found = record()
    assert [one["method"] for one in found["policies"]] == ["DVFModule", "DVFModule"]
    assert found["gamma"] == 0.9  # the method's own
