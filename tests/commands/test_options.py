"""Options made from dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from lit_offrl.commands.options import add_options, make, parse
from lit_offrl.commands.parsing import OneLineParser
from lit_offrl.common.errors import ConfigError
from lit_offrl.common.ranges import require_fields


@dataclass(frozen=True, kw_only=True)
class Base:
    """What several studies take.

    Args:
        path: File that is read.
        share: Share of the rows, in 100 %.
    """

    path: Path
    share: Annotated[float, "[0, 1]"] = 0.5

    def __post_init__(self):
        require_fields(self)


@dataclass(frozen=True, kw_only=True)
class Own(Base):
    """One study's.

    Args:
        path: Checkpoint that is read
            by this one.
        names: Names of the columns.
        kind: Kind of the row.
        upper: Whether texts are in capitals.
        word: Word, read backwards.
        limit: Limit in steps; None has none.
    """

    names: list[str] = field(default_factory=lambda: ["a", "b"])
    kind: Literal["one", "two"] = "one"
    upper: bool = True
    word: Annotated[str, lambda text: text[::-1]] = ""
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """What is given several times.

    Args:
        only: Number of a part.
    """

    only: Annotated[list[int], "append"] = field(default_factory=list)


def test_what_may_be_repeated_takes_a_value_each_time():
    assert parse(Repeated, [], "own") == Repeated()
    assert parse(Repeated, ["--only", "1", "--only", "2"], "own") == Repeated(only=[1, 2])
    with pytest.raises(ConfigError, match="nothing is known to do with '2'"):
        parse(Repeated, ["--only", "1", "2"], "own")


def parsed(*words, **keywords):
    parser = OneLineParser(prog="own")
    add_options(parser, Own, **keywords)
    return parser, parser.parse_args(words)


def test_fields_become_options_that_make_the_dataclass():
    assert make(Own, parsed("--path", "x")[1]) == Own(path=Path("x"))
    words = "--path x --names c d e --kind two --no-upper --word abc --limit 3 --share 1".split()
    made = make(Own, parsed(*words)[1])
    assert made == Own(
        path=Path("x"), names=["c", "d", "e"], kind="two", upper=False, word="cba", limit=3, share=1
    )


def test_the_help_is_the_docstrings():
    text = " ".join(parsed("--path", "x")[0].format_help().split())
    for said in (
        "Checkpoint that is read by this one.",
        "Share of the rows, in 100 %. (default: 0.5)",
        "Names of the columns. (default: a b)",
        "Kind of the row. (default: one)",
        "Limit in steps; None has none.",
    ):
        assert said in text
    assert "Limit in steps; None has none. (default" not in text


def test_mistakes_are_one_line():
    for words, said in (
        (["--kind", "two"], "the following arguments are required: --path"),
        (["--path", "x", "--kind", "three"], "unknown choice 'three'"),
        (["--path", "x", "--limit", "many"], "--limit: invalid int value: 'many'"),
    ):
        with pytest.raises(ConfigError, match=said):
            parsed(*words)
    with pytest.raises(ConfigError, match=r"share is 2\.0: give a number in"):
        make(Own, parsed("--path", "x", "--share", "2")[1])


def test_options_that_are_not_given_can_be_told_from_those_that_are():
    _, options = parsed("--path", "x", "--limit", "3", skip=["names"], default=())
    given = {name for name, value in vars(options).items() if value != ()}
    assert given == {"path", "limit"} and not hasattr(options, "names")
