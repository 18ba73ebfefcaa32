import dataclasses
import io
import json
import math

import pytest
import torch
from rich.console import Console

from lit_offrl.common.errors import EvaluationError
from lit_offrl.evaluation.record import (
    EvaluationRecord,
    config_sha256,
    hardware,
    package_versions,
)

RECORD = EvaluationRecord(
    method="BCModule",
    env_id="HopperBulletEnv-v0",
    seed=7,
    num_envs=2,
    episodes=(0, 1, 2, 3),
    seeds=(2**31 - 1, 5, 6, 7),
    returns=(0.1, 100.0, 200.0, 1e3 / 3),
    lengths=(10, 20, 30, 40),
    terminated=(True, True, True, False),
    clipped_steps=5,
    scores=(0.0, 10.0, 20.0, 70.0),
    policy_options={"samples": 4},
)


def test_a_record_survives_json_and_a_file(tmp_path):
    assert EvaluationRecord.from_json(RECORD.to_json()) == RECORD
    path = RECORD.save(tmp_path / "new" / "record.json")
    assert EvaluationRecord.load(path) == RECORD
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]  # no temporary left


def test_what_is_no_record_is_refused(tmp_path):
    unknown = json.dumps({**json.loads(RECORD.to_json()), "retruns": 1})
    with pytest.raises(EvaluationError, match=r"'retruns'\. Did you mean 'returns'"):
        EvaluationRecord.from_json(unknown)
    for text in ("nonsense", "[]", "{}"):
        with pytest.raises(EvaluationError, match="Not an evaluation record"):
            EvaluationRecord.from_json(text)
    with pytest.raises(EvaluationError, match="cannot be read"):
        EvaluationRecord.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"returns": "abc"}, "'returns' is \"abc\", but has to be a list of finite numbers:"),
        ({"scores": [1.0, math.nan, 2.0, 3.0]}, "entry 1 of 'scores' is NaN, but has to be a list"),
        ({"scores": [None] * 4}, "entry 0 of 'scores' is null, but has to be a list of finite"),
        ({"scores": [10**400] * 4}, "entry 0 of 'scores' is 1000"),
        ({"scores": [1.0]}, "'scores' has 1 entries for 4 episodes:"),
        ({"returns": []}, "'returns' has 0 entries for 4 episodes:"),
        ({"episodes": []}, "'episodes' is empty:"),
        ({"lengths": [10, 0, 30, 40]}, "'lengths' has a 0, but an episode has a step at least:"),
        ({"terminated": [1, 0, 1, 0]}, "entry 0 of 'terminated' is 1, but"),
        ({"policy_options": None}, "'policy_options' is null, but has to be a mapping:"),
        ({"policy_options": {"omega": math.inf}}, "'policy_options' is {\"omega\": Infinity}, but"),
        ({"versions": {"torch": 2}}, "'versions' is {\"torch\": 2}, but has to be a mapping:"),
        ({"checkpoint": 3}, "'checkpoint' is 3, but has to be text or null:"),
        ({"training_seed": "0"}, "'training_seed' is \"0\", but has to be a whole number of at"),
        ({"clipped_steps": -1}, "'clipped_steps' is -1, but has to be a whole number of at least"),
        ({"date": None}, "'date' is null, but has to be text:"),
    ],
)
def test_a_record_that_cannot_be_is_a_line_with_its_file_and_field(tmp_path, change, said):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**json.loads(RECORD.to_json()), **change}))
    with pytest.raises(EvaluationError) as refused:
        EvaluationRecord.load(path)
    line = str(refused.value)
    assert line.startswith(f"{path}: Not an evaluation record: {said}") and "\n" not in line
    assert line.endswith("evaluate the checkpoint again, or leave the record out.")


def test_a_missing_field_is_named():
    values = json.loads(RECORD.to_json())
    del values["returns"]
    with pytest.raises(EvaluationError, match="it has no 'returns': evaluate"):
        EvaluationRecord.from_json(json.dumps(values))


def test_the_summary():
    summary = RECORD.summary()
    assert summary["score_mean"] == 25 and summary["score_iqm"] == 15
    assert summary["length_mean"] == 25 and summary["terminated_share"] == 0.75
    assert summary["clipped_share"] == 0.05


def test_what_was_reached_stands_beside_the_scores():
    assert "reached_share" not in RECORD.summary() and "goal" not in _printed(RECORD)
    record = dataclasses.replace(RECORD, reached=(3, 0, 9, 1), scores_if_stayed=(90.0, 0, 10, 20))
    assert EvaluationRecord.from_json(record.to_json()) == record
    summary = record.summary()
    assert summary["reached_share"] == 0.75 and summary["score_if_stayed_mean"] == 30
    assert summary["score_mean"] == 25  # what was paid is the score
    assert "had it stayed at the goal" in _printed(record)
    assert "3 of 4 episodes reached the goal" in _printed(record)


def _printed(record):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(record.table())
    return console.export_text()


def test_the_table_says_when_there_is_no_score():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(RECORD.table())
    console.print(dataclasses.replace(RECORD, scores=None).table())
    with_scores, without = console.export_text().split("BCModule in HopperBulletEnv-v0")[1:]
    assert "normalised score" in with_scores and "25.0" in with_scores
    assert "No normalised score" in without and "25.0" in without  # the mean length


def test_what_was_done_to_the_data_stands_with_the_score():
    handled = dataclasses.replace(RECORD, dataset="x-v2", dataset_handling=("rewards: r - 1",))
    assert EvaluationRecord.from_json(handled.to_json()) == handled
    earlier = json.loads(RECORD.to_json())
    del earlier["dataset_handling"]  # a record of a version that did not know it
    assert EvaluationRecord.from_json(json.dumps(earlier)) == RECORD
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(handled.table())
    assert "x-v2: rewards: r - 1." in console.export_text()


def test_hashes_and_versions():
    assert config_sha256({"a": 1, "b": [2]}) == config_sha256({"b": [2], "a": 1})
    assert config_sha256({"a": 1}) != config_sha256({"a": 2})
    assert {"python", "torch", "gymnasium", "lit-offrl"} <= set(package_versions())


def test_the_hardware_names_the_instructions_that_kernels_are_chosen_by():
    said = hardware()
    assert f"({torch.backends.cpu.get_cpu_capability()})" in said and "torch threads" in said


@pytest.mark.parametrize("count", [3, 8])
def test_intervals_stay_within_what_episodes_have_shown(made_record, count):
    """Of three lengths 2, 9 and 400 Student's interval reaches from −77 to 468 and the like."""
    lengths = (2, 9, 400, 3, 5, 300, 4, 500)[:count]
    many = {"lengths": lengths, "returns": tuple(map(float, lengths)), "scores": None}
    many |= {name: tuple(range(count)) for name in ("episodes", "seeds")}
    record = made_record(0.0, 0, **many, terminated=(True,) * count)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(record.table())
    text = console.export_text()
    (line,) = [line for line in text.splitlines() if "length" in line]
    interval = line.split("│")[5].strip()
    if count == 3:
        assert interval == "–" and "Fewer than 6 episodes have no interval" in text
    else:
        low, high = map(float, interval.split(" … "))
        assert 2 <= low < high <= 500
