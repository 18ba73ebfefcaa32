"""Folders of sweeps as versions before `experiments/` left them are read and gone on with."""

import json
from pathlib import Path

import pytest
import yaml

CELL = Path("sweeps/grid/m/minari_d/seed0")
STAGES = Path("sweeps/grid/stages/minari_d/seed0")
DEFINITION = {
    "config": [{"model": {"width": 1}}],
    "options": {"data.init_args.dataset": "minari:d"},
    "data_sha256": None,
    "seed": 0,
    "experiment": "grid",
    "tracking_uri": "sqlite:////none/mlflow.db",
    "evaluate": {"episodes": 3},
}


@pytest.fixture
def earlier(folder):
    """Write a cell's folder with some files of an earlier version."""

    def build(*names, **changes):
        CELL.mkdir(parents=True)
        definition = {k: v for k, v in (DEFINITION | changes).items() if v != "not there"}
        (CELL / "cell.json").write_text(json.dumps({"id": "ab" * 16, "definition": definition}))
        (CELL / "fit").mkdir()
        contents = {"fit/last.ckpt": "7", "evaluation.json": '{"scores": [7], "returns": [0]}'}
        contents["failed.json"] = '{"verb": "fit", "code": 1, "line": "no such thing"}'
        contents["fit-parts.json"] = "[[0, 5], [7, 10]]"
        for name in ("fit.log", *names):
            (CELL / name).write_text(contents.get(name, ""))

    return build


def run(sweep, *options, **changes):
    keys = {"datasets": {"minari_d": "minari:d"}, "seeds": [0], "evaluate": {"episodes": 3}}
    return sweep("--tracking_uri", "sqlite:////none/mlflow.db", *options, **(keys | changes))


@pytest.fixture(autouse=True)
def no_store(monkeypatch):
    monkeypatch.setattr("lit_offrl.commands.sweep.require_store", lambda uri, way_out: None)


DONE = ("fit/last.ckpt", "fit-parts.json", "trained", "evaluate.log", "evaluation.json")


def test_a_finished_cell_is_left_and_its_time_is_known(earlier, sweep, stub, capsys):
    earlier(*DONE)
    before = sorted(CELL.rglob("*"))
    assert run(sweep) == 0 and stub() == []
    out = capsys.readouterr().out
    assert "7.0" in out and "8 s" in out
    assert sorted(CELL.rglob("*")) == before


def test_a_cell_of_a_pipeline_that_is_finished_is_left(earlier, sweep, stub, folder):
    (folder / "b.yaml").write_text("model: {width: 2}\n")
    content = {"stages": {"only": {"config": "b.yaml"}}, "evaluations": {"greedy": {}}}
    (folder / "stages.yaml").write_text(yaml.safe_dump(content))
    config = {"model": {"width": 2}, "data": {"init_args": {"dataset": "minari:d"}}}
    stage = {"config": config, "checkpoints": {}}
    earlier("trained", "evaluation.json", stage=stage, config="not there", options="not there")
    assert run(sweep, methods={"m": {"pipeline": "stages.yaml"}}) == 0 and stub() == []


@pytest.mark.parametrize(
    ("names", "state", "verbs"),
    [
        ((), "interrupted", ["fit", "evaluate"]),
        (("fit/last.ckpt",), "interrupted", ["fit --ckpt_path", "evaluate"]),
        (("fit/last.ckpt", "trained"), "trained", ["evaluate"]),
        (("fit/last.ckpt", "trained", "evaluation.json"), "done", []),
    ],
)
def test_a_half_done_cell_goes_on(earlier, sweep, stub, capsys, names, state, verbs):
    earlier(*names)
    assert run(sweep, "--dry_run") == 0
    assert f"# m/minari_d/seed0: {state}\n" in capsys.readouterr().out
    assert run(sweep) == 0
    calls = [words for words, _ in stub()]
    resumed = [" ".join(w[:2]) if w[:2] == ["fit", "--ckpt_path"] else w[0] for w in calls]
    assert resumed == verbs
    assert run(sweep) == 0 and stub() == []
    if "fit" in [words[0] for words in calls]:  # it stays the same run of MLflow's
        assert '"lit_offrl.cell": "abab' in " ".join(calls[0])


def test_a_failed_cell_is_left_until_it_is_to_be_tried_again(earlier, sweep, stub, capsys):
    earlier("fit/last.ckpt", "failed.json")
    assert run(sweep) == 1 and stub() == []
    assert "m/minari_d/seed0: fit ended with 1: no such thing" in capsys.readouterr().err
    assert run(sweep, "--retry_failed") == 0
    assert next(words[:2] for words, _ in stub()) == ["fit", "--ckpt_path"]


def test_another_evaluation_keeps_the_training(earlier, sweep, stub):
    earlier(*DONE)
    assert run(sweep, evaluate={"episodes": 9}) == 1
    assert run(sweep, "--rerun_changed", evaluate={"episodes": 9}) == 0
    assert [words[0] for words, _ in stub()] == ["evaluate"]
    assert (CELL.with_name("seed0.before-1") / "evaluation.json").exists()
    assert run(sweep, evaluate={"episodes": 9}) == 0 and stub() == []


def test_another_option_begins_anew_and_keeps_what_was_there(earlier, sweep, stub, capsys):
    earlier(*DONE)
    assert run(sweep, options={"x": 1}) == 1
    assert "changed: config.x: not given → 1" in capsys.readouterr().err
    assert run(sweep, "--rerun_changed", options={"x": 1}) == 0
    assert [words[0] for words, _ in stub()] == ["fit", "evaluate"]
    kept = {path.name for path in CELL.with_name("seed0.before-1").iterdir()}
    assert {"cell.json", "fit", "trained", "evaluation.json"} <= kept
    assert not (CELL / "cell.json").exists()


def test_a_former_name_of_an_option_is_no_change(pipeline, stub):
    """Of a training, and of what a cell's evaluation is known by."""
    from lit_offrl.experiments.job import _translated

    config = {"model": {"class_path": "DQLModule", "init_args": {"polyak_rate": 0.01}}}
    now = {"model": {"class_path": "DQLModule", "init_args": {"tau": 0.01}}}
    assert _translated({"config": config, "seed": 1}) == {"config": now, "seed": 1}
    before = {"stage": {"config": {}, "checkpoints": {"x": {"config": config}}}}
    after = {"stage": {"config": {}, "checkpoints": {"x": {"config": now}}}}
    assert _translated(before) == after

    first = {"config": "a.yaml", "options": {"model.class_path": "DQLModule"}}
    stages = {"first": {**first, "options": {**first["options"], "model.init_args.tau": 0.01}}}
    assert pipeline(stages=stages, evaluations={}) == 0
    file = Path("pipelines/two/seed0/first/inputs.json")
    file.write_text(file.read_text().replace('"tau"', '"polyak_rate"'))
    stub()
    assert pipeline(stages=stages, evaluations={}) == 0 and stub() == []
