"""A comparison of runs with known scores: known table, and what is refused."""

import csv
import dataclasses
import math
import re

import numpy as np
import pytest
from scipy import stats

from lit_offrl.common.errors import EvaluationError
from lit_offrl.envs.differences import DIFFERENCES, EARLIER
from lit_offrl.evaluation.comparison import ALL, compare
from lit_offrl.evaluation.protocol import protocol
from lit_offrl.evaluation.run_files import runs_from_files
from lit_offrl.evaluation.runs import make_run
from lit_offrl.evaluation.tables import footnotes, lines, markdown, protocol_lines, write_files

SCORES = {
    ("BC", "hopper"): (10.0, 20.0, 30.0),
    ("DVF", "hopper"): (40.0, 50.0, 60.0),
    ("BC", "ant"): (1.0, 2.0, 3.0),
}


@pytest.fixture
def run(made_record):
    def make(method, dataset, seed, score, /, source=None, **facts):
        tags = {"lit_offrl.method": method, **facts.pop("tags", {})}
        params, data = facts.pop("params", None), facts.pop("data", None)
        record = made_record(score, seed, dataset=dataset, **facts)
        source = source or f"run {method}-{dataset}-{seed}"
        return make_run(record, source, tags, None, params, data)

    return make


@pytest.fixture
def runs(run):
    return [
        run(method, dataset, seed, score, data={"score_mean": 12.5, "return_mean": 125.0})
        for (method, dataset), scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]


def test_intervals_stay_within_what_episodes_earn(run):
    """Three seeds of a task that pays 0 or 1 an episode: Student's interval begins below 0."""
    ten = {name: tuple(range(10)) for name in ("episodes", "seeds", "lengths")}
    ten |= {"terminated": (True,) * 10, "scores": None}
    shares = (0, 2, 7)
    found = compare(
        [
            run("BC", "maze", seed, 0.0, returns=(1.0,) * share + (0.0,) * (10 - share), **ten)
            for seed, share in enumerate(shares)
        ]
    ).cells["maze", "BC"]
    student = stats.t.interval(0.95, 2, 0.3, stats.sem([0.0, 0.2, 0.7]))
    assert student[0] < 0 and student[1] > 1
    for estimate in (found.mean, found.iqm):
        assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(0.3), 0.0, 1.0)


def test_a_known_table(runs):
    table = compare(runs)
    cell = table.cells["hopper", "BC"]
    expected = stats.t.interval(0.95, 2, 20, stats.sem([10, 20, 30]))
    assert cell.mean.value == 20 and cell.iqm.value == 20
    assert (cell.mean.low, cell.mean.high) == pytest.approx(expected, rel=0.1)
    assert cell.strata[0].tolist() == [10, 20, 30]  # means over episodes, by seed
    both = table.aggregates["BC"]
    assert both.mean.value == pytest.approx((20 + 2) / 2)
    assert both.iqm.value == pytest.approx(np.mean([2, 3, 10, 20]))  # of six, one off each end
    assert set(table.aggregates) == {"BC"} and ("ant", "DVF") not in table.cells

    rows = {(row[0], row[1]): row for row in lines(table, seeds=True)}
    assert rows["ant", "DVF"][2:7] == ["missing", "", "", "", "0"]
    assert rows[ALL, "DVF"][2] == "missing"
    assert rows["hopper", "DVF"][2] == "50.0" and rows["hopper", "DVF"][6] == "3"
    assert rows["hopper", "DVF"][7] == "0: 40.0, 1: 50.0, 2: 60.0"
    assert rows["hopper", "data"][2] == "12.5" == rows[ALL, "data"][2]
    notes = "\n".join(footnotes(table))
    assert "DVF has no runs on ant: no aggregate." in notes
    assert "fewer than 4 runs is their mean" in notes
    assert "Simulated coverage at 3 seeds, 1 dataset," in notes and "2 datasets" in notes
    said = "\n".join(protocol_lines(table))
    for part in ("ab" * 32, "HopperBulletEnv-v0", "2 episodes a run", "references 0 and 1000"):
        assert part in said
    assert "training steps: BC 500, DVF 500" in said and "torch 2.13" in said


