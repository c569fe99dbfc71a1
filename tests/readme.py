"""What the README says, in a form that can be checked; `python -m tests.readme --write` renews its table of targets."""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from edgeexport.records.base import from_table
from edgeexport.records.recipe import Recipe
from edgeexport.records.target import Target, load_target, target_names
from tests.needs import ROOT

README = ROOT / "README.md"
BEGIN = "<!-- targets: written by `python -m tests.readme --write` -->"
END = "<!-- end of targets -->"


def table() -> str:
    """The table of targets, one row for each file in `targets/`."""
    head = ["| target | what it is | runtime | file | int8 | threads |", "|---|---|---|---|---|---|"]
    return "\n".join(head + [_row(load_target(name)) for name in target_names()])


def _row(target: Target) -> str:
    numbers = target.numbers()
    scheme = {"uint8": "U8S8", "int8": "S8S8"}[numbers.activations] + (", fitted pairs" if numbers.fit_pairs else "")
    cells = (f"`{target.name}`", target.title, target.runtime, f".{target.format}", scheme, str(target.threads))
    return f"| {' | '.join(cells)} |"


def renewed(text: str) -> str:
    """The README with its table of targets as it is now. Raises ValueError when the markers are not there, in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README has no {BEGIN!r} followed by {END!r}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def blocks(text: str, language: str) -> list[str]:
    """The contents of all fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Every command in the shell blocks, without comments."""
    lines = (line.partition("#")[0].strip() for block in blocks(text, "sh") for line in block.splitlines())
    return [line for line in lines if line]


def unaccounted(found: Iterable[str], *known: Iterable[str]) -> list[str]:
    """Commands that are neither run nor named as not run, and such names that the README does not have."""
    wanted, named = set(found), {name for names in known for name in names}
    return [f"not run and not excused: {name}" for name in sorted(wanted - named)] + [
        f"not in the README: {name}" for name in sorted(named - wanted)
    ]


def undocumented(group: click.Group, text: str) -> Iterator[str]:
    """Verbs that the README does not show, and options that neither it nor their own --help explains."""
    for name, command in [("", group), *sorted(group.commands.items())]:
        if name and f"`{group.name} {name}`" not in text:
            yield f"{name}: not in the README"
        if not command.help:
            yield f"{name}: no help"
        for option in command.params:
            said = isinstance(option, click.Option) and option.help
            shown = any(flag in text for flag in option.opts)
            if isinstance(option, click.Option) and not said and not shown:
                yield f"{name} {option.opts[0]}: neither in the README nor explained by --help"


def parsed(block: str) -> Recipe | Target:
    """A TOML block as the recipe or target that it is. Raises RecipeError."""
    values = tomllib.loads(block)
    if "model" in values:
        return from_table(values, Recipe, origin="README")
    return from_table({"name": "readme", **values}, Target, origin="README")


def main() -> int:
    """Compare the table with the README, or write it; 1 when it differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.readme")
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing")
    old = README.read_text(encoding="utf-8")
    new = renewed(old)
    if parser.parse_args().write:
        Path(README).write_text(new, encoding="utf-8")
        return 0
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
