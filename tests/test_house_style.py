"""The house numbers hold over everything that ships, and each rule rejects a specimen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import pytest

from tests import house_style
from tests.house_style import Source
from tests.needs import ROOT

SHIPPED = house_style.read(ROOT, "edgeexport", "device_bench")
TESTS = house_style.read(ROOT, "tests")
DEF = '"""M."""\n\n\ndef f() -> None:\n    """D."""\n'

# rule: (a specimen that it must reject, its nearest neighbour that it must accept)
SPECIMENS = {
    house_style.long_functions: (DEF + "    x = 1\n" * 60, DEF + "    x = 1\n" * 59),
    house_style.long_files: ("x = 1\n" * 401, "x = 1\n" * 400),
    house_style.many_parameters: ("def f(a, b, c): ...\n", "class A:\n    def f(self, a, b, *, c, d, e, g): ...\n"),
    house_style.deep_nesting: (
        "def f():\n for a in b:\n  if a:\n   with c:\n    try: pass\n    finally: pass\n",
        "def f():\n for a in b:\n  with c:\n   if a: pass\n   elif b: pass\n   elif c: pass\n",
    ),
    house_style.missing_annotations: ("def f(a: int, *, b) -> int: ...\n", "def f(a: int, *, b: int) -> int: ...\n"),
    house_style.missing_docstrings: (
        '"""M."""\n\n\nclass A:\n    """D."""\n\n    def f(self): ...\n',
        '"""M."""\n\n\nclass A:\n    """D."""\n\n    def _f(self): ...\n',
    ),
    house_style.broad_excepts: ("try: x\nexcept (OSError, Exception): y\n", "try: x\nexcept OSError: y\n"),
    house_style.prints: ("print(1)\n", "file.print(1)\n"),
    house_style.vague_names: ("class CacheManager: ...\n", "class Cache: ...\n"),
}

Rule = Callable[[Source], Iterator[str]]


@pytest.mark.parametrize("rule", house_style.RULES, ids=lambda rule: rule.__name__)
def test_the_code_that_ships_keeps_the_rule(rule: Rule) -> None:
    complaints = [complaint for source in SHIPPED for complaint in rule(source)]
    assert not complaints, "\n".join(complaints)


def test_the_median_function_is_short() -> None:
    lengths = [house_style.length(function) for source in SHIPPED for function in house_style.functions(source.tree)]
    assert statistics.median(lengths) <= house_style.MEDIAN_FUNCTION


@pytest.mark.parametrize("rule", [house_style.long_files, house_style.broad_excepts], ids=lambda rule: rule.__name__)
def test_the_tests_keep_the_rules_that_concern_them(rule: Rule) -> None:
    complaints = [complaint for source in TESTS for complaint in rule(source)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("rule", house_style.RULES, ids=lambda rule: rule.__name__)
def test_each_rule_rejects_its_specimen_and_accepts_the_neighbour(rule: Rule) -> None:
    bad, good = SPECIMENS[rule]
    assert list(rule(Source("edgeexport/specimen.py", bad)))
    assert not list(rule(Source("edgeexport/specimen.py", good)))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (house_style.many_parameters, "def f(*, a, b, c, d, e, g, h): ...\n"),
        (house_style.missing_docstrings, "x = 1\n"),
        (house_style.missing_annotations, "def f(*a) -> None: ...\n"),
        (house_style.broad_excepts, "try: x\nexcept: y\n"),
        (house_style.broad_excepts, "try: x\nexcept OSError: pass\n"),
    ],
)
def test_rules_have_no_back_door(rule: Rule, text: str) -> None:
    assert list(rule(Source("edgeexport/specimen.py", text)))


def test_the_error_boundary_and_the_device_program_have_their_exceptions() -> None:
    assert not list(house_style.broad_excepts(Source("edgeexport/cli.py", "try: x\nexcept Exception: y\n")))
    assert not list(house_style.prints(Source("device_bench/bench.py", "print(1)\n")))


def test_a_docstring_does_not_count_as_code() -> None:
    tree = Source("x.py", 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n').tree
    assert [house_style.length(function) for function in house_style.functions(tree)] == [2]