def test_a_single_run_has_no_interval(run):
    table = compare([run("BC", "hopper", 0, 7.0)])
    cell = table.cells["hopper", "BC"]
    assert cell.mean.value == 7 and math.isnan(cell.mean.low)
    assert next(iter(lines(table, seeds=False)))[2:] == ["7.0", "–", "7.0", "–", "1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset_sha256": "cd" * 32}, "sha256 cdcdcdcd… instead of abababab…"),
        ({"env_id": "Other-v0"}, "environment Other-v0 instead of HopperBulletEnv-v0"),
        ({"seed": 9}, "evaluation seed 9 instead of 0"),
        ({"returns": (1.0,), "scores": (1.0,)}, "episodes 1 instead of 2"),
        ({"max_episode_steps": 50}, "step limit 50 instead of the environment's"),
        ({"dataset_handling": ("rewards: r - 1",)}, "handling rewards: r - 1 instead of none"),
        ({"ref_max_score": 9.0}, "references 0 and 9 instead of 0 and 1000"),
        ({"checkpoint_rule": "step 3"}, "checkpoint step 3 instead of last"),
        ({"versions": {"python": "3.11", "torch": "1"}}, "version of torch 1 instead of 2.13"),
        ({"training_steps": 7}, "training steps 7 instead of 500"),
        ({"params": {"learning_rate": "1"}}, "learning_rate 1 instead of none"),
    ],
)
def test_unequal_protocols_are_refused_or_marked(runs, run, change, words):
    runs = [*runs, run("BC", "hopper", 3, 20.0, **change)]
    with pytest.raises(EvaluationError) as error:
        compare(runs)
    assert words in str(error.value) and "run BC-hopper-3" in str(error.value)
    assert "--allow_unequal" in str(error.value) and "\n" not in str(error.value)
    table = compare(runs, allow_unequal=True)
    assert next(row[1] for row in lines(table, False) if row[0] == "hopper") == "BC†₁"
    assert footnotes(table)[0] == f"†₁ BC on hopper, seed 3: {words}."
    assert table.cells["hopper", "DVF"].marks == () and table.aggregates["BC"].marks == (1,)


def test_a_seed_twice_is_refused_or_the_newest_taken(runs, run):
    later = run("BC", "hopper", 1, 99.0, source="run again", date="2026-02-01T00:00:00+00:00")
    with pytest.raises(EvaluationError, match=r"seed 1 twice: run BC-hopper-1; and run again\."):
        compare([later, *runs])
    assert compare([later, *runs], latest=True).cells["hopper", "BC"].strata[0][1] == 99
    other = run("BC", "hopper", 1, 99.0, source="policy", policy_options={"samples": 4})
    tagged = run("BC", "hopper", 1, 98.0, tags={"lit_offrl.option.width": "8"})
    swept = run(
        "BC",
        "hopper",
        1,
        97.0,
        source="swept",
        tags={"lit_offrl.option.omega": "3.0"},
        policy_options={"omega": 3.0},
    )
    assert swept.options == (("policy.omega", "3.0"),)  # once, though tag and record say it
    table = compare([*runs, other, dataclasses.replace(tagged, source="tagged")])
    assert table.methods == ("BC", "BC (policy.samples=4)", "BC (width=8)", "DVF")


def test_an_exported_policy_has_a_row_beside_its_checkpoint(runs, run):
    exported = run("BC", "hopper", 1, 97.0, source="file", checkpoint="robot/policy.onnx")
    table = compare([*runs, exported])
    assert table.methods == ("BC", "BC (exported=onnx)", "DVF")
    assert table.cells["hopper", "BC (exported=onnx)"].strata[0].tolist() == [97.0]


def test_a_row_is_named_by_the_options_that_tell_it_apart_and_the_others_stand_below(run):
    filtered = {"act_mode": "acd_f", "guidance": 3.0, "steps": 5}
    rows = [{}, {**filtered, "samples": 16}, {**filtered, "samples": 64}]
    table = compare(
        [run("ACD", "hopper", 0, 1.0, source=str(row), policy_options=row) for row in rows]
    )
    names = [f"ACD (policy.act_mode=acd_f, policy.samples={samples})" for samples in (16, 64)]
    assert table.methods == ("ACD", *names)
    said = "\n".join(protocol_lines(table))
    for name in names:
        assert f"options: {name} has policy.guidance=3.0, policy.steps=5" in said


def test_returns_where_there_are_no_references(runs, run):
    bare = {"scores": None, "ref_min_score": None, "ref_max_score": None}
    more = [run("BC", "robot", seed, 5.0 + seed, **bare) for seed in range(3)]
    table = compare([*runs, *more])
    assert table.units == {"ant": "score", "hopper": "score", "robot": "return"}
    assert table.cells["robot", "BC"].mean.value == 60  # returns are ten times the score
    assert len(table.aggregates["BC"].strata) == 2
    assert ["robot (return)", "BC"] in [row[:2] for row in lines(table, False)]
    table = compare(runs, metric="return")
    assert set(table.units.values()) == {"return"} and not table.aggregates
    assert table.cells["hopper", "DVF"].mean.value == 500 and table.data["hopper"] == 125


def test_files_say_what_the_table_says(runs, tmp_path):
    table = compare(runs)
    results, numbers, text, _ = write_files(table, ["run 7: failed, not finished"], tmp_path)
    with results.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and {row["source"] for row in rows} == {run.source for run in runs}
    read = {(r["method"], r["dataset"], int(r["seed"])): float(r["score"]) for r in rows}
    assert read == {(m, d, s): v for (m, d), vs in SCORES.items() for s, v in enumerate(vs)}
    with numbers.open() as file:
        rows = {(row["dataset"], row["method"]): row for row in csv.DictReader(file)}
    cell = table.aggregates["BC"]
    found = [float(rows[ALL, "BC"][name]) for name in ("mean", "mean_low", "mean_high", "iqm")]
    assert found == [cell.mean.value, cell.mean.low, cell.mean.high, cell.iqm.value]
    assert rows["ant", "DVF"]["mean"] == "" and rows["ant", "DVF"]["seeds"] == "0"
    assert rows[ALL, "BC"]["seeds"] == "3" and rows[ALL, "DVF"]["seeds"] == ""
    assert text.read_text() == markdown(table, ["run 7: failed, not finished"])
    body = [line.split(" | ") for line in text.read_text().splitlines() if line.startswith("| ")]
    assert {len(row) for row in body} == {8}
    assert [row[2] for row in body if row[0] == "| hopper"] == ["20.0", "50.0", "12.5"]
    assert "- run 7: failed, not finished" in text.read_text()


