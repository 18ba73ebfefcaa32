"""Methods that are pipelines: shared stages, an MLflow run for each evaluation."""

import json
import pickle
from pathlib import Path

import pytest
import yaml

from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.sweep import read_sweep

OUTPUT = Path("sweeps/grid")


@pytest.fixture
def staged(folder):
    """Write a pipeline of three stages; return methods of which two share all and all share one."""
    (folder / "b.yaml").write_text("model: {width: 2}\n")
    content = {
        "dataset": "minari:other",
        "stages": {
            "base": {"config": "b.yaml"},
            "left": {"config": "b.yaml", "checkpoints": {"model.base": "base"}},
            "right": {"config": "b.yaml", "checkpoints": {"model.base": "base"}},
        },
        "evaluate": {"episodes": 3},
        "evaluations": {
            "greedy": {"stage": "left", "policy.greedy": True},
            "random": {"stage": "left"},
            "other": {"stage": "right"},
        },
    }
    (folder / "stages.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    names = ("greedy", "random", "other")
    return {"plain": {"config": "a.yaml"}} | {
        name: {"pipeline": "stages.yaml", "evaluation": name} for name in names
    }


def trained(calls):
    return sorted(
        Path(words[words.index("--checkpoint.dirpath") + 1]).parent.name.partition("-")[0]
        for words, _ in calls
        if words[0] == "fit"
    )


def test_stages_are_trained_once_for_all_methods(staged, sweep, stub, capsys):
    data = ["minari:data"]
    assert sweep("--workers", "3", methods=staged, datasets=data, seeds=[0]) == 0
    calls = stub()
    assert trained(calls) == ["base", "left", "right", "seed0"]
    assert sum(words[0] == "evaluate" for words, _ in calls) == 4
    (base,) = (words for words, _ in calls if "/base-" in words[-1])
    assert base[base.index("--data.init_args.dataset") + 1] == "minari:data"  # the sweep's wins
    tags = json.loads(base[base.index("--trainer.logger.init_args.tags") + 1])
    tags.pop("lit_offrl.cell")
    labels = {"lit_offrl.sweep": "grid", "lit_offrl.dataset": "minari:data"}
    assert tags == {**labels, "lit_offrl.stage": "base"}
    (greedy,) = (words for words, _ in calls if "--policy.greedy" in words)
    assert greedy[greedy.index("--run_name") + 1] == "greedy-minari_data-seed0"
    tags = json.loads(greedy[greedy.index("--run_tags") + 1])
    tags.pop("lit_offrl.cell")
    seconds = [tags.pop(f"lit_offrl.seconds.{name}") for name in ("base", "left")]
    assert all(int(second) >= 0 for second in seconds)
    assert tags == {**labels, "lit_offrl.method": "greedy"}
    out = capsys.readouterr().out
    assert "4 of 4 cells done" in out and "10.5" in out and "greedy, other, random" in out

    assert sweep(methods=staged, datasets=data, seeds=[0]) == 0
    assert stub() == []


def test_only_what_has_changed_is_trained_again(staged, sweep, stub, capsys):
    options = {"datasets": ["minari:data"], "seeds": [0]}
    assert sweep(methods=staged, **options) == 0
    stub()
    staged["other"]["options"] = {"right.model.width": 5}
    assert sweep(methods=staged, **options) == 1
    assert "other/minari_data/seed0: changed: stage.config.model.width: 2 → 5" in (
        capsys.readouterr().err
    )
    assert stub() == []
    assert sweep("--rerun_changed", methods=staged, **options) == 0
    assert trained(stub()) == ["right"]
    # The former stage is there still: what was measured before comes back at once.
    del staged["other"]["options"]
    assert sweep("--rerun_changed", methods=staged, **options) == 0
    assert trained(stub()) == []
    # Another protocol alone trains nothing.
    assert sweep("--rerun_changed", methods=staged, evaluate={"episodes": 9}, **options) == 0
    calls = stub()
    assert [words[0] for words, _ in calls] == ["evaluate"] * 4
    assert all(words[words.index("--episodes") + 1] == "9" for words, _ in calls)


def test_a_stage_that_fails_is_not_tried_by_each_method(staged, sweep, stub, capsys):
    staged.pop("plain")
    for method in staged.values():
        method["options"] = {"base.model.mode": "fails"}
    options = {"methods": staged, "datasets": ["minari:data"], "seeds": [0]}
    assert sweep(**options) == 1
    assert trained(stub()) == ["base"]
    err = capsys.readouterr().err
    assert err.count("base: fit ended with 1: lit-offrl: error: no such thing. (see ") == 3
    assert sweep(**options) == 1
    assert stub() == [] and "3 failed: --retry_failed" in capsys.readouterr().err
    assert sweep("--retry_failed", **options) == 0
    assert trained(stub()) == ["base", "left", "right"]


def test_a_cell_can_be_sent_to_a_node(staged, folder):
    content = {"methods": staged, "datasets": ["minari:data"], "seeds": [0]}
    (folder / "a.yaml").write_text("{}")
    (folder / "grid.yaml").write_text(yaml.safe_dump(content))
    grid = read_sweep(folder / "grid.yaml")
    for cell in grid.cells:
        assert pickle.loads(pickle.dumps(cell)) == cell


def test_dry_run_prints_a_shared_stage_once(staged, sweep, stub, capsys, folder):
    assert sweep("--dry_run", methods=staged, datasets=["minari:data"], seeds=[0]) == 0
    out = capsys.readouterr().out
    assert out.count("lit-offrl fit") == 4 and out.count("lit-offrl evaluate") == 4
    assert stub() == [] and not (folder / "sweeps").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"config": "a.yaml", "pipeline": "stages.yaml"}, "has both 'config' and 'pipeline'"),
        ({"config": "a.yaml", "evaluation": "x"}, "'evaluation' goes with 'pipeline' alone"),
        ({"pipeline": "stages.yaml"}, "None is none of stages.yaml. There are greedy, random"),
        ({"pipeline": "stages.yaml", "evaluation": "gredy"}, "Did you mean 'greedy'?"),
        ({"pipeline": "stage.yaml"}, "Did you mean 'stages.yaml'?"),
        ({"pipeline": []}, "methods.m.pipeline: [] is given"),
        (
            {"pipeline": "stages.yaml", "evaluation": "greedy", "options": {"lef.x": 1}},
            "options of methods.m: lef.x: there is no 'lef'. Did you mean 'left'?",
        ),
    ],
)
def test_a_bad_method_is_refused_in_one_line(staged, folder, method, message):
    (folder / "a.yaml").write_text("{}")
    content = {"methods": {"m": method}, "datasets": ["minari:data"], "seeds": [0]}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text
