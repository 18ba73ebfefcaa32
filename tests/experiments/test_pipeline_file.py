"""A pipeline's file: what it means, and what is said of a bad one."""

from pathlib import Path

import pytest
import yaml

from lit_offrl.common.errors import ConfigError
from lit_offrl.experiments.config import FileReader
from lit_offrl.experiments.pipeline import read_pipeline


def override(pipeline, **options):
    options = {name.replace("__", "."): value for name, value in options.items()}
    return pipeline.override(options, FileReader(Path("--set"), "the pipeline"))


def test_one_file_by_hand(write, folder):
    path = write(
        seed=4,
        config="b.yaml",
        options={"trainer.accelerator": "cpu", "x": 1},
        stages={
            "first": {"config": "a.yaml", "options": {"x": 2}},
            "second": {"config": "a.yaml", "checkpoints": {"model.before": "first"}},
        },
    )
    pipeline = read_pipeline([path])
    assert (pipeline.name, pipeline.seed) == ("two", 4)
    first, second, one, other = pipeline.parts
    assert first.configs == (folder / "a.yaml", folder / "b.yaml")  # overlays on top
    common = {"trainer.accelerator": "cpu", "data.init_args.dataset": "minari:data"}
    assert first.options == {**common, "x": 2} and second.options == {**common, "x": 1}
    assert (first.takes, second.takes) == ({}, {"model.before": "first"})
    assert (one.label, one.takes) == ("one", {"ckpt_path": "second"})
    assert one.options == {"episodes": 3, "policy.x": 1}
    assert (other.label, other.takes) == ("other", {"ckpt_path": "first"})
    assert other.options == {"episodes": 3}


def test_without_evaluations_the_last_stage_is_evaluated_and_with_an_empty_mapping_none(write):
    *_, only = read_pipeline([write(evaluations=None)]).parts
    assert (only.label, only.takes) == ("two", {"ckpt_path": "second"})
    assert all(part.is_stage for part in read_pipeline([write(evaluations={})]).parts)


def test_a_file_lies_over_its_base_and_under_the_next(write, folder):
    write(options={"x": 1, "y": {"a": 1}})
    (folder / "data.hdf5").touch()
    (folder / "over").mkdir()
    over = folder / "over" / "over.yaml"
    over.write_text(
        yaml.safe_dump(
            {
                "base": "../two.yaml",
                "dataset": "../data.hdf5",
                "options": {"y": {"b": 2}},
                "stages": {"second": {"options": {"x": 5}}, "third": {"config": "../b.yaml"}},
                "evaluations": {"other": None},
            },
            sort_keys=False,
        )
    )
    last = folder / "last.yaml"
    last.write_text("stages: {third: null, second: {options: {z: 1}}}\n")
    pipeline = read_pipeline([over, last])
    pipeline = pipeline.override({}, FileReader(last), configs=[folder / "b.yaml"])
    assert pipeline.name == "over"
    first, second, one = pipeline.parts
    common = {"x": 1, "y": {"b": 2}, "data.init_args.dataset": str(folder / "data.hdf5")}
    assert first.options == common
    assert second.options == {**common, "x": 5, "z": 1}
    assert second.configs == (folder / "a.yaml", folder / "b.yaml")
    assert one.label == "one"


def test_what_is_null_stays_out_unless_it_gets_a_config(write, folder):
    path = write(stages={"first": {"config": "a.yaml"}, "second": None}, evaluations={})
    over = folder / "over.yaml"
    over.write_text("stages: {second: {options: {x: 1}}}\n")
    assert [part.label for part in read_pipeline([path, over]).parts] == ["first"]
    over.write_text("stages: {second: {config: b.yaml, options: {x: 1}}}\n")
    assert [part.label for part in read_pipeline([path, over]).parts] == ["first", "second"]


