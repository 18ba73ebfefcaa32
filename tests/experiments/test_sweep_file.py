"""A sweep's file: which cells it spans, and what is said of a bad one."""

import math
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.config import leaves, yaml_text
from lit_offrl.experiments.sweep import find_sweep, read_sweep, select

SWEEPS = Path(__file__).parent.parent.parent / "sweeps"
COLLECTED = (
    *("hopper-random.hdf5", "hopper-bullet-mixed.hdf5", "hopper-bullet-medium.hdf5"),
    *("halfcheetah-random.hdf5", "halfcheetah-bullet-mixed.hdf5", "halfcheetah-bullet-medium.hdf5"),
    *("ant-random.hdf5", "ant-bullet-mixed.hdf5", "antmaze-medium-diverse.hdf5"),
    *("maze2d-umaze.hdf5", "maze2d-medium.hdf5", "maze2d-large.hdf5"),
)
"""What the heads of the files say how to collect."""


def write(folder, **changes):
    """Write a file of 2 methods × 2 datasets × 2 seeds, with changes; None takes a key out."""
    (folder / "configs").mkdir(exist_ok=True)
    for name in ("a.yaml", "b.yaml"):
        (folder / "configs" / name).write_text("seed_everything: 0\n")
    (folder / "sweeps").mkdir(exist_ok=True)
    content = {
        "name": "grid",
        "methods": {
            "one": {"config": "../configs/a.yaml"},
            "two": {"config": ["../configs/a.yaml", "../configs/b.yaml"], "options": {"x.y": 1}},
        },
        "datasets": ["hopper-bullet-mixed-v0", "ant-bullet-mixed-v0"],
        "seeds": [0, 1],
    }
    content = {k: v for k, v in (content | changes).items() if v is not None}
    path = folder / "sweeps" / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


counts = st.integers(1, 4)


