"""One run of MLflow's that all runs of a sweep are children of."""

import json

import pytest
from mlflow.tracking import MlflowClient

from lit_offrl.__main__ import main
from lit_offrl.commands import experiments
from lit_offrl.experiments import parent
from lit_offrl.experiments.job import State
from lit_offrl.experiments.parent import begin_parent, end_parent
from lit_offrl.experiments.sweep import read_sweep
from lit_offrl.tracking.outbox import unsent_runs


@pytest.fixture
def grid(sweep, stub, mlflow_tables, folder, monkeypatch):
    """A sweep of two seeds by the stand-in, with parents: how to run it, and the store."""
    monkeypatch.setattr(experiments, "begin_parent", begin_parent)
    uri = f"sqlite:///{folder}/mlflow.db"

    def run(*options):
        code = sweep(*options, seeds=(0, 1), evaluate={"episodes": 3})
        assert code == 0
        return read_sweep(folder / "grid.yaml", uri=uri)

    return run, MlflowClient(uri), uri


def parents(client):
    place = client.get_experiment_by_name("grid").experiment_id
    return client.search_runs([place], "tags.`lit_offrl.children` = 'sweep grid'"), place


def test_cells_are_children_of_one_run_with_their_comparison(
    grid, stub, made_record, capsys, folder, monkeypatch
):
    run, client, uri = grid
    experiment = run("--only", "seed=0")
    ((first,), place) = parents(client)
    id = first.info.run_id
    run()  # another worker, or the next day
    (((again,), _), tags) = parents(client), []
    assert again.info.run_id == id and again.info.status == "FINISHED"
    assert "seed=0" in again.data.tags["lit_offrl.command"]
    for words, _ in stub():
        if words[0] == "fit":
            tags.append(json.loads(words[words.index("--trainer.logger.init_args.tags") + 1]))
    assert len(tags) == 2 and {each["mlflow.parentRunId"] for each in tags} == {id}

    # the comparison, of real records
    experiment = read_sweep(folder / "grid.yaml", uri=uri)
    experiment.parent.run_id = id
    for cell, score in zip(experiment.cells, (40.0, 60.0), strict=True):
        made_record(score, int(cell.labels["seed"])).save(cell.target.mark)
        child = client.create_run(place, tags={**cell.target.tracking.tags, **tags[0]}).info.run_id
        client.log_artifact(child, str(cell.target.mark), "evaluate")
        client.set_terminated(child)
    capsys.readouterr()
    end_parent(experiment, [State.DONE] * 2, stopped=False)
    assert f"lit-offrl compare {id}" in capsys.readouterr().out
    found = client.get_run(id)
    assert found.data.metrics["score_iqm/plain/m"] == 50
    assert found.data.metrics["score_iqm_low/plain/m"] < 50
    assert "| plain | m |" in found.data.tags["mlflow.note.content"]
    assert {item.path for item in client.list_artifacts(id, "comparison")} > {"comparison/table.md"}
    for given in (id, f"runs:/{id}"):
        assert main(["compare", given]) == 0
        out = capsys.readouterr().out
        assert "50.0" in out and "Not in the table" not in out
    assert main(["compare", "--experiment", "grid"]) == 0  # the parent is no run to compare
    assert "Not in the table" not in capsys.readouterr().out
    assert main(["compare", "f" * 32]) == 2
    assert f"has no run '{'f' * 32}'" in capsys.readouterr().err

    # a server that fails keeps nothing from being done, and gets it later
    monkeypatch.setattr(parent, "add_to_run", lambda *_: 1 / 0)
    end_parent(experiment, [State.DONE, State.FAILED], stopped=False)
    assert "lit-offrl mlflow sync sweeps/grid" in capsys.readouterr().err
    assert unsent_runs(experiment.output) == [id]
    assert main(["mlflow", "sync", "sweeps/grid"]) == 0
    assert client.get_run(id).info.status == "FAILED" and not unsent_runs(experiment.output)


def test_a_parent_that_was_deleted_is_made_anew_and_takes_its_children(grid, stub, capsys):
    run, client, _ = grid
    run("--only", "seed=0")
    ((first,), place) = parents(client)
    (fit,) = [words for words, _ in stub() if words[0] == "fit"]
    tags = json.loads(fit[fit.index("--trainer.logger.init_args.tags") + 1])
    child = client.create_run(place, tags=tags).info.run_id  # the stand-in logs nothing
    other = client.create_run(place, tags={**tags, "lit_offrl.cell": "another's"}).info.run_id
    client.delete_run(first.info.run_id)
    run()
    ((second,), _) = parents(client)
    assert second.info.run_id != first.info.run_id
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == second.info.run_id
    assert client.get_run(other).data.tags["mlflow.parentRunId"] == first.info.run_id
