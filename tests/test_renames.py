"""Options of an earlier name, in config files, flags, sweeps' files, checkpoints and runs."""

import json

import pytest
import torch
import yaml

from lit_offrl.cli.errors import OneLineArgumentParser
from lit_offrl.cli.main import _Parsed
from lit_offrl.common.configs import merge_configs
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.renames import (
    RENAMED,
    renames_of,
    translated,
    translated_config,
    translated_hyperparameters,
    translated_name,
)
from lit_offrl.modules import BCModule
from lit_offrl.modules.checkpoints import config_of, read_checkpoint

ENTRIES = [(name, *pair) for name, entries in RENAMED.items() for pair in entries.items()]
LINE = "lit-offrl: BCModule: layers is called hidden now"


@pytest.fixture
def renamed(monkeypatch):
    """As if BCModule's ``hidden`` had been called ``layers``."""
    monkeypatch.setitem(RENAMED, "BCModule", {"layers": "hidden"})
    monkeypatch.setattr(OneLineArgumentParser, "renamed", {})


@pytest.fixture
def fit(command, renamed):
    """Fit BCModule for a step by options and a config's text; returns the exit code."""
    from lit_offrl.__main__ import main

    def run(*options, verb="fit"):
        argv = command(*options, verb=verb, module="BCModule")
        at = argv.index("--model.init_args.hidden")  # the fixture's own
        return main([*argv[:at], *argv[at + 2 :], "--checkpoint.dirpath", "run"])

    return run


def hidden_of(path="run/last.ckpt"):
    checkpoint = read_checkpoint(path)
    config = config_of(checkpoint, path)["model"]["init_args"]
    assert "layers" not in config and "layers" not in checkpoint["hyper_parameters"]
    assert list(config["hidden"]) == list(checkpoint["hyper_parameters"]["hidden"])
    return list(config["hidden"])


@pytest.mark.parametrize(
    "options",
    [
        ("--model.init_args.layers", "[4]"),
        ("--model.layers", "[4]"),
        ("--model.layers=[4]",),
        ("--model", "{class_path: BCModule, init_args: {layers: [4]}}"),
        ("--config", "old.yaml"),
        ("--config", "old.yaml", "--model.layers", "[4]"),
        ("--config", "new.yaml", "--model.layers", "[4]"),
        ("--model", "model.yaml"),
    ],
    ids=" ".join,
)
def test_a_former_name_in_files_and_flags(options, fit, folder, capsys):
    here = options[-1] == "[4]" or "=" in options[-1]
    value = [5] if here else [4]
    for name, file in (("layers", "old"), ("hidden", "new")):
        part = {"class_path": "BCModule", "init_args": {name: value}}
        (folder / f"{file}.yaml").write_text(yaml.safe_dump({"model": part}))
    (folder / "model.yaml").write_text(
        yaml.safe_dump({"class_path": "BCModule", "init_args": {"layers": [4]}})
    )
    assert fit(*options, "--trainer.max_steps", "1") == 0
    assert capsys.readouterr().out.count(LINE) == 1
    assert hidden_of() == [4]


def test_a_new_name_wins_over_a_file_with_the_former_one(fit, folder, capsys):
    (folder / "old.yaml").write_text("model: {class_path: BCModule, init_args: {layers: [5]}}")
    assert fit("--config", "old.yaml", "--model.hidden", "[4]", "--trainer.max_steps", "1") == 0
    assert hidden_of() == [4]


def test_both_names_at_once_are_one_line(fit, folder, capsys):
    (folder / "old.yaml").write_text(
        "model: {class_path: BCModule, init_args: {layers: [5], hidden: [4]}}"
    )
    line = "BCModule: layers is the former name of hidden, and both are given: give hidden alone."
    assert fit("--config", "old.yaml") == 2
    assert line in capsys.readouterr().err
    assert fit("--model.layers", "[5]", "--model.init_args.hidden", "[4]") == 2
    assert line in capsys.readouterr().err