def test_a_list_of_runs_makes_the_same_table(runs, run, tmp_path):
    options = {"policy_options": {"num_samples": 4}}
    table = compare([*runs, run("DVF", "hopper", 7, 65.0, **options)])
    *_, path = write_files(table, [], tmp_path)
    assert path.name == "runs.jsonl"
    found = runs_from_files([str(tmp_path)])  # a folder: table.csv and others are no records
    assert not found.left_out and len(found.runs) == 10
    again = compare(found.runs)
    assert list(lines(again, True)) == list(lines(table, True))
    assert protocol_lines(again) == protocol_lines(table)
    before = [run for cell in table.cells.values() for run in cell.runs]
    assert [run.record for run in found.runs] == [run.record for run in before]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda line: line[:-9], "line 2 is no run as"),
        (lambda line: "[]", "line 2 .* a mapping with data, dataset, method, options"),
        (lambda line: line.replace('"seed": 1', '"seed": "one"', 1), "line 2 .*'seed' is 'one'"),
        (lambda line: line.replace('"params"', '"paramz"'), "line 2 .* a mapping with"),
        (lambda line: line.replace('"env_id"', '"env"'), "line 2 .* unknown field 'env'"),
        (lambda line: re.sub('"scores": .*?]', '"scores": [NaN, 1.0]', line), "line 2 .*'scores'"),
    ],
)
def test_a_broken_list_of_runs_names_its_line(runs, tmp_path, change, expected):
    *_, path = write_files(compare(runs), [], tmp_path)
    text = path.read_text().splitlines()
    assert '"seed": 1' in text[1]
    path.write_text("\n".join([text[0], change(text[1]), *text[2:]]))
    with pytest.raises(EvaluationError, match=rf"runs\.jsonl: {expected}"):
        runs_from_files([str(path)])
    found = runs_from_files([str(tmp_path)])  # found in a folder, it is named and left out
    assert not found.runs and "line 2" in found.left_out[0]


@pytest.mark.parametrize("name", ["a [1]", "[v1] x", "what?", "*"])
def test_a_name_that_is_there_is_no_pattern(made_record, tmp_path, name):
    path = made_record(1.0, 0).save(tmp_path / name / "record.json")
    for given in (path, path.parent):
        assert len(runs_from_files([str(given)]).runs) == 1


def test_records_from_files(made_record, tmp_path):
    fit = tmp_path / "fits" / "BC-hopper-seed4"
    for name, score in (("evaluation-step-5", 1.0), ("evaluation-step-10", 2.0)):
        made_record(score, 4).save(fit / f"{name}.json")
    made_record(3.0, 5).save(tmp_path / "fits" / "other" / "evaluation.json")
    made_record(0.0, 5).save(tmp_path / "fits" / "other" / "evaluation-step-99.json")
    (tmp_path / "fits" / "notes.json").write_text("[]")
    found = runs_from_files([str(tmp_path / "fits"), str(tmp_path / "fits" / "**" / "*-10.json")])
    assert sorted((run.seed, run.record.scores) for run in found.runs) == [
        (4, (-3.0, 7.0)),
        (5, (-2.0, 8.0)),
    ]
    assert len(found.left_out) == 1 and "notes.json: Not an evaluation record" in found.left_out[0]
    with pytest.raises(EvaluationError, match="no such file"):
        runs_from_files([str(tmp_path / "none*.json")])
    with pytest.raises(EvaluationError, match=r"notes\.json: Not an evaluation record"):
        runs_from_files([str(tmp_path / "fits" / "notes.json")])
    earlier = made_record(1.0, None, checkpoint="checkpoints/BC-hopper-seed8-2/last.ckpt")
    assert make_run(earlier, "x").seed == 8
    with pytest.raises(EvaluationError, match="x: does not say the training's seed"):
        make_run(made_record(1.0, None), "x")


@pytest.mark.parametrize("env_id", [*DIFFERENCES])
def test_records_with_an_earlier_wording_are_compared(made_record, env_id):
    """A sentence that is worded anew would otherwise make every earlier evaluation unequal."""
    present = DIFFERENCES[env_id]
    earlier = {new: old for old, new in EARLIER.items()}
    assert set(EARLIER.values()) <= {one for each in DIFFERENCES.values() for one in each}
    old = tuple(earlier.get(one, one) for one in present)
    first, second = (made_record(1.0, 0, environment_differences=each) for each in (present, old))
    assert protocol(first) == protocol(second)
