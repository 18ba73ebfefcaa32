"""README and docs: every command parses, every block of Python compiles, links lead somewhere.

A block that is not run by anybody says so in a comment above it, ``<!-- not run: reason -->``; the
others of the pages in ``FIRST_HOUR`` are really run, in their order, by the slow test; the demo
with fewer steps.
"""

import ast
import csv
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from lit_offrl.__main__ import TRAINER_VERBS, main
from lit_offrl.cli.main import parse_options
from lit_offrl.commands.docs import section
from lit_offrl.commands.parsing import OneLineParser

CLONE = Path(__file__).parent.parent
PAGES = [CLONE / "README.md", *sorted((CLONE / "docs").rglob("*.md"))]
FIRST_HOUR = ("README.md", "docs/get_started.md", "docs/your_robot.md", "docs/extending.md")
LINES_OF_README = 120
# The program of the first hour's shell: as installed, but for long trainings and scores.
PROGRAM = """#!/bin/sh
case "$*" in
*"--config quick")
  set -- "$@" --trainer.max_steps 70 --trainer.val_check_interval 35 --evaluation.episodes 5 \\
  --model.init_args.warmup_steps 20 --evaluation.bc_steps 40 --checkpoint.every_n_train_steps 35;;
"fit "*" --trainer.max_steps 2000 "*)
  set -- "$@" --trainer.max_steps 70 --trainer.val_check_interval 70 --evaluation.episodes 5;;
"fit "*" --trainer.max_steps "*)
  set -- "$@" --trainer.max_steps 70 --trainer.val_check_interval 70;;
"evaluate "*" --episodes 20 "*) set -- "$@" --episodes 5;;
"ope "*" --fqe_steps 1000") set -- "$@" --fqe_steps 50;;
esac
exec "{}" -m lit_offrl "$@"
"""
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?"
    r"```(?P<language>\w*)(?: title=\"(?P<file>[^\"]+)\")?\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