def test_a_printed_config_has_the_new_name_alone(fit, folder, capsys):
    (folder / "old.yaml").write_text("model: {class_path: BCModule, init_args: {layers: [5]}}")
    with pytest.raises(SystemExit):
        fit("--config", "old.yaml", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["hidden"] == [5]
    assert "layers" not in printed["model"]["init_args"]


def test_a_checkpoint_is_translated_without_a_word(fit, folder, capsys, same_state):
    assert fit("--model.hidden", "[4]", "--trainer.max_steps", "2") == 0
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    options = checkpoint["hyper_parameters"]
    options["layers"] = options.pop("hidden")
    ours = checkpoint["lit_offrl"]
    ours["config"] = ours["config"].replace("hidden:", "layers:")
    (folder / "old").mkdir()
    torch.save(checkpoint, "old/last.ckpt")
    assert hidden_of("old/last.ckpt") == [4]
    capsys.readouterr()

    from lit_offrl.__main__ import main

    for run in ("run", "old"):
        argv = ("fit", "--ckpt_path", f"{run}/last.ckpt", "--trainer.max_steps", "4")
        assert main([*argv, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]) == 0
    said = capsys.readouterr().out
    assert "layers" not in said and "differs" not in said
    same_state("run/last.ckpt", "old/last.ckpt")


def test_derived_classes_have_the_names_of_their_bases(renamed, monkeypatch):
    class Mine(BCModule):
        pass

    class Own(BCModule):
        def __init__(self, layers):  # calls it so itself
            super().__init__(3, 1, hidden=layers)

    assert renames_of(Mine) == {"layers": "hidden"}
    assert renames_of(Own) == {}
    assert renames_of("BCModule") == renames_of("lit_offrl.modules.BCModule")
    assert renames_of("other.BCModule") == {}
    assert renames_of("lit_offrl.modules.bc.BCModule") == {"layers": "hidden"}
    assert renames_of(None) == {}


def test_trees_are_translated_without_an_import(renamed):
    part = {"class_path": "BCModule", "layers": 1}
    assert translated_config({"model": part, "x": 2}) == {
        "model": {"class_path": "BCModule", "hidden": 1},
        "x": 2,
    }
    assert translated_config({"model": "BCModule"}) == {"model": "BCModule"}
    unnamed = {"model": {"init_args": {"layers": 1}}}
    assert translated_config(unnamed) == unnamed
    assert translated_config(unnamed, "BCModule") == {"model": {"init_args": {"hidden": 1}}}
    assert translated_name("model.init_args.layers", "BCModule") == "model.init_args.hidden"
    assert translated_name("model.layers.0", "BCModule") == "model.hidden.0"
    for name in ("model", "model.seed", "data.layers", "trainer.max_steps"):
        assert translated_name(name, "BCModule") == name


def test_experiments_compare_trees_of_new_names(renamed, tmp_path):
    (tmp_path / "old.yaml").write_text("model: {class_path: BCModule, init_args: {layers: [5]}}")
    (tmp_path / "new.yaml").write_text("model: {class_path: BCModule, init_args: {hidden: [5]}}")
    old, new = ([tmp_path / f"{each}.yaml"] for each in ("old", "new"))
    assert merge_configs(old, {}) == merge_configs(new, {})
    assert merge_configs(old, {"model.init_args.hidden": [4]}) == merge_configs(
        new, {"model.init_args.layers": [4]}
    )


def test_records_of_stages_are_translated(renamed):
    stage = {"class_path": "BCModule", "hyper_parameters": {"layers": [1]}}
    given = {"stage1": stage, "seed": 0}
    made = translated_hyperparameters(given, "lit_offrl.modules.Other")
    assert made["stage1"]["hyper_parameters"] == {"hidden": [1]}
    with pytest.raises(ConfigError, match="BCModule: layers is the former name of hidden"):
        translated({"layers": 1, "hidden": 2}, "lit_offrl.modules.BCModule")
    assert json.dumps(given) == json.dumps({"stage1": stage, "seed": 0})


def parsed(*options):
    """Parse options of fit, and do no more."""
    argv = ["fit", "--data", "PyBulletDataModule", "--data.init_args.dataset", "x.hdf5", *options]
    return _Parsed(argv).config.fit.model.init_args


@pytest.mark.parametrize(("name", "old", "new"), ENTRIES, ids="-".join)
def test_every_entry_of_the_table_is_read(name, old, new, folder, capsys):
    stage = ("--model.stage1", "x.ckpt") if name == "LDCQStage2Module" else ()
    value = {"polyak_rate": 0.25}.get(old, 3)
    part = {"class_path": name, "init_args": {old: value}}
    (folder / "old.yaml").write_text(yaml.safe_dump({"model": part}))
    for options in (
        ("--config", "old.yaml"),
        ("--model", name, f"--model.init_args.{old}", str(value)),
        ("--model", name, f"--model.{old}={value}"),
    ):
        init_args = parsed(*options, *stage)
        assert init_args[new] == value and old not in init_args
    assert translated_config({"model": part})["model"]["init_args"] == {new: value}


def test_a_sweep_takes_the_former_name(folder, d4rl_file, capsys):
    from lit_offrl.__main__ import main

    sweep = {
        "name": "old",
        "methods": {"iql": {"config": "m.yaml", "options": {"model.init_args.polyak_rate": 0.02}}},
        "datasets": {"pendulum": {"dataset": str(d4rl_file)}},
        "seeds": [0],
        "options": {"data": "PyBulletDataModule", "trainer.max_steps": 2},
    }
    (folder / "m.yaml").write_text("model: {class_path: IQLModule}")
    (folder / "old.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "--config", "old.yaml", "--dry_run"]) == 0
    sweep["options"]["model.init_args.tau"] = 0.01
    (folder / "old.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "--config", "old.yaml", "--dry_run"]) == 2
    assert "polyak_rate is the former name of tau, and both are given" in capsys.readouterr().err
