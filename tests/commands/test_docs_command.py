"""lit-offrl docs: pages and sections by name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pymdownx.slugs import slugify

from lit_offrl.__main__ import main
from lit_offrl.commands import docs


def test_all_pages_are_listed_with_what_they_are_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["docs"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed.keys() == set(docs.names()) >= {"export", "methods/dvf", "results/ogbench"}
    assert "api/policies" not in listed and all(each[-1] in ".:" for each in listed.values())


@pytest.mark.parametrize("name", docs.names())
def test_a_page_is_printed_and_each_section_by_the_anchor_of_the_site(name, capsys):
    text = (docs.FOLDER / f"{name}.md").read_text()
    assert main(["docs", name]) == 0
    assert capsys.readouterr().out == text
    anchor, seen = slugify(case="lower"), set()
    for title in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    ):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        if (made := anchor(plain, "-")) not in seen:  # the site numbers the others
            assert docs.section(f"docs/{name}.md#{made}").splitlines()[0].endswith(f" {title}")
        seen.add(made)


def test_pages_that_help_and_messages_name_exist():
    package = Path(docs.__file__).parents[1].rglob("*.py")
    named = re.compile(r"`lit-offrl docs ([\w/]+)`")
    found = {name for path in package for name in named.findall(path.read_text())}
    assert {"sweeps", "pipelines", "serving"} <= found <= set(docs.names())


def test_in_a_terminal_a_page_is_laid_out(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["docs", "methods/bc"]) == 0
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)  # colours
    assert "Behaviour cloning learns" in out and "diffusion BC (diffusion_bc.md)" in out
    assert not any(mark in out for mark in ("```", "<!--", "| ---", "bc.svg"))


def test_a_section_ends_where_the_next_one_of_its_level_begins(tmp_path, monkeypatch):
    text = "# A\n## B `c`\nb\n```\n# no heading\n```\n### D\nd\n## E\ne\n"
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(docs, "FOLDER", tmp_path)
    assert docs.section("page#b-c") == text[4:-7]
    assert docs.section("page#d") == "### D\nd\n" and docs.section("page#e") == "## E\ne\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("exprt", "there is no page 'exprt'. Did you mean 'export'?"),
        ("../README", "there is no page '../README'. `lit-offrl docs` prints all names."),
        ("export#a-files", "the page 'export' has no section 'a-files'."),
    ],
)
def test_what_is_not_there_is_said(given, said, capsys):
    assert main(["docs", given]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"lit-offrl: error: {said}") and err.count("\n") == 1


def test_a_terminal_without_unicode_gets_what_it_can_show():
    done = subprocess.run(
        [sys.executable, "-m", "lit_offrl", "docs", "recap"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr and "recipe of ?\\*0.6" in done.stdout


def test_torch_is_not_imported():
    code = "import sys; from lit_offrl.__main__ import main; main(['docs', 'export']);"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} assert 'torch' not in sys.modules"], capture_output=True
    )
    assert done.returncode == 0, done.stderr
