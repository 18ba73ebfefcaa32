"""Writes the tables of options in docs/methods/*.md from the classes of the methods.

Names, types, intervals and defaults are those of the constructors and of ``policy()``, meanings
those of their docstrings. A page marks where a class's tables go:

    <!-- options of IQLModule -->
    <!-- end of options -->

Run it after an option has changed; a test compares the pages with the classes.

    python docs/method_options.py
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse
from jsonargparse import ArgumentParser

import lit_offrl.modules
from lit_offrl.cli.help import OF_DATA, owner_of
from lit_offrl.common.signatures import hints_of, parameters_of
from lit_offrl.modules.diffusion_actor import Drawing
from lit_offrl.modules.ldcq.options import GoalOptions, PlanOptions, SkillOptions

PAGES = Path(__file__).parent / "methods"
_WAYS = {way.__name__: way for way in (Drawing, SkillOptions, GoalOptions, PlanOptions)}
_MARKED = re.compile(
    r"(<!-- options of (?P<kind>\w+) -->\n).*?(<!-- end of options -->)", re.DOTALL
)


class Option(NamedTuple):
    """A row of a table."""

    name: str
    kind: str
    default: str
    meaning: str


def options_of(kind: type) -> dict[type, list[Option]]:
    """Return the options of a method by the class that states them, its own first.

    Those that follow from the data and from ``seed_everything`` are left out, as in ``--help``.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False)
    helps = {action.dest: action.help or "" for action in parser._actions}
    hints, found = hints_of(kind), {kind: list[Option]()}
    for name, parameter in parameters_of(kind).items():
        if name not in OF_DATA:
            default = "required" if parameter.default is parameter.empty else value(parameter)
            option = Option(name, in_words(hints[name]), default, helps[name])
            found.setdefault(owner_of(kind, name), []).append(option)
    return {owner: options for owner, options in found.items() if options}


def acting_options_of(kind: Any) -> list[Option]:
    """Return the options of a method's policy, by which a checkpoint acts without new training.

    Raises:
        KeyError: No docstring explains one.
    """
    said, own = meanings_of(kind.policy), inspect.signature(kind.policy).parameters
    forwards = " ".join(meaning for name, meaning in said.items() if name.startswith("**"))
    ways = [_WAYS[name] for name in re.findall(r"``(\w+)``", forwards) if name in _WAYS]
    bases = [base for way in ways for base in way.__mro__]
    hints = get_type_hints(kind.policy, include_extras=True)
    for base in bases:
        said = meanings_of(base) | said
        hints = get_type_hints(base, include_extras=True) | hints
    helps = {each.name: each.meaning for group in options_of(kind).values() for each in group}
    found = []
    for name in kind.policy_options():
        if name in own:
            default, trained = own[name].default, "if None" not in said[name]
        else:
            default = next(getattr(way, name) for way in ways if hasattr(way, name))
            trained = re.search(r"\bas (trained|in training)", forwards) is not None
        as_trained = trained and (default is None or name not in own)
        shown = "as trained" if as_trained else f"`{written(default)}`"
        kind_of = in_words(hints[name]).removesuffix(", or `null`" if as_trained else "")
        # the policy's words or those of training's option of that name, whichever say more
        meaning = max(said[name], helps.get(name, ""), key=len)
        if as_trained:
            meaning = re.sub(r",\s+or\s+``null``\s+for[^.;]+", "", meaning)
        found.append(Option(name, kind_of, shown, meaning))
    return found


def meanings_of(documented: Any) -> dict[str, str]:
    """Return what a docstring says of each parameter, ``**`` ones with their stars."""
    params = parse(inspect.getdoc(documented) or "").params
    return {param.arg_name: param.description or "" for param in params}


def in_words(hint: Any) -> str:
    """Return what an option may be, such as "``int`` in [1, ∞), or ``null``"."""
    interval = "".join(f" in {each}" for each in getattr(hint, "__metadata__", ()))
    if interval:
        hint = get_args(hint)[0]
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        parts = [in_words(each) for each in inner if each is not type(None)]
        if interval:
            parts = [part + _infinite(interval) for part in parts]
        return ", or ".join([*parts, *["`null`"] * (type(None) in inner)])
    if origin is Literal:
        return ", ".join(f"`{written(each)}`" for each in inner)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "a mapping"
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return f"list of {in_words(inner[0])}"
    if hint is bool:
        return "`true`, `false`"
    name = hint.__name__ if inspect.isclass(hint) else "any"
    return f"`{name}`{_infinite(interval)}"


def _infinite(interval: str) -> str:
    return interval.replace("-inf", "−∞").replace("inf", "∞")


def value(parameter: inspect.Parameter) -> str:
    """Return a parameter's default as a config has it."""
    return f"`{written(parameter.default)}`"


def written(default: Any) -> str:
    """Return a value as a config has it."""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(written, default))}]"
    return str(default)


def table(options: Iterable[Option]) -> str:
    """Return a Markdown table of options."""
    rows = ["| Option | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for option in options:
        meaning = " ".join(option.meaning.replace("``", "`").split())
        meaning = meaning.replace("`Snippets`", "[`Snippets`](../api/views.md)")
        cells = (f"`{option.name}`", option.kind, option.default, meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def tables(kind: Any) -> str:
    """Return all tables of a method's options, with a line above each."""
    parts = []
    for owner, options in options_of(kind).items():
        first = (inspect.getdoc(owner) or "").partition("\n")[0].rstrip(".").replace("``", "`")
        title = f"Options of `{kind.__name__}`" if owner is kind else f"From `{owner.__name__}`"
        if not first[1:2].isupper():  # not an acronym, such as that of TD3+BC
            first = f"{first[0].lower()}{first[1:]}"
        said = "" if owner is kind else f" ({first})"
        where = ", set as `--model.init_args.NAME VALUE`:" if owner is kind else ":"
        parts.append(f"{title}{said}{where}\n\n{table(options)}\n")
    if acting := acting_options_of(kind):
        above = "When a checkpoint acts, `lit-offrl evaluate` also takes `--policy.NAME VALUE`:"
        parts.append(f"{above}\n\n{table(acting)}\n")
    return "\n".join(parts)


def renewed(page: str) -> str:
    """Return a page with the tables of today's classes between its marks."""
    return _MARKED.sub(
        lambda found: (
            f"{found[1]}\n{tables(getattr(lit_offrl.modules, found['kind']))}\n{found[3]}"
        ),
        page,
    )


if __name__ == "__main__":
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
