"""The help of every option is a full sentence that a stranger understands."""

import argparse
import re

import pytest

import lit_offrl.datamodules
import lit_offrl.modules
from lit_offrl.__main__ import COMMANDS, TRAINER_VERBS, main
from lit_offrl.callbacks import MLflowRun
from lit_offrl.cli.errors import OneLineArgumentParser
from lit_offrl.cli.help import kinds_of
from lit_offrl.cli.main import OfflineCLI
from lit_offrl.commands.figures import FIGURES
from lit_offrl.datasets.views import View

FOREIGN = ("help", "config", "print_config", "trainer")  # jsonargparse's words and Lightning's
ABSTRACT = ("OfflineModule", "OfflineDataModule")
KINDS = [
    getattr(package, name)
    for package in (lit_offrl.modules, lit_offrl.datamodules)
    for name in package.__all__
    if name.endswith("Module") and name not in ABSTRACT
]
KINDS += [*kinds_of(View), MLflowRun]


def faults(text):
    """Say what keeps a help text from being a full sentence."""
    text = " ".join((text or "").split())
    if not text:
        return "has none"
    found = []
    if not re.match(r"[^a-z]", text):
        found.append("begins without a capital letter")
    if not re.search(r"\.( \(default: .+\))?$", text):
        found.append("ends without a full stop")
    if len(text.split()) < 3:
        found.append("has fewer than three words")
    if re.search(r"\blikewise\b", text, re.IGNORECASE) or re.match("of ", text, re.IGNORECASE):
        found.append("is a fragment")
    return ", ".join(found)


def bad_helps(parser):
    """Name the options of a parser, and of its subcommands, whose help is no full sentence."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found |= {f"{name} {option}": said for option, said in bad_helps(below).items()}
            continue
        name = action.dest if action.dest != argparse.SUPPRESS else "help"
        if action.help == argparse.SUPPRESS or name.partition(".")[0] in FOREIGN:
            continue
        if said := faults(action.help):
            found[name] = f"{said}: {action.help}"
    return found


class Built(Exception):
    """Carries a parser out of what would go on to parse."""


def listed(found):
    return "\n".join(f"{name} {said}" for name, said in found.items())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_options_of_a_class_are_explained_in_sentences(kind):
    parser = OneLineArgumentParser()
    parser.add_class_arguments(kind, fail_untyped=False)
    assert not (found := bad_helps(parser)), listed(found)


@pytest.mark.parametrize("verb", TRAINER_VERBS)
def test_options_of_a_trainers_verb_are_explained_in_sentences(verb):
    class Parser(OfflineCLI):
        def parse_arguments(self, parser, args):
            raise Built(parser)

    with pytest.raises(Built) as built:
        Parser([verb])
    assert not (found := bad_helps(built.value.args[0])), listed(found)


ARGVS = [[verb] for verb in COMMANDS if verb != "figures"]
ARGVS += [["figures", name] for name in FIGURES]


@pytest.mark.parametrize("argv", ARGVS, ids=" ".join)
def test_options_of_a_command_are_explained_in_sentences(argv, folder, monkeypatch):
    def parse(self, *args, **kwargs):
        raise Built(self)

    for name in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, parse)
    with pytest.raises(Built) as built:
        main(argv)
    assert not (found := bad_helps(built.value.args[0])), listed(found)


def test_help_of_a_method_is_grouped_by_the_classes_that_state_the_options(capsys, folder):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "IQLModule"])
    said = capsys.readouterr().out
    titles = r"\n(?=CriticGuidedModule:|ActorModule:|OneOptimizer:)"
    own, critics, actor, every = re.split(titles, said)
    assert "--model.beta" in own and "--model.tau" in critics and "--model.normalize" in actor
    assert "--model.learning_rate" in every and "default: 0.0003" in every
    for linked in ("observation_dim", "action_low", "seed"):  # which nobody gives
        assert f"--model.{linked}" not in said
    assert "usage:" not in said and "``" not in said


def test_help_of_data_has_all_that_may_be_given(capsys, folder):
    with pytest.raises(SystemExit):
        main(["fit", "--data.help", "PyBulletDataModule"])
    said = capsys.readouterr().out
    assert "--data.dataset" in said and "--data.action_low" in said and "--data.seed" not in said


def test_help_of_a_verb_begins_with_what_it_does(capsys, folder):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    usage, does, *_ = capsys.readouterr().out.split("\n\n")
    assert usage == "usage: lit-offrl fit [--config CONFIG ...] [--OPTION VALUE ...]"
    assert does.startswith("Train a method, or resume from a checkpoint. --model.help NAME")
