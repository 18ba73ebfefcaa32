"""Configs by path and by name, and how files are laid over each other."""

import os

import pytest
import yaml

from lit_offrl.common import configs
from lit_offrl.common.configs import (
    FOLDER,
    RENAMED,
    expand_argv,
    find_configs,
    for_method,
    merge_configs,
    names,
    read_config,
)
from lit_offrl.common.errors import ConfigError


def test_files_and_options_make_one_tree(folder):
    (folder / "a.yaml").write_text("model: {class_path: A, init_args: {x: 1, y: [1]}}\n")
    (folder / "b.yaml").write_text("model: {init_args: {y: [2, 3]}}\ntrainer: {max_steps: 5}\n")
    files = [folder / "a.yaml", folder / "b.yaml"]
    assert merge_configs(files, {"model.init_args.x": 2, "trainer.devices": 1}) == {
        "model": {"class_path": "A", "init_args": {"x": 2, "y": [2, 3]}},
        "trainer": {"max_steps": 5, "devices": 1},
    }
    (folder / "short.yaml").write_text("model: BCModule\n")
    assert merge_configs([folder / "short.yaml"], {"model.init_args.x": 1}) == {
        "model": {"class_path": "BCModule", "init_args": {"x": 1}}
    }


def test_an_option_that_is_a_mapping_replaces_that_of_a_file(folder):
    (folder / "a.yaml").write_text("data: {init_args: {view: {class_path: A, init_args: {x: 1}}}}")
    view = {"class_path": "B"}
    merged = merge_configs([folder / "a.yaml"], {"data.init_args.view": view})
    assert merged == {"data": {"init_args": {"view": view}}}


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [
        (b"- model", "holds no mapping of options"),
        (b"name: 2024-13-45", "is no YAML: month must be in 1..12"),
        (b"\x89HDF", "is no YAML: 'utf-8' codec can't decode"),
        (
            b"model: {a: &a {x: 1}, b: {<<: *a, x: 2}, a: 3}",
            "is no YAML: the key 'a' is there twice",
        ),
        (b"{model: [", "is no YAML: while parsing"),
        (None, "cannot be read"),
        (b"methods: [A]", "methods: give a mapping such as"),
        (b"methods: {A: 3}", "methods: give a mapping such as"),
    ],
)
def test_what_is_no_config_is_said_in_one_line(folder, bytes_, said):
    path = folder / "wrong.yaml"
    if bytes_ is not None:
        path.write_bytes(bytes_)
    with pytest.raises(ConfigError) as caught:
        merge_configs([path], {})
    text = str(caught.value)
    assert text.startswith(f"{path}: {said}") and "\n" not in text


TUNED = """
data: {init_args: {dataset: d}}
methods:
  A: {model.init_args.x: 10, data.init_args.rewards: shifted}
  B: {model: {init_args: {x: 20}}, trainer.max_steps: 5}
"""


def test_values_of_the_method_at_hand_are_in_the_place_of_their_file(folder):
    (folder / "a.yaml").write_text("model: {class_path: my.A, init_args: {x: 1, y: 2}}")
    (folder / "b.yaml").write_text("model: B")
    (folder / "tuned.yaml").write_text(TUNED)
    (folder / "x.yaml").write_text("model: {init_args: {x: 3}}")
    a, b, tuned, x = (folder / f"{name}.yaml" for name in ("a", "b", "tuned", "x"))
    data = {"init_args": {"dataset": "d"}}
    shifted = {"init_args": {"dataset": "d", "rewards": "shifted"}}
    assert merge_configs([a, tuned], {}) == {
        "model": {"class_path": "my.A", "init_args": {"x": 10, "y": 2}},
        "data": shifted,
    }
    assert merge_configs([b, tuned], {}) == {
        "model": {"class_path": "B", "init_args": {"x": 20}},
        "data": data,
        "trainer": {"max_steps": 5},
    }
    assert merge_configs([a, tuned, x], {})["model"]["init_args"]["x"] == 3
    assert merge_configs([a, tuned], {"model.init_args.x": 4})["model"]["init_args"]["x"] == 4
    assert merge_configs([tuned, a], {})["model"]["init_args"]["x"] == 1
    assert merge_configs([tuned], {"model": "B"})["trainer"] == {"max_steps": 5}
    assert merge_configs([tuned], {}) == {"data": data}


