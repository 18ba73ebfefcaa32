"""The hub: what is pushed comes back as it was, and what strangers put there does nothing."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants

from lit_offrl.__main__ import main
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.files import file_sha256
from lit_offrl.datasets.schema import DatasetSpec
from lit_offrl.evaluation.record import EvaluationRecord
from lit_offrl.hub import fetching
from lit_offrl.hub.folder import write_folder
from lit_offrl.hub.repository import repository
from lit_offrl.modules import BCModule, DecisionTransformerModule
from lit_offrl.modules.base import CHECKPOINT_KEY
from lit_offrl.modules.checkpoints import load_module
from lit_offrl.modules.weights_file import write_weights
from lit_offrl.tracking.references import checkpoint_path

_spec = importlib.util.spec_from_file_location(
    "standing_in", Path(__file__).with_name("standing_in.py")
)
stand_in = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stand_in)
TOKEN = stand_in.TOKEN
REPO = "robots/hopper-bc"
CONFIG = """
seed_everything: 3
model: {class_path: lit_offrl.modules.BCModule, init_args: {hidden: [8]}}
data: {class_path: lit_offrl.datamodules.PyBulletDataModule, init_args: {batch_size: 4}}
trainer: {max_steps: 5, logger: {class_path: mine.Logger}, default_root_dir: /home/me}
checkpoint: {dirpath: /home/me/runs}
"""


def save(path, module=None, **ours):
    torch.manual_seed(0)
    module = module or BCModule(15, 3, [-1.0] * 3, [1.0] * 3, hidden=[8])
    facts = {"env_id": "HopperBulletEnv-v0", "sha256": "ab" * 32, "origin": "/home/me/data.hdf5"}
    module.spec = DatasetSpec("some-data", module.observation_dim, 3, **facts)
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "global_step": 5,
    }
    module.on_save_checkpoint(checkpoint)
    checkpoint[CHECKPOINT_KEY] |= {"config": CONFIG, "mlflow": {"run_id": "a" * 32}} | ours
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def checkpoint(folder):
    return save(folder / "last.ckpt")


@pytest.fixture
def hub(folder, monkeypatch):
    monkeypatch.setenv("LIT_OFFRL_DATA", str(folder / "data"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with stand_in.standing_in() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.uri)
        yield hub


def evaluated(checkpoint, made_record, path="evaluations/one.json", **changes):
    sha256 = file_sha256(checkpoint)
    facts = {"checkpoint_sha256": sha256, "checkpoint_rule": "last", "command": "lit-offrl eval"}
    record = made_record(40.0, 3, **{**facts, **changes})
    Path(path).parent.mkdir(exist_ok=True)
    return record.save(path)


def said(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    assert TOKEN not in line
    return line


def test_a_policy_that_is_pushed_acts_wherever_a_checkpoint_may_be_named(
    checkpoint, hub, made_record, capsys
):
    evaluated(checkpoint, made_record)
    assert main(["hub", "push", "last.ckpt", "--repo", REPO, "--private"]) == 0
    out = capsys.readouterr().out
    assert hub.commit(REPO) in out and TOKEN not in out
    assert hub.files[REPO].keys() == {
        "policy.safetensors",
        "config.yaml",
        "evaluations/one.json",
        "README.md",
    }
    assert REPO in hub.private
    there = load_module(f"hub:{REPO}")
    rows = np.random.default_rng(0).normal(size=(4, 15)).astype(np.float32)
    expected = load_module(checkpoint).policy().act(rows)
    assert np.array_equal(there.policy().act(rows), expected)
    assert there.spec.name == "some-data" and there.spec.origin == "data.hdf5"
    pinned = f"hub:{REPO}@{hub.commit(REPO)}"
    asked = len(hub.asked)
    assert checkpoint_path(pinned).is_file() and len(hub.asked) == asked  # nothing is asked again
    episodes = ["--episodes", "1", "--max_episode_steps", "3", "--no-mlflow"]
    assert main(["evaluate", "--ckpt_path", pinned, *episodes]) == 0
    (record,) = Path("evaluations").glob("robots--hopper-bc-policy-*.json")
    assert EvaluationRecord.load(record).checkpoint_sha256 == file_sha256(checkpoint_path(pinned))


def test_what_is_pulled_is_what_was_pushed(checkpoint, hub, made_record, capsys):
    path = evaluated(checkpoint, made_record)
    assert main(["hub", "push", "last.ckpt", "--repo", REPO]) == 0
    assert main(["hub", "pull", REPO]) == 0
    folder = Path("hopper-bc")
    assert (folder / "README.md").read_bytes() == hub.files[REPO]["README.md"]
    one = EvaluationRecord.load(folder / "evaluations/one.json")
    assert one == EvaluationRecord.load(path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"] == {"max_steps": 5} and config["seed_everything"] == 3
    assert config["model"]["init_args"]["hidden"] == [8]
    rows = np.ones((1, 15), np.float32)
    expected = load_module(checkpoint).policy().act(rows)
    assert np.array_equal(load_module(folder / "policy.safetensors").policy().act(rows), expected)
    capsys.readouterr()
    assert main(["hub", "pull", REPO]) == 2
    assert "hopper-bc: is there already: give another --output" in said(capsys)


def test_a_dry_run_writes_the_folder_and_asks_nobody(checkpoint, hub, made_record, capsys):
    evaluated(checkpoint, made_record)
    evaluated(checkpoint, made_record, "evaluations/foreign.json", checkpoint_sha256="0" * 64)
    argv = ["hub", "push", "last.ckpt", "--repo", REPO, "--dry_run", "there"]
    assert main([*argv, "--license", "mit"]) == 0
    assert hub.asked == []
    names = {str(p.relative_to("there")) for p in Path("there").rglob("*") if p.is_file()}
    assert names == {"policy.safetensors", "config.yaml", "evaluations/one.json", "README.md"}
    texts = "".join(Path("there", name).read_text() for name in names - {"policy.safetensors"})
    blob = Path("there/policy.safetensors").read_bytes()
    assert "/home/me" not in texts and b"/home/me" not in blob and b"a" * 32 not in blob
    _, front, page = Path("there/README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(front)
    assert header["library_name"] == "lit-offrl" and header["license"] == "mit"
    (result,) = header["model-index"][0]["results"]
    record = EvaluationRecord.load("evaluations/one.json")
    mean = f"{np.mean(record.returns):.2f}"
    assert result["metrics"][0]["value"].startswith(f"{mean} ± ")
    assert f"| {np.mean(record.returns):.1f} ± " in page
    for text in ("some-data", "ab" * 32, "lit-offrl eval", file_sha256(checkpoint), "last"):
        assert text in page
    assert file_sha256("there/policy.safetensors") in page
    assert f"--ckpt_path hub:{REPO}" in page
    assert main(argv) == 2  # the folder is there


def test_a_record_of_another_checkpoint_is_refused(checkpoint, made_record, capsys):
    path = evaluated(checkpoint, made_record, checkpoint_sha256="0" * 64)
    argv = ["hub", "push", "last.ckpt", "--repo", REPO, "--record", str(path), "--dry_run", "there"]
    assert main(argv) == 2
    assert "is of another checkpoint than last.ckpt" in said(capsys)
    assert not Path("there").exists()
    assert main([*argv[:5], "--dry_run", "there"]) == 0
    assert "It has not been evaluated" in Path("there/README.md").read_text()


def test_a_policy_that_remembers_comes_back_too(folder, hub):
    module = DecisionTransformerModule(4, 3, [-1.0] * 3, [1.0] * 3, context=3, target_return=7.0)
    path = save(folder / "dt.ckpt", module, config=None)
    assert main(["hub", "push", str(path), "--repo", "robots/dt"]) == 0
    assert "config.yaml" not in hub.files["robots/dt"]
    policy, own = load_module("hub:robots/dt").policy(), load_module(path).policy()
    rows = np.ones((2, 4), np.float32)
    for _ in range(4):
        assert np.array_equal(policy.act(rows), own.act(rows))
        for each in (policy, own):
            each.earn(np.ones(2))


@pytest.mark.parametrize(
    "text",
    [
        *("", "name", "../etc", "a/../b", "a/..", "org/name/more", "/org/name", "org//name"),
        *("org/na me", "org/name@", "org/name@../x", "org/name@-x", "örg/name", "org/name@a..b"),
        *("org/name\n", "https://evil.example/org/name", "-org/name", "org/" + "n" * 200),
    ],
)
def test_names_that_lead_elsewhere_are_refused(text, hub):
    with pytest.raises(ConfigError, match="names no repository of the hub") as refused:
        load_module(f"hub:{text}")
    assert "\n" not in str(refused.value) and hub.asked == []


def test_revisions_are_no_part_of_what_is_pushed_to():
    assert repository("org/name@v1.0").revision == "v1.0"
    with pytest.raises(ConfigError, match="give ORG/NAME"):
        repository("org/name@v1.0", revisions=False)


def test_what_fails_at_the_hub_is_one_line(checkpoint, hub, monkeypatch, capsys):
    def refused(*argv):
        assert main([*argv]) == 2
        return said(capsys)

    pull, push = ("hub", "pull"), ("hub", "push", "last.ckpt", "--repo")
    assert "there is no such repository, or it is private" in refused(*pull, "robots/none")
    assert "you may not do that (403)" in refused(*push, "others/policy")
    hub.put("robots/empty", {"README.md": b"#"})
    assert "has no policy.safetensors: was it pushed by" in refused(*pull, "robots/empty")
    assert "has no revision 'v9'" in refused(*pull, "robots/empty@v9")
    assert main([*push, REPO]) == 0
    capsys.readouterr()
    hub.lies = True
    assert "policy.safetensors is not what the hub says" in refused(*pull, REPO)
    assert not list(Path("data").rglob("*.safetensors"))
    hub.lies, hub.cut = False, True
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None, raising=False)
    assert f"hub:{REPO}: the hub " in refused(*pull, REPO)
    assert not list(Path("data").rglob("*.safetensors"))
    hub.cut = False
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "none")
    assert "you may not do that (401)" in refused(*push, "robots/other")
    hub.private.add(REPO)
    assert "it is private and you are not known" in refused(*pull, REPO)


def test_without_a_network_a_commit_that_was_fetched_acts_and_others_are_one_line(
    checkpoint, hub, monkeypatch
):
    assert main(["hub", "push", "last.ckpt", "--repo", REPO]) == 0
    weights = checkpoint_path(f"hub:{REPO}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        checkpoint_path(f"hub:{REPO}")
    assert checkpoint_path(f"hub:{REPO}@{hub.commit(REPO)}") == weights


@pytest.fixture
def hostile(folder, monkeypatch):
    """A module that must not be imported, though the working directory has it."""
    (folder / "hostile.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(folder))
    yield "hostile.Policy"
    assert "hostile" not in sys.modules


def hostile_weights(folder, changes, spec=True):
    torch.manual_seed(0)
    module = BCModule(15, 3, [-1.0] * 3, [1.0] * 3, hidden=[8])
    module.spec = DatasetSpec("some-data", 15, 3)
    saved = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(saved)
    saved[CHECKPOINT_KEY] |= changes.pop("ours", {})
    write_weights(folder / "bad.safetensors", saved | changes)
    return (folder / "bad.safetensors").read_bytes()


def test_classes_that_a_strangers_files_name_are_not_imported(folder, hub, hostile, capsys):
    for changes, line in (
        ({"ours": {"class_path": hostile}}, "the class hostile.Policy cannot be imported"),
        ({"ours": {"class_path": "os.system"}}, "os.system"),
        (
            {"ours": {"config": f"model: {{class_path: {hostile}}}"}},
            "the class hostile.Policy cannot be imported",
        ),
        (
            {"ours": {"config": f"data: {{class_path: {hostile}}}"}},
            "the class hostile.Policy cannot be imported",
        ),
        ({"hyper_parameters": {"observation_dim": "x"}}, "does not fit BCModule"),
        ({"ours": {"spec": {"name": "x", "evil": 1}}}, "unknown field 'evil'"),
    ):
        files = {"policy.safetensors": hostile_weights(folder, changes), "README.md": b"#"}
        hub.files.clear()
        hub.put("strangers/policy", files)
        assert main(["hub", "pull", "strangers/policy", "--output", "out"]) == 2
        assert line in said(capsys)
        assert not Path("out").exists()


def test_a_hostile_config_and_hostile_names_in_a_repository_are_left_there(
    folder, hub, hostile, capsys
):
    weights = hostile_weights(
        folder,
        {"ours": {"config": f"trainer: {{callbacks: [{{class_path: {hostile}}}], max_steps: 3}}"}},
    )
    hub.put(
        "strangers/policy",
        {
            "policy.safetensors": weights,
            "README.md": b"#",
            "config.yaml": f"model: {{class_path: {hostile}}}".encode(),
            "evaluations/../../../evil.json": b"{}",
            "evaluations/.hidden.json": b"{}",
            "policy.ckpt": b"cos\nsystem\n(S'echo'\ntR.",
        },
    )
    assert main(["hub", "pull", "strangers/policy", "--output", "out"]) == 0
    names = {path.name for path in Path("out").rglob("*") if path.is_file()}
    assert names == {"policy.safetensors", "README.md", "config.yaml"}
    config = Path("out/config.yaml").read_text()
    assert "hostile" not in config and yaml.safe_load(config)["trainer"] == {"max_steps": 3}
    fetched = {path for kind, path in hub.asked if kind == "GET" and "/resolve/" in path}
    assert all(path.endswith(("policy.safetensors", "README.md")) for path in fetched)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x04N.", b"\xff" * 100])
def test_weights_that_are_none_are_one_line(hub, content, capsys):
    hub.put("strangers/policy", {"policy.safetensors": content, "README.md": b"#"})
    assert main(["hub", "pull", "strangers/policy"]) == 2
    assert "policy.safetensors: not readable weights" in said(capsys)


def test_records_that_are_none_or_too_large_are_one_line(checkpoint, hub, monkeypatch, capsys):
    assert main(["hub", "push", "last.ckpt", "--repo", REPO]) == 0
    hub.put(REPO, {"evaluations/a.json": json.dumps({"evil": 1}).encode()})
    capsys.readouterr()
    assert main(["hub", "pull", REPO]) == 2
    assert "unknown field 'evil'" in said(capsys)
    monkeypatch.setattr(fetching, "_MOST_TEXT", 10)
    hub.put(REPO, {"README.md": b"#" * 11})
    assert main(["hub", "pull", REPO]) == 2
    assert "README.md has 11 bytes; 10 are the most" in said(capsys)


def test_without_its_package_the_command_names_the_extra(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["hub", "pull", REPO]) == 2
    assert r"pip install -e .[hub]" in said(capsys)


def test_what_cannot_act_is_not_pushed(folder):
    module = BCModule(15, 3, [-1.0] * 3, [1.0] * 3, hidden=[8])
    saved = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(saved)
    torch.save(saved, "untrained.ckpt")
    with pytest.raises(ConfigError, match="was never trained on a dataset"):
        write_folder(Path("untrained.ckpt"), Path("there"), REPO)