MEANING = "What it means for your choice:"
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")
# What a page's shell calls: our commands are written down, all others do nothing.
STUBS = """
lit-offrl() { printf '%s\\0' lit-offrl "$@"; printf '\\n'; }
python() { printf '%s\\0' python "$@"; printf '\\n'; }
command_not_found_handle() { :; }
kill() { wait; }
PATH=
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str
    why_not_run: str | None
    file: str | None


def blocks_of(page):
    for found in FENCE.finditer(page.read_text()):
        yield Block(
            str(page.relative_to(CLONE)),
            found["language"],
            found["text"],
            found["why"],
            found["file"],
        )


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(block, folder):
    """Return the argv of every command of ours that a block would run; loops are gone through."""
    done = subprocess.run(
        ["bash", "-c", STUBS + block.text], cwd=folder, capture_output=True, text=True, timeout=20
    )
    assert "syntax error" not in done.stderr, f"{block.page}: {done.stderr}"
    lines = [line.split("\0")[:-1] for line in done.stdout.splitlines() if "\0" in line]
    promised = re.search(r"^\s*lit-offrl ", block.text, re.MULTILINE)
    assert lines or not promised, f"{block.page}: no command was found in\n{block.text}"
    return lines


class Parsed(Exception):
    """Ends a command once its options are parsed; carries those that another parser takes."""

    def __init__(self, rest=()):
        super().__init__()
        self.rest = list(rest)


def without(argv, option):
    """Return the arguments without an option and its value."""
    if option not in argv:
        return list(argv)
    place = argv.index(option)
    return [*argv[:place], *argv[place + 2 :]]


def parse_as_trainer_verb(argv):
    """Parse options of fit and its like; those that a checkpoint would give cannot be looked up."""
    argv = without(argv, "--ckpt_path")
    if any(each in argv for each in ("--print_config", "--help", "--model.help", "--data.help")):
        argv = [each for each in argv if each != "--print_config"]
        if argv[-2:-1] in (["--model.help"], ["--data.help"]) or argv[-1] == "--help":
            return
    if "--config" in argv or "--model" in argv:
        parse_options(argv)
    else:
        known = ("--trainer.", "--model.", "--data.", "--checkpoint.", "--policy.")
        assert all(each.startswith(known) for each in argv if each.startswith("--")), argv


def parse_as_command(argv, monkeypatch):
    """Parse options of another verb by its own parser, and go no further."""
    verb = argv[0]
    if "--help" in argv:
        with pytest.raises(SystemExit):
            main(argv)
        return
    parse, parse_known = OneLineParser.parse_args, OneLineParser.parse_known_args

    def parsed(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    def parsed_in_part(self, *args, **kwargs):
        raise Parsed(parse_known(self, *args, **kwargs)[1])

    with monkeypatch.context() as patch:
        if verb == "online":
            patch.setattr(OneLineParser, "parse_known_args", parsed_in_part)
        else:
            patch.setattr(OneLineParser, "parse_args", parsed)
        with pytest.raises(Parsed) as end:
            code = main(argv)
            assert code == 0, f"lit-offrl {' '.join(argv)} ends with {code}"
            raise Parsed  # a verb that only prints, as configs without options
    if end.value.rest:
        rows = ["--data.init_args.dataset", "rows.hdf5"]  # which the command collects
        parse_as_trainer_verb(["fit", *end.value.rest, *rows])


def require_files_named(argv):
    """The files of sweeps and pipelines are read later: they have to be there."""
    for option, name in itertools.pairwise(argv):
        if option == "--config" and argv[0] in ("sweep", "pipeline"):
            places = [
                CLONE / name,
                *(CLONE / kind / f"{name}.yaml" for kind in ("sweeps", "configs")),
            ]
            assert any(place.is_file() for place in places), f"{name} of {argv} is not there"


OURS = [page for page in PAGES if any("lit-offrl" in block.text for block in blocks_of(page))]


@pytest.mark.parametrize("page", OURS, ids=lambda page: str(page.relative_to(CLONE)))
def test_commands_of_a_page_parse(page, tmp_path, monkeypatch):
    shell = [block for block in blocks_of(page) if block.language in ("bash", "console")]
    monkeypatch.syspath_prepend(tmp_path)  # files that the page has its reader make
    for block in blocks_of(page):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    commands = {  # those that differ in numbers alone, as of a loop over seeds, once
        tuple(re.sub(r"\d+", "0", part) for part in argv): argv
        for block in shell
        if block.language == "bash" and "any shell" not in (block.why_not_run or "")
        for argv in commands_of(block, tmp_path)
    }
    monkeypatch.chdir(CLONE)
    for program, *argv in commands.values():
        if program == "python":
            if argv[:2] == ["-m", "benchmarks"]:
                name = argv[2] if argv[2:] and not argv[2].startswith("-") else "__main__"
                assert (CLONE / "benchmarks" / f"{name}.py").is_file(), argv
        elif argv[0] in TRAINER_VERBS:
            parse_as_trainer_verb(argv)
        elif argv[0].startswith("-"):
            assert main(argv) == 0
        else:
            require_files_named(argv)
            parse_as_command(argv, monkeypatch)


def test_commands_stand_in_blocks_that_are_checked():
    for block in BLOCKS:
        if block.language in ("", "text"):
            assert not re.search(r"^lit-offrl ", block.text, re.MULTILINE), block


def test_a_command_that_does_not_parse_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(CLONE)
    text = (
        "for n in 1 2; do\n  lit-offrl evaluate --ckpt_path x.ckpt --episods $n # comment\ndone\n"
    )
    block = Block("made up", "bash", text, None, None)
    found = commands_of(block, tmp_path)
    assert found[1] == ["lit-offrl", "evaluate", "--ckpt_path", "x.ckpt", "--episods", "2"]
    with pytest.raises(AssertionError, match="ends with 2"):
        parse_as_command(found[0][1:], monkeypatch)
    with pytest.raises(Exception, match="betaa"):
        parse_as_trainer_verb(["fit", "--config", "iql", "--model.init_args.betaa", "3"])


PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.page)
def test_python_of_a_page_compiles_and_is_run_or_marked(block):
    ast.parse(block.text)
    assert block.why_not_run or block.page in FIRST_HOUR, f"{block.page}: say why it is not run"


def test_yaml_of_pages_can_be_read():
    for block in BLOCKS:
        if block.language == "yaml":
            assert yaml.safe_load(block.text), block


def test_pages_say_first_what_they_are_for():
    for page in PAGES:
        title, _, rest = page.read_text().lstrip().partition("\n")
        first = rest.strip().split("\n\n")[0]
        assert title.startswith("# "), page
        assert len(first.split()) > 7 and re.match(r"[A-Z]|`(?!``)|lit-offrl ", first), page
        assert "." in first or first.endswith(":"), f"{page}: {first}"


def tables_without_meaning(text):
    """Yield the first line of each table of numbers that no sentence on its meaning follows.

    The sentence has to stand before the next table or heading.
    """
    parts = re.split(
        r"^( *\|.*\n(?: *\|.*\n)+|#.*\n)", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M
    )
    for table, after in zip(parts[1::2], parts[2::2], strict=True):
        if re.match(r" *\|.*\n[ |:-]*: ", table) or re.search(r"\| *[−\d]+\.\d", table):
            if MEANING not in after:
                yield table.splitlines()[0].strip()


def test_tables_of_results_say_what_they_mean_for_a_choice():
    pages = [CLONE / "docs" / f"{name}.md" for name in ("results", "what_holds", "recap", "online")]
    for page in [*pages, *(CLONE / "docs" / "results").glob("*.md")]:
        assert not (bare := [*tables_without_meaning(page.read_text() + "\n")]), f"{page}: {bare}"
    told = "| a | b |\n| --- | --- |\n| x | 1.5 |\n"
    assert [*tables_without_meaning(told)] == ["| a | b |"]
    assert not [*tables_without_meaning(f"{told}\n{MEANING} take x.\n")]


def test_what_holds_is_what_the_published_scores_say(tmp_path, monkeypatch):
    monkeypatch.chdir(CLONE)
    scores, page = "docs/results/runs/*.csv", "docs/what_holds.md"
    assert main(["claims", "--results", scores, "--output", str(tmp_path / "page.md")]) == 0
    made = (tmp_path / "page.md").read_text().replace(str(tmp_path / "page.md"), page)
    command = f"lit-offrl claims --results '{scores}' --output {page}"
    assert made == (CLONE / page).read_text(), f"run: {command}"


def test_published_scores_stand_in_the_tables_that_they_name():
    for path in sorted((CLONE / "docs" / "results" / "runs").glob("*.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                text = section(row["source"])
                if found := row.get("score") or row.get("return"):
                    shown = f"{float(found):.1f}".replace("-", "−")
                    assert re.search(rf"(?<![\d.−]){re.escape(shown)}(?![\d])", text), (path, row)


def test_readme_is_short_and_its_links_lead_somewhere():
    text = (CLONE / "README.md").read_text()
    assert len(text.splitlines()) <= LINES_OF_README
    for name in LINK.findall(text) + LINK.findall((CLONE / "CONTRIBUTING.md").read_text()):
        assert (CLONE / name).exists(), name


def test_pages_that_messages_name_exist():
    named = re.compile(r"\bdocs/[\w/]+\.md\b")
    for folder in ("lit_offrl", "benchmarks", "configs", "sweeps"):
        for path in (CLONE / folder).rglob("*"):
            if path.suffix in (".py", ".yaml") and not path.is_symlink():
                for name in named.findall(path.read_text()):
                    assert (CLONE / name).is_file(), f"{path} names {name}"


@pytest.mark.slow
@pytest.mark.parametrize("page", FIRST_HOUR)
def test_the_first_hour_works_in_an_empty_folder(page, tmp_path):
    """Every block of a page that is not marked, in order, as a new user would run it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    script = tools / "lit-offrl"
    script.write_text(PROGRAM.format(sys.executable))
    script.chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    folder = tmp_path / "empty"
    folder.mkdir()
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(CLONE)}
    env |= {"LIT_OFFRL_DATA": str(tmp_path / "data"), "COLUMNS": "120"}
    for block in blocks_of(CLONE / page):
        if block.why_not_run or block.language not in ("bash", "python"):
            continue
        if block.file:
            (folder / block.file).write_text(block.text)
            continue
        program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euc"]
        done = subprocess.run(
            [*program, block.text], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{page}:\n{block.text}\n{done.stdout}\n{done.stderr}"