def test_a_file_before_the_methods_own_names_the_class_of_its_values():
    made = for_method(yaml.safe_load(TUNED), "my.A", "tuned.yaml")
    assert made["model"] == {"class_path": "my.A", "init_args": {"x": 10}}


def test_the_librarys_configs_have_names(folder):
    assert {"iql", "data/antmaze", "trainer/gpu", "quick", "dvf_pybullet"} <= {*names()}
    for given in ("iql", "iql.yaml", "configs/iql.yaml", "somewhere/configs/iql.yaml"):
        assert find_configs(given) == (FOLDER / "iql.yaml",)
    for given in ("data/antmaze", "configs/data/antmaze.yaml"):
        assert find_configs(given) == (FOLDER / "data" / "antmaze.yaml",)


def test_a_file_wins_over_a_name_and_a_name_over_a_folder(folder):
    (folder / "bc").mkdir()  # as runs' folders are called
    assert find_configs("bc") == (FOLDER / "bc.yaml",)
    (folder / "quick").touch()
    assert [path.resolve() for path in find_configs("quick")] == [folder / "quick"]
    assert find_configs("quick", folder / "other") == (FOLDER / "quick.yaml",)
    (folder / "runs").mkdir()
    with pytest.raises(ConfigError, match=r"^runs is a folder: give a file, or the name of"):
        find_configs("runs")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("data/antmaz", " Did you mean 'data/antmaze'?"),
        ("configs/iqll.yaml", " Did you mean 'iql'?"),
        ("mein.yaml", " Did you mean 'mine.yaml'?"),
        ("../configs/../setup", ""),
    ],
)
def test_an_unknown_name_suggests_the_nearest(folder, given, hint):
    (folder / "mine.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        find_configs(given)
    said = f"there is no file {given}, and no config of that name.{hint} `lit-offrl configs list`"
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("name", RENAMED)
def test_a_former_config_stands_for_those_that_have_its_values(folder, capsys, name):
    new = tuple(FOLDER / f"{each}.yaml" for each in RENAMED[name])
    assert all(path.is_file() for path in new)
    assert find_configs(f"configs/{name}.yaml") == new == find_configs(name)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    files = " ".join(f"--config configs/{each}.yaml" for each in RENAMED[name])
    assert len(lines) == 2 and lines[0].endswith(files) and not printed.out


def test_names_among_arguments_become_paths(folder):
    (folder / "mine.yaml").write_text("{}")
    made = expand_argv(
        ["fit", "--config", "iql", "--config=mine.yaml", "--config", "{a: 1}", "--x"]
    )
    assert made == [
        *("fit", "--config", str(FOLDER / "iql.yaml"), "--config", "mine.yaml"),
        *("--config", "{a: 1}", "--x"),
    ]
    with pytest.raises(ConfigError, match=r"--config nothing: there is no file nothing"):
        expand_argv(["fit", "--config", "nothing"])


def test_a_file_is_read_once_until_it_changes(folder, monkeypatch):
    path, read = folder / "a.yaml", []
    monkeypatch.setattr(
        configs, "from_yaml", lambda text: read.append(text) or yaml.safe_load(text)
    )
    path.write_text("model: {init_args: {x: [1]}}")
    os.utime(path, (1e9, 1e9))
    for _ in range(2):
        found = read_config(path)
        assert found == {"model": {"init_args": {"x": [1]}}}
        found["model"]["init_args"]["x"].append(2)  # what one reader does is not the next one's
    assert len(read) == 1
    for x in (2, 3):  # as long as before, and at once
        path.write_text(f"model: {{init_args: {{x: [{x}]}}}}")
        assert read_config(path)["model"] == {"init_args": {"x": [x]}}