@settings(deadline=None, max_examples=30)
@given(methods=counts, datasets=counts, seeds=counts, axis=counts, other=counts)
def test_the_grid_has_every_combination_once(
    tmp_path_factory, methods, datasets, seeds, axis, other
):
    path = write(
        tmp_path_factory.getbasetemp(),
        methods={f"m{i}": {"config": "../configs/a.yaml"} for i in range(methods)},
        datasets={f"d{i}": f"data{i}" for i in range(datasets)},
        seeds=list(range(seeds)),
        options={"trainer.max_steps": 5, "model.init_args.gamma": [i / 8 for i in range(axis)],
                 "size": {f"s{i}": {"w": i, "v": i} for i in range(other)}},
    )  # fmt: skip
    sweep = read_sweep(path)
    assert len(sweep.cells) == math.prod((methods, datasets, seeds, axis, other))
    assert len({cell.name for cell in sweep.cells}) == len(sweep.cells)
    for key, count in (("method", methods), ("dataset", datasets), ("gamma", axis)):
        of_first = select(sweep.cells, [f"{key}={sweep.cells[0].labels[key]}"])
        assert len(of_first) * count == len(sweep.cells)
    for cell in sweep.cells:
        options = cell.jobs[0].options
        assert options["trainer.max_steps"] == 5
        assert options["model.init_args.gamma"] == float(cell.labels["gamma"])
        assert f"s{options['w']}" == f"s{options['v']}" == cell.labels["size"]
        assert f"data{cell.labels['dataset'][1:]}" == options["data.init_args.dataset"]
    first = [cell.jobs[0].seed for cell in sweep.cells[: len(sweep.cells) // seeds]]
    assert set(first) == {0}  # a seed of the whole grid before the next


def test_one_cell_by_hand(tmp_path):
    data = tmp_path / "sweeps" / "mine.hdf5"
    path = write(
        tmp_path,
        datasets={"my robot": {"dataset": "mine.hdf5", "options": {"x.y": 2, "z": None}}},
        options={"x.y": [3, 4]},
        evaluate={"episodes": 3, "policy.deterministic": True, "log_model": True},
        slurm={"timeout_min": 5},
    )
    data.write_text("")
    sweep = read_sweep(path)
    assert (sweep.name, sweep.evaluate["episodes"], sweep.slurm) == ("grid", 3, {"timeout_min": 5})
    (cell,) = select(sweep.cells, ["method=two", "y=4", "seed=1"])
    assert cell.labels == {"method": "two", "dataset": "my robot", "y": "4", "seed": "1"}
    assert cell.name == "two/my_robot/y=4/seed1"
    configs = tmp_path / "configs"
    fit, evaluation = cell.jobs
    assert evaluation.options == sweep.evaluate and evaluation.training == fit
    words = evaluation.argv("")
    place = words.index("--log_model")  # a flag, without a value
    assert words[place : place + 3] == ["--log_model", "--policy.deterministic", "true"]
    assert fit.configs == (configs / "a.yaml", configs / "b.yaml")
    # An axis wins over the dataset's options, and those over the method's.
    assert fit.options == {"x.y": 4, "z": None, "data.init_args.dataset": str(data)}


def test_files_that_the_part_does_not_use_may_be_missing(tmp_path):
    path = write(tmp_path, datasets={"here": "hopper-bullet-mixed-v0", "large": "large.hdf5"})
    assert {cell.labels["dataset"] for cell in read_sweep(path, ["dataset=here"]).cells} == {"here"}
    for only in ([], ["dataset=large"], ["method=one"]):
        with pytest.raises(ConfigError, match=r"datasets\.large\.dataset: there is no file"):
            read_sweep(path, only)


def test_only_takes_parts(tmp_path):
    cells = read_sweep(write(tmp_path)).cells
    assert len(select(cells, [])) == 8
    assert len(select(cells, ["method=one", "dataset=hopper*"])) == 2
    assert len(select(cells, ["seed=0", "seed=1", "dataset=*ant*"])) == 4
    for bad, message in {
        "method": "give KEY=PATTERN",
        "metod=one": "Did you mean 'method'",
        "dataset=hoper-bullet-mixed-v0": "Did you mean 'hopper-bullet-mixed-v0'",
        "seed=7": "There are 0, 1",
    }.items():
        with pytest.raises(ConfigError, match=message):
            select(cells, [bad])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methds": {}}, "unknown key 'methds'. Did you mean 'methods'?"),
        ({"methods": None}, "methods: None is given"),
        ({"methods": {"a": {"confg": "x"}}}, "methods.a: unknown key 'confg'. Did you mean 'con"),
        ({"methods": {"a": {"options": {}}}}, "methods.a: has no 'config'"),
        ({"methods": {"a": {"config": "../configs/c.yaml"}}}, "there is no file"),
        ({"datasets": []}, "datasets: [] is given"),
        ({"datasets": ["d", "d"]}, "each once"),
        ({"datasets": {"d": {"dataset": 3}}}, "datasets.d.dataset: 3 is given; give text"),
        ({"datasets": ["mine.hdf5"]}, "there is no file"),
        ({"datasets": {"a b": "x", "a/b": "x"}}, "would share the folder one/a_b/seed0"),
        (
            {
                "datasets": {"a b": "x", "a/b": "x"},
                "options": {"x": {"choice": [1, 2, 3]}},
                "search": {"sampler": "grid", "metric": "val/loss"},
            },
            "would share the folder one/a_b/trial=example/seed0",
        ),
        ({"seeds": [0, 0]}, "seeds: [0, 0] is given; give each once"),
        ({"seeds": 3}, "seeds: 3 is given; give a list"),
        ({"seeds": [True]}, "seeds: [True] is given"),
        ({"seeds": [0, 2**32]}, "seeds: [0, 4294967296] is given; give a list of numbers in [0, "),
        ({"options": {"seed": [1]}}, "'seed' is an axis already"),
        ({"options": {"seed_everything": 1}}, "'seed_everything' is given by the sweep itself"),
        ({"options": {"trainer.logger": False}}, "'trainer.logger' is given by the sweep itself"),
        ({"options": {"--x": 1}}, "'--x' is no option of fit"),
        ({"options": {"size": {"small": 3}}}, "options.size.small: 3 is given"),
        ({"options": {"model.hidden": [8, 8]}}, "options.model.hidden: [8, 8] is given; give each"),
        ({"options": {"x": ["1e-3", 0.001]}}, "options.x: ['1e-3', 0.001] is given; give each"),
        ({"options": {"x": {"choice": [1, 1.0]}}}, "give one value or more, each once"),
        ({"evaluate": {"episode": 3}}, "unknown key 'episode'. Did you mean 'episodes'?"),
        ({"evaluate": {"log_model": 1}}, "evaluate.log_model: 1 is given; give true or false"),
        ({"name": "a/b"}, "name: 'a/b' is given"),
        ({"slurm": [1]}, "slurm: [1] is given"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text


def test_a_sweep_of_the_library_is_found_by_its_name(folder):
    for name in ("acd_pybullet_results", "sweeps/acd_pybullet_results.yaml"):
        path = find_sweep(Path(name))
        assert path.resolve() == SWEEPS / "acd_pybullet_results.yaml"
    Path("mine.yaml").touch()
    assert find_sweep(Path("mine.yaml")) == Path("mine.yaml")
    for wrong, near in (("acd_omga", "'acd_omega'"), ("mien.yaml", "'mine.yaml'")):
        with pytest.raises(ConfigError, match=f"no sweep of that name. Did you mean {near}"):
            find_sweep(Path(wrong))
    # what it collects is in the user's folder, not in the package
    data = folder / "sweeps" / "hopper-bullet-mixed.hdf5"
    with pytest.raises(ConfigError, match=f"there is no file {data}"):
        read_sweep(path, ["dataset=hopper-mixed"])
    data.parent.mkdir()
    data.touch()
    cell, *_ = read_sweep(path, ["dataset=hopper-mixed"]).cells
    assert cell.jobs[0].options["data.init_args.dataset"] == str(data)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is no YAML"):
        read_sweep(tmp_path / "bad.yaml")
    (tmp_path / "twice.yaml").write_text("name: x\nseeds: [0]\nname: y\n")
    with pytest.raises(ConfigError, match="the key 'name' is there twice, in lines 1 and 3: leave"):
        read_sweep(tmp_path / "twice.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="a mapping with the keys name"):
        read_sweep(tmp_path / "list.yaml")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("a1. -:#{'\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1", min_size=1), inner),
    max_leaves=6,
)


@given(plain)
def test_values_reach_the_command_line_as_they_are(value):
    assert yaml.safe_load(yaml_text(value)) == value


def test_leaves():
    assert dict(leaves({"a": {"b": [1, {"c": 2}]}, "d": [], "e": None})) == {
        "a.b.0": 1,
        "a.b.1.c": 2,
        "d": [],
        "e": None,
    }


GRIDS = [path for path in sorted(SWEEPS.glob("*.yaml")) if "search" not in path.stem]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_file_under_sweeps(path, capsys, folder):
    from lit_offrl.__main__ import main
    from lit_offrl.datasets.catalog import bundled
    from lit_offrl.datasets.entries import CATALOG
    from lit_offrl.datasets.ogbench_entries import OGBENCH

    shutil.copytree(SWEEPS, folder / "sweeps")
    shutil.copytree(SWEEPS.parent / "configs", folder / "configs")
    collected = [folder / "sweeps" / name for name in COLLECTED]
    for file in collected:
        file.touch()
    path = folder / "sweeps" / path.name
    cells = read_sweep(path).cells
    assert main(["sweep", "--config", str(path), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = [line.partition(" --")[0] for line in lines if not line.startswith("# ")]
    assert set(kinds) == {"lit-offrl fit", "lit-offrl evaluate"}
    assert kinds.count("lit-offrl evaluate") == len(lines) - len(kinds) == len(cells)
    names = {job.options["data.init_args.dataset"] for cell in cells for job in cell.jobs[:-1]}
    assert names <= {*CATALOG, *OGBENCH, *bundled(), *map(str, collected)}
    axes = [{cell.labels[key] for cell in cells} for key in cells[0].labels]
    assert len(cells) == math.prod(map(len, axes))


def test_every_key_of_evaluate_is_an_option_of_the_command():
    from lit_offrl.commands.evaluate import EvaluateOptions
    from lit_offrl.experiments.config import EVALUATE_FLAGS, EVALUATE_KEYS

    assert {*EVALUATE_KEYS, *EVALUATE_FLAGS} <= {*EvaluateOptions.__annotations__}
