"""The wheel holds exactly the tree, and its light core works outside the clone without torch or onnx."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.needs import ROOT

pytestmark = pytest.mark.slow

FOLDERS = {  # in the clone: in the wheel
    "edgeexport": "edgeexport",
    "targets": "edgeexport/targets",
    "calibration": "edgeexport/calibration",
    "device_bench": "edgeexport/device_bench",
}
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def _run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree: a build leaves folders behind that would enter the next one."""
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=SKIPPED)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", ".", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that holds the wheel and what it declares, nothing else."""
    home = tmp_path_factory.mktemp("light")
    _run(sys.executable, "-m", "venv", "venv", cwd=home)
    programs = home / "venv" / "bin"
    pins = ROOT / ".ci" / "constraints.txt"
    _run(programs / "python", "-m", "pip", "install", "--quiet", "-c", pins, wheel, cwd=home)
    return programs


def _tree() -> set[str]:
    return {
        f"{inside}/{path.relative_to(ROOT / folder)}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".") and path.suffix != ".md"
    }


def test_the_wheel_holds_exactly_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tree = _tree()
    assert names == tree, f"missing: {sorted(tree - names)}; extra: {sorted(names - tree)}"


def test_the_wheel_carries_its_licence_its_readme_and_one_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {name.split(".dist-info/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(info["METADATA"]).decode()
        commands = archive.read(info["entry_points.txt"]).decode()
        licence = archive.read(info["licenses/LICENSE"]).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() in metadata
    assert "Apache License" in licence
    assert commands.split() == ["[console_scripts]", "edgeexport", "=", "edgeexport.cli:main"]


def test_only_one_name_enters_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgeexport"}


def test_the_light_core_has_no_heavy_package(light: Path) -> None:
    packages = _run(light / "python", "-m", "pip", "list", "--format", "freeze", cwd=light)
    names = {line.split("==")[0].lower() for line in packages.splitlines()}
    assert not names & {"torch", "onnx", "onnxruntime", "onnxscript", "ai-edge-litert", "pillow", "scipy"}


def test_help_works_outside_the_clone(light: Path, tmp_path: Path) -> None:
    assert "Usage: edgeexport" in _run(light / "edgeexport", "--help", cwd=tmp_path)


def test_targets_are_found_outside_the_clone(light: Path, tmp_path: Path) -> None:
    shown = _run(light / "edgeexport", "targets", cwd=tmp_path)
    for path in (ROOT / "targets").glob("*.toml"):
        assert path.stem in shown


def test_every_module_imports_in_the_light_core(light: Path, tmp_path: Path) -> None:
    """Heavy packages are imported inside functions. Three folders are loaded so: `demo` holds a recipe's own code,
    loaded like a user's, and what lies in `graph/lifting` and `quantization/qat` makes torch modules."""
    modules = sorted(
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in (ROOT / "edgeexport").rglob("*.py")
        if path.name != "__main__.py" and "demo" not in path.parts and path.parent.name not in {"lifting", "qat"}
    )
    script = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    _run(light / "python", "-c", script, cwd=tmp_path)


@pytest.mark.parametrize(
    "name", ["edgeexport.graph", "edgeexport.graph.lifting", "edgeexport.quantization.qat", "edgeexport.demo"]
)
def test_a_room_that_holds_torch_code_does_not_load_it(name: str, tmp_path: Path) -> None:
    script = f"import sys, {name}; assert not {{'torch', 'onnx', 'onnxruntime'}} & set(sys.modules)"
    _run(sys.executable, "-c", script, cwd=tmp_path)
