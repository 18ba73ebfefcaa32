from __future__ import annotations

import pytest

from lit_offrl.__main__ import main
from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError


def parser() -> OneLineParser:
    made = OneLineParser(prog="tool")
    made.add_argument("--kind", choices=["random", "mixed"])
    verbs = made.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--episodes", type=int)
    return made


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("run --episods 3", "there is no option '--episods'. Did you mean '--episodes'?"),
        ("run --episods=3", "there is no option '--episods'. Did you mean '--episodes'?"),
        ("run --episode 3", "there is no option '--episode'. Did you mean '--episodes'?"),
        ("run --zzz", "there is no option '--zzz'."),
        ("run again", "nothing is known to do with 'again'; options begin with --."),
        ("rn", "unknown verb 'rn' (known: run). Did you mean 'run'?"),
        ("--kind mixd run", "argument --kind: unknown choice 'mixd' (known: random, mixed)."),
        ("run --episodes x", "argument --episodes: invalid int value: 'x'."),
        ("", "the following arguments are required: verb."),
    ],
)
def test_a_mistake_is_one_line_that_names_the_nearest(argv, line):
    with pytest.raises(ConfigError) as caught:
        parser().parse_args(argv.split())
    said = str(caught.value)
    assert said.startswith(line) and said.endswith(" --help)") and "\n" not in said


@pytest.mark.parametrize("verb", ["evaluate", "figures scores", "online", "ope"])
@pytest.mark.parametrize("seed", ["-1", str(2**32), "x"])
def test_a_seed_is_one_that_numpy_takes(capsys, verb, seed):
    assert main([*verb.split(), "--seed", seed]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"argument --seed: invalid seed in [0, 4294967295] value: '{seed}'" in said


def test_what_is_right_is_parsed():
    options = parser().parse_args(["--kind", "mixed", "run", "--episodes", "3"])
    assert (options.kind, options.verb, options.episodes) == ("mixed", "run", 3)


def test_a_recipes_seed_is_one_too(folder, capsys):
    recipe = ["--env", "Pendulum-v1", "--kind", "random", "--output", "x.hdf5"]
    assert main(["collect", *recipe, "--seed", "-1"]) == 2
    assert "seed is -1: give a number in [0, 4294967295]" in capsys.readouterr().err
