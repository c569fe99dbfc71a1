"""Build the emulated machines: Debian's arm64 Python and qemu-user, the runtimes' aarch64 wheels, the counting plugin.

The rule: the system stays untouched and no root is needed: apt works on a state of its own, packages are unpacked into
a private folder, and the whole appears under its name by one rename. What was downloaded before an interruption is
used again after it, checked by apt and pip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from edgeexport.devices.guest import root as layout
from edgeexport.devices.guest.machine import command, environment
from edgeexport.devices.guest.presets import PRESETS
from edgeexport.devices.home import home
from edgeexport.errors import MachineError
from edgeexport.progress import Progress, silent
from edgeexport.records.base import file_digest, to_json
from edgeexport.records.emulation import Installed
from edgeexport.workspace import publish, usable

SECONDS = 600.0
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in (34, 28, 27, 17)), "manylinux2014_aarch64")
DEBIAN = "they are Debian 12's: run it there, or in a container of it"
EMULATORS = ("qemu-aarch64", "qemu-x86_64")


def install(*, again: bool = False, progress: Progress = silent) -> Path:
    """Build the emulated machines and return their folder; at once when an intact installation is there.

    again: build anew all the same. Raises MachineError naming the program, the package or the network that is missing.
    """
    place = layout.folder()
    if not again and not layout.missing():
        return layout.installed()
    usable(home())
    private = home() / f".emulated-{uuid.uuid4().hex[:8]}"
    downloads = home() / "downloads"
    try:
        _build(private, downloads, progress=progress)
        _replace(place, private)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    shutil.rmtree(downloads, ignore_errors=True)
    return place


def _build(private: Path, downloads: Path, *, progress: Progress) -> None:
    host = _output("dpkg", "--print-architecture", purpose="telling this machine's architecture").strip()
    progress("download arm64 packages and the emulator", 0.0)
    debs = _debs(downloads / "debs", host)
    progress("unpack them", 0.2)
    for package in debs:
        _unpack(package, private, host=host)
    _keep_emulators(private / "qemu")
    progress("download aarch64 wheels of the runtimes", 0.3)
    wheels = _wheels(downloads / "site", layout.requirements(), to=private / "site")
    progress("download tflite-runtime of old boards", 0.6)
    wheels += _wheels(downloads / "legacy", layout.LEGACY, to=private / "legacy")
    progress("compile", 0.7)
    _compile_python(private)
    counts_missing = _compile_plugin(private)
    for preset in PRESETS.values():
        _prefix(private / "prefixes" / preset.name, preset.cpuinfo(), arm=preset.arch == "aarch64")
    progress("try it", 0.9)
    _try(private)
    packages = {path.name: file_digest(path) for path in sorted([*debs, *wheels])}
    record = Installed(layout.recipe(), packages, layout.contents(private), counts_missing)
    publish(private / layout.MANIFEST, to_json(record))


def _debs(folder: Path, host: str) -> list[Path]:
    """Let apt download, with lists of its own, what must be unpacked."""
    state = folder.parent / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": "arm64", "Dir::State": state, "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status", "Dir::Cache": state / "cache", "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
    }  # fmt: skip
    words = [f"-o{key}={value}" for key, value in settings.items()]
    words += [f"-oAPT::Architectures::={name}" for name in dict.fromkeys(("arm64", host))]
    _output("apt-get", *words, "-q", "update", purpose="reading Debian's lists of arm64 packages")
    wanted = [*(f"{name}:arm64" for name in layout.ARM_PACKAGES), *(f"{name}:{host}" for name in layout.HOST_PACKAGES)]
    for old in folder.iterdir():
        if old.suffix != ".deb":
            old.unlink()
    _output("apt-get", *words, "-q", "download", *wanted, purpose="downloading packages", within=folder, hint=DEBIAN)
    return sorted(folder.glob("*.deb"))


def _unpack(package: Path, private: Path, *, host: str) -> None:
    """Unpack a package for the guest, for the emulator, or (on an arm64 machine) for both."""
    name, arch = package.stem.split("_")[0], package.stem.split("_")[-1]
    parts = (("root", "arm64", layout.ARM_PACKAGES), ("qemu", host, layout.HOST_PACKAGES))
    for part in [part for part, wanted, names in parts if arch == wanted and name in names]:
        (private / part).mkdir(parents=True, exist_ok=True)
        _output("dpkg-deb", "-x", package, private / part, purpose=f"unpacking {package.name}")


def _keep_emulators(qemu: Path) -> None:
    """Remove the emulators of machines that are not among the presets."""
    for program in (qemu / "usr" / "bin").iterdir():
        if program.name not in EMULATORS:
            program.unlink()
    shutil.rmtree(qemu / "usr" / "share", ignore_errors=True)


def _wheels(folder: Path, wanted: Sequence[str], *, to: Path) -> list[Path]:
    """Let pip download wheels for the guest, and unpack them without what only their authors' tests need."""
    tags = ["--only-binary=:all:", "--no-deps", "--python-version", layout.PYTHON, "--implementation", "cp"]
    tags += [word for abi in ("cp311", "abi3", "none") for word in ("--abi", abi)]
    tags += [word for name in PLATFORMS for word in ("--platform", name)]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    folder.mkdir(parents=True, exist_ok=True)
    _output(*pip, "download", "--quiet", *tags, "--dest", folder, *wanted, purpose=f"downloading {wanted[0]}")
    wheels = sorted(folder.glob("*.whl"))
    target = ("install", "--quiet", "--no-index", "--no-compile", "--target", to)
    _output(*pip, *target, *tags, *wheels, purpose="unpacking wheels")
    for tests in sorted(to.rglob("tests")):
        shutil.rmtree(tests, ignore_errors=True)
    return wheels


