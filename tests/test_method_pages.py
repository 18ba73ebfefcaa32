"""The pages of the methods: options are today's, and what is named exists."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest

import lit_offrl.modules
from lit_offrl.__main__ import COMMANDS, TRAINER_VERBS
from lit_offrl.cli.help import kinds_of
from lit_offrl.common.configs import names as config_names

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted((DOCS / "methods").glob("*.md"))


def script(name):
    """Import a script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its NamedTuples look for their module
    spec.loader.exec_module(module)
    return module


method_options = script("method_options")
text_of = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
by_page = pytest.mark.parametrize("name", text_of)


def slug(title):
    """Return GitHub's anchor of a title."""
    title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower()
    return re.sub(r"[^\w\- ]", "", title).replace(" ", "-")


def anchors_of(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {slug(title) for title in titles} | set(re.findall(r'<a id="([^"]+)"', text))


def commands_of(text):
    """Return the words of each lit-offrl command in the blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].split() for line in lines if line.startswith("lit-offrl ")]


# ---- the tables -------------------------------------------------------------------------------


def test_every_method_has_its_tables_on_one_page():
    marks = re.findall(r"<!-- options of (\w+) -->", "".join(text_of.values()))
    methods = [kind.__name__ for kind in kinds_of(lit_offrl.modules.OfflineModule)]
    ours = [name for name in methods if name in lit_offrl.modules.__all__]
    assert sorted(marks) == sorted({*ours})


@by_page
def test_options_of_a_page_are_those_of_its_classes(name):
    assert text_of[name] == method_options.renewed(text_of[name]), (
        "an option has changed: run python docs/method_options.py"
    )


class Base:
    """A base of many.

    Args:
        rate: Rate of a | b.
        sizes: Widths.
    """

    def __init__(self, rate: Annotated[float, "(0, inf)"] = 0.5, sizes: list[int] = (1, 2)):
        pass

    def policy(self, number: Annotated[int | None, "[1, inf)"] = None, loud: bool = False):
        """Act.

        Args:
            number: Number of samples.
            loud: Whether it is loud.
        """

    @classmethod
    def policy_options(cls):
        return {"number": int | None, "loud": bool}


class Method(Base):
    """A method.

    Args:
        how: How ``one`` acts.
        **kwargs: Options of ``Base``.
    """

    def __init__(self, how: Literal["one", "two"] | None = None, *, name: str, **kwargs):
        super().__init__(**kwargs)


def test_tables_have_names_intervals_defaults_and_meanings():
    assert method_options.tables(Method).splitlines() == [
        "Options of `Method`, set as `--model.init_args.NAME VALUE`:",
        "",
        "| Option | Type | Default | Meaning |",
        "| --- | --- | --- | --- |",
        "| `how` | `one`, `two`, or `null` | `null` | How `one` acts. |",
        "| `name` | `str` | required |  |",
        "",
        "From `Base` (a base of many):",
        "",
        "| Option | Type | Default | Meaning |",
        "| --- | --- | --- | --- |",
        "| `rate` | `float` in (0, ∞) | `0.5` | Rate of a \\| b. |",
        "| `sizes` | list of `int` | `[1, 2]` | Widths. |",
        "",
        "When a checkpoint acts, `lit-offrl evaluate` also takes `--policy.NAME VALUE`:",
        "",
        "| Option | Type | Default | Meaning |",
        "| --- | --- | --- | --- |",
        "| `number` | `int` in [1, ∞) | as trained | Number of samples. |",
        "| `loud` | `true`, `false` | `false` | Whether it is loud. |",
    ]


def test_renewed_tables_replace_what_was_between_the_marks():
    page = "# IQL\n<!-- options of IQLModule -->\nstale\n<!-- end of options -->\nrest\n"
    made = method_options.renewed(page)
    assert "stale" not in made and "| `beta` | `float` in [0, ∞) | `3.0` |" in made
    assert made.startswith("# IQL\n") and made.endswith("\nrest\n")
    assert method_options.renewed(made) == made


# ---- what a page names ------------------------------------------------------------------------


@by_page
def test_commands_of_a_page_name_verbs_configs_and_options_that_exist(name):
    configs = set(config_names())
    kinds = re.findall(r"<!-- options of (\w+) -->", text_of[name])
    tables = "".join(method_options.tables(getattr(lit_offrl.modules, kind)) for kind in kinds)
    known = set(re.findall(r"^\| `(\w+)`", tables, re.MULTILINE))
    commands = commands_of(text_of[name])
    assert commands or name == "index"
    for words in commands:
        assert words[1] in (*COMMANDS, *TRAINER_VERBS), words
        for word, value in zip(words, [*words[1:], ""], strict=True):
            if word == "--config":
                assert value in configs, f"{value} of {' '.join(words)}"
            prefix, _, option = word.rpartition(".")
            if prefix in ("--model.init_args", "--policy"):
                assert option in known, f"{word} of {' '.join(words)}"


@by_page
def test_links_of_a_page_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of[name]):
        if target.startswith("https://"):
            assert re.match(r"https://arxiv\.org/abs/\d{4}\.\d{5}$", target), target
            continue
        path, _, anchor = target.partition("#")
        page = (DOCS / "methods" / path).resolve() if path else DOCS / "methods" / f"{name}.md"
        assert page.is_file() and page.is_relative_to(DOCS.resolve()), target
        if anchor:
            assert anchor in anchors_of(page), target


@by_page
def test_scores_of_a_page_stand_in_the_results(name):
    section = re.search(r"\n## Measured\n(.*?)\n## ", text_of[name], re.DOTALL)
    if section is None:
        assert name == "index"
        return
    pages = [*(DOCS / "results").glob("*.md"), DOCS / "online.md"]
    results = "".join(page.read_text(encoding="utf-8") for page in pages)
    scores = re.findall(r"−?\d+\.\d+", section[1])
    assert scores or "Not measured" in section[1]
    missing = [score for score in scores if not re.search(rf"(?<![\d.−]){score}(?!\d)", results)]
    assert not missing, f"in no results page: {missing}"


def test_index_leads_to_every_page():
    linked = re.findall(r"\]\((\w+)\.md\)", text_of["index"])
    assert {*linked, "index"} == set(text_of)


@by_page
def test_page_has_a_small_picture_with_words_for_who_does_not_see_it(name):
    pictures = re.findall(r"!\[([^]]*)\]\((\S+\.svg)\)", text_of[name])
    assert pictures
    for said, path in pictures:
        assert len(said.split()) > 5
        assert (DOCS / "methods" / path).stat().st_size < 100_000


def test_every_picture_is_drawn_by_the_script_and_shown():
    drawn = set(script("method_pictures").PICTURES)
    shown = set(re.findall(r"images/methods/(\w+)\.svg", "".join(text_of.values())))
    assert drawn == shown == {path.stem for path in (DOCS / "images" / "methods").glob("*.svg")}
