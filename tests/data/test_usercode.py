from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from edgeexport.data import resolve_reference, source_files
from edgeexport.errors import RecipeError, RequestError


def write(folder: Path, **modules: str) -> None:
    for name, text in modules.items():
        path = folder / (name.replace("__slash__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))


def test_modules_of_the_folder_import_each_other_at_the_top_and_late(tmp_path: Path) -> None:
    write(tmp_path, a="import b\ndef f():\n    from pack.c import value\n    return b.one + value\n", b="one = 1\n")
    write(tmp_path, pack__slash____init__="from . import c\n", pack__slash__c="import b\nvalue = b.one + 40\n")
    assert resolve_reference("a:f", tmp_path)() == 42


def test_a_user_module_hides_nobody_elses(tmp_path: Path) -> None:
    write(tmp_path, json="value = 'mine'\n", use="import json\nimport string\nname = json.value + string.digits\n")
    before, names = list(sys.path), {name for name in sys.modules if not name.startswith("_edgeexport_user_")}
    assert resolve_reference("use:name", tmp_path) == "mine0123456789"
    assert sys.path == before
    assert {name for name in sys.modules if not name.startswith("_edgeexport_user_")} - names <= {"string"}
    assert hasattr(sys.modules["json"], "dumps")


def test_two_folders_with_the_same_module_name_keep_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, models=f"name = {name!r}\n")
    assert [resolve_reference("models:name", tmp_path / name) for name in ("one", "two")] == ["one", "two"]


def test_an_edited_module_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, m="value = 1\n")
    assert resolve_reference("m:value", tmp_path) == 1
    write(tmp_path, m="value = 1000\n")
    assert resolve_reference("m:value", tmp_path) == 1000


def test_references_share_one_module(tmp_path: Path) -> None:
    write(tmp_path, a="class A: pass\ndef make(): return A()\n", b="from a import A\n")
    assert isinstance(resolve_reference("a:make", tmp_path)(), resolve_reference("b:A", tmp_path))


def test_dataclasses_with_string_annotations_work(tmp_path: Path) -> None:
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    write(tmp_path, d=head + "@dataclass\nclass D:\n    x: int = 3\n")
    assert resolve_reference("d:D", tmp_path)().x == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n\nboom = 1 / 0\n", "m.py:3: ZeroDivisionError"),
        ("def f(:\n", "m.py:1: SyntaxError"),
        ("import no_such_package_here\n", "m.py:1: ModuleNotFoundError"),
        ("from . import nothing\n", "m.py:1: ImportError"),
    ],
)
def test_code_errors_name_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path, m=text)
    with pytest.raises(RequestError, match=expected):
        resolve_reference("m:f", tmp_path)


def test_a_module_that_failed_is_run_again_not_found_half_done(tmp_path: Path) -> None:
    write(tmp_path, m="half = 1\nraise ValueError('no')\n")
    for _ in range(2):
        with pytest.raises(RequestError, match="no"):
            resolve_reference("m:half", tmp_path)


@pytest.mark.parametrize(
    ("reference", "message", "step"),
    [
        ("model:f", "no module 'model'", "did you mean `models`"),
        ("models:resnet57", "no `resnet57`", "did you mean `resnet56`"),
        ("just text", "not a reference", "module:function"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path, reference: str, message: str, step: str) -> None:
    write(tmp_path, models="def resnet56(): pass\n")
    with pytest.raises(RecipeError, match=message) as caught:
        resolve_reference(reference, tmp_path)
    assert step in caught.value.next_step


def test_source_files_follow_imports_without_running_them(tmp_path: Path) -> None:
    write(tmp_path, a="import numpy\nfrom b import x\nraise SystemExit\n", b="from pack import c\n", unused="x = 1\n")
    write(tmp_path, pack__slash____init__="", pack__slash__c="from .d import y\n", pack__slash__d="y = 1\n")
    names = [path.relative_to(tmp_path).as_posix() for path in source_files("a:f", tmp_path)]
    assert names == ["a.py", "b.py", "pack/__init__.py", "pack/c.py", "pack/d.py"]


def test_source_files_of_a_missing_module_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no module 'a'"):
        source_files("a:f", tmp_path)


def test_source_files_of_broken_code_name_the_line(tmp_path: Path) -> None:
    write(tmp_path, a="def f(:\n")
    with pytest.raises(RequestError, match=r"a\.py:1: SyntaxError"):
        source_files("a:f", tmp_path)
