"""Folders of earlier versions' sweeps: refused, or read with the former names of options."""

from pathlib import Path


def test_a_folder_of_a_version_before_this_layout_is_refused_in_one_line(sweep, stub, capsys):
    cell = Path("sweeps/grid/m/plain/seed0")
    cell.mkdir(parents=True)
    (cell / "cell.json").write_text("{}")
    before = sorted(cell.rglob("*"))
    for options in ((), ("--dry_run",), ("--rerun_changed", "--retry_failed")):
        assert sweep(*options) == 2 and stub() == []
        said = capsys.readouterr().err
        assert f"{cell.resolve()}: is of an earlier version" in said and "move the folder" in said
        assert said.count("\n") == 1
    assert sorted(cell.rglob("*")) == before


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
