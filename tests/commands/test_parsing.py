from __future__ import annotations

import pytest

from lit_offrl.__main__ import main
from lit_offrl.commands.parsing import OneLineParser


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
        ("run --episods 3", "tool: unknown option '--episods'. Did you mean '--episodes'?"),
        ("run --episods=3", "tool: unknown option '--episods'. Did you mean '--episodes'?"),
        ("run --episode 3", "tool: unknown option '--episode'. Did you mean '--episodes'?"),
        ("run --zzz", "tool: unknown option '--zzz'."),
        ("run again", "tool: unexpected argument 'again'."),
        ("rn", "tool: unknown verb 'rn' (known: run). Did you mean 'run'?"),
        ("--kind mixd run", "tool: argument --kind: unknown choice 'mixd' (known: random, mixed)."),
        ("run --episodes x", "tool run: argument --episodes: invalid int value: 'x'."),
        ("", "tool: the following arguments are required: verb."),
    ],
)
def test_a_mistake_is_one_line_that_names_the_nearest(capsys, argv, line):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(argv.split())
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.startswith(line) and said.endswith("--help)\n") and said.count("\n") == 1


@pytest.mark.parametrize("verb", ["collect", "evaluate", "figures scores", "online", "ope"])
@pytest.mark.parametrize("seed", ["-1", str(2**32), "x"])
def test_a_seed_is_one_that_numpy_takes(capsys, verb, seed):
    with pytest.raises(SystemExit) as caught:
        main([*verb.split(), "--seed", seed])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert f"argument --seed: invalid seed in [0, 4294967295] value: '{seed}'" in said


def test_what_is_right_is_parsed():
    options = parser().parse_args(["--kind", "mixed", "run", "--episodes", "3"])
    assert (options.kind, options.verb, options.episodes) == ("mixed", "run", 3)