def test_options_of_the_command_line_win(write):
    pipeline = read_pipeline(
        [write(stages={"first": {"config": "a.yaml", "options": {"trainer.max_steps": 5}}})]
    )
    new = override(
        pipeline,
        first__model__width=2,
        trainer__max_steps=7,
        evaluate__episodes=9,
        one__policy__x=8,
    )
    stage, *evaluations = new.parts
    assert stage.options["trainer.max_steps"] == 7 and stage.options["model.width"] == 2
    assert [each.options for each in evaluations] == [
        {"episodes": 9, "policy.x": 8},
        {"episodes": 9},
    ]
    same = override(pipeline, first__trainer__max_steps=8, trainer__max_steps=7).parts[0]
    assert same.options["trainer.max_steps"] == 8  # one stage's wins over that of all


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("frist.model.width", "there is no 'frist'. Did you mean 'first'?"),
        ("trainr.max_steps", "Did you mean 'trainer'?"),
        ("first", "there is no 'first'"),
        ("first.trainer.logger", "'trainer.logger' is given by the pipeline itself"),
        ("one.polcy", "unknown key 'polcy'"),
        ("second.model.before", "'model.before' takes the checkpoint of 'first'"),
    ],
)
def test_options_of_the_command_line_that_cannot_be(write, option, message):
    pipeline = read_pipeline([write()])
    with pytest.raises(ConfigError) as caught:
        override(pipeline, **{option: 1})
    assert str(caught.value).startswith("--set: ") and message in str(caught.value)


def test_only_takes_what_is_needed(write):
    stages = {name: {"config": "a.yaml"} for name in ("p", "q", "r")}
    stages["r"]["checkpoints"] = {"x": "q"}
    evaluations = {"a": {"stage": "p"}, "b": {"stage": "r"}, "c": {"stage": "r"}}
    pipeline = read_pipeline([write(stages=stages, evaluations=evaluations)])

    def names(*only):
        part = pipeline.only(only)
        stages = [each.label for each in part.parts if each.is_stage]
        return stages, [each.label for each in part.parts if not each.is_stage]

    assert names() == (["p", "q", "r"], ["a", "b", "c"])
    assert names("b") == (["q", "r"], ["b"])
    assert names("q", "a") == (["p", "q"], ["a"])
    with pytest.raises(ConfigError, match="--only aa: there is no such stage or evaluation"):
        names("aa")


def stages(**second):
    return {"first": {"config": "a.yaml"}, "second": {"config": "a.yaml", **second}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": {}}, "unknown key 'stage'. Did you mean 'stages'?"),
        ({"stages": None}, "stages: {} is given; give a mapping of stages in their order"),
        ({"stages": ["first"]}, "stages: ['first'] is given; give a mapping by name"),
        ({"stages": {"a b": {"config": "a.yaml"}}}, "stages.a b: 'a b' is given"),
        ({"stages": {"model": {"config": "a.yaml"}}}, "options begin with 'model'"),
        ({"stages": {"first": {}}}, "stages.first: has no 'config'"),
        ({"stages": {"first": {"confg": "a.yaml"}}}, "Did you mean 'config'?"),
        ({"stages": {"first": {"config": "aa.yaml"}}}, "Did you mean 'a.yaml'?"),
        ({"config": "c.yaml"}, "config: there is no file"),
        ({"stages": stages(checkpoints={"x": ["first"]})}, "checkpoints.x: ['first'] is given"),
        ({"stages": stages(checkpoints={"x": "frist"})}, "second.checkpoints.x: there is no stage"),
        ({"stages": stages(checkpoints={"x": "second"})}, "does not come before this one"),
        (
            {"stages": {"a": {"config": "a.yaml", "checkpoints": {"x": "b"}},
                        "b": {"config": "a.yaml", "checkpoints": {"x": "a"}}}},
            "stages.a.checkpoints.x: stage 'b' does not come before",
        ),
        ({"stages": stages(checkpoints={"x": "first"}, options={"x": 1})}, "give one of them"),
        ({"stages": stages(options={"seed_everything": 1})}, "given by the pipeline itself"),
        ({"stages": stages(options={"--x": 1})}, "'--x' is no option of fit"),
        ({"evaluations": {"a": {"stage": "sec"}}}, "no stage 'sec'. Did you mean 'second'?"),
        ({"evaluations": {"a": {"episode": 1}}}, "unknown key 'episode'. Did you mean 'episodes'?"),
        ({"evaluations": {"first": {"stage": "second"}}}, "a stage has this name"),
        ({"evaluate": {"stage": "first"}}, "unknown key 'stage'"),
        ({"dataset": "none.hdf5"}, "dataset: there is no file"),
        ({"seed": -1}, "seed: -1 is given"),
        ({"seed": 2**32}, "seed: 4294967296 is given; give a whole number in [0, 4294967295]"),
        ({"name": "a/b"}, "name: 'a/b' is given"),
        ({"base": "two.yaml"}, "is built on this file"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_line(write, changes, message):
    path = write(**changes)
    with pytest.raises(ConfigError) as caught:
        read_pipeline([path])
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text