def _compile_python(private: Path) -> None:
    """Compile the guest's Python files where this Python writes the same byte code: imports then take half as long."""
    if sys.version_info[:2] != tuple(map(int, layout.PYTHON.split("."))):
        return
    folders = [private / "site", private / "legacy", private / "root" / "usr" / "lib" / f"python{layout.PYTHON}"]
    words = ("-m", "compileall", "-q", "-j", "2", "--invalidation-mode", "unchecked-hash")
    # Packages ship files of other Pythons and templates, which do not compile: exit 1 says no more than that.
    places = ("-s", str(private), "-p", "/", *map(str, folders))
    _ended([sys.executable, *words, *places], purpose="compiling the guest's Python files")


def _compile_plugin(private: Path) -> str:
    """Compile the counting plugin; return why not, or nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return "no C compiler (cc, gcc) was there at installation"
    source = Path(layout.__file__).parent / "count.c"
    words = ("-shared", "-fPIC", "-O2", "-o", str(private / layout.PLUGIN), str(source))
    done = _ended([compiler, *words], purpose="compiling the counting plugin")
    return "" if done.returncode == 0 else f"the counting plugin did not compile: {done.stderr.strip()[-300:]}"


def _prefix(folder: Path, cpuinfo: str, *, arm: bool) -> None:
    """Make what the guest sees in front of this machine's files: its own libraries, and a fitting /proc/cpuinfo."""
    (folder / "proc").mkdir(parents=True)
    (folder / "proc" / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    for name in ("usr", "lib") if arm else ():
        (folder / name).symlink_to(Path("..", "..", "root", name))


def _try(private: Path) -> None:
    for site, module in (("site", "onnxruntime"), ("site", "ai_edge_litert"), ("legacy", "tflite_runtime")):
        words = command(private, PRESETS["armv8.0"])
        surroundings = environment(private, site=site, threads=1)
        tried = (*words, "-c", f"import numpy, {module}")
        _output(*tried, purpose=f"importing {module} on an emulated Cortex-A53", surroundings=surroundings)


def _replace(place: Path, private: Path) -> None:
    """Put a new installation where an old one may be; a process that runs in the old one keeps its open files."""
    old = place.with_name(f".emulated-{uuid.uuid4().hex[:8]}")
    if place.exists():
        place.rename(old)
    private.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _output(
    program: str | Path,
    *words: str | Path,
    purpose: str,
    within: Path | None = None,
    hint: str = "",
    surroundings: dict[str, str] | None = None,
) -> str:
    """Run a program and return its stdout. Raises MachineError with the end of what it said."""
    # A user's constraints are for this machine's environment, not for the guest's.
    env = surroundings if surroundings is not None else {**os.environ, "PIP_CONSTRAINT": os.devnull}
    try:
        done = _ended([str(program), *map(str, words)], purpose=purpose, within=within, env=env)
    except FileNotFoundError as error:
        raise MachineError(f"{purpose} needs the program {program!r}, which is not here", next_step=DEBIAN) from error
    if done.returncode != 0:
        said = "\n  ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-6:])
        step = hint or "read the reason above; without a network there is nothing to download from"
        raise MachineError(f"{purpose} failed (exit {done.returncode}):\n  {said}", next_step=step)
    return str(done.stdout)


def _ended(
    words: Sequence[str], *, purpose: str, within: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever its exit code. Raises MachineError when it takes too long."""
    try:
        return subprocess.run(
            words, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS, cwd=within, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{purpose} took more than {SECONDS:g} s and was ended", next_step="try again") from error
