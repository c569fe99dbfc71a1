"""onnxruntime-web on this disk: fetched from the npm registry, recorded with digests, checked before it is served.

The rule: nothing of the package runs here, neither its install scripts nor its code: it is unpacked, and the browser
gets the files of `SERVED` only, each with the digest that was recorded when it was installed.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tarfile
import uuid
from pathlib import Path

from edgeexport.devices.home import home
from edgeexport.errors import CorruptFile, MachineError
from edgeexport.progress import Progress, silent
from edgeexport.records.base import file_digest, from_json, to_json
from edgeexport.records.browser import InstalledWeb
from edgeexport.workspace import publish, usable, version_of

PACKAGE = "onnxruntime-web"
SERVED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
MANIFEST = "manifest.json"
INSTALL = "edgeexport devices install browser"
SECONDS = 600.0
LARGEST_BYTES = 256 << 20


def folder() -> Path:
    """Return where onnxruntime-web is, or would be."""
    return home() / "browser"


def wanted() -> str:
    """Return what npm is asked for: the newest release that is not newer than the minor of onnxruntime here."""
    found = re.match(r"(\d+)\.(\d+)", version_of("onnxruntime"))
    return f"{PACKAGE}@<={found[1]}.{found[2]}" if found else f"{PACKAGE}@latest"


def missing() -> str:
    """Return why there is no installation that fits this version, or nothing. Digests are not checked."""
    if not (folder() / MANIFEST).is_file():
        return f"{PACKAGE} is not installed in {folder()}"
    made_for = manifest().wanted
    return "" if made_for == wanted() else f"{folder()} holds {made_for}, {wanted()} is needed"


def manifest() -> InstalledWeb:
    """Read the record of the installation. Raises CorruptFile."""
    path = folder() / MANIFEST
    return from_json(path.read_bytes(), InstalledWeb, origin=str(path))


def installed() -> Path:
    """Return the folder of an installation that is intact. Raises MachineError, CorruptFile."""
    reason = missing()
    if reason:
        raise MachineError(f"browser: {reason}", next_step=INSTALL)
    _check(folder())
    return folder()


def install(*, again: bool = False, progress: Progress = silent) -> Path:
    """Fetch and unpack onnxruntime-web; at once when it is there. Raises MachineError, CorruptFile."""
    if not again and not missing():
        return installed()
    usable(home())
    private = home() / f".browser-{uuid.uuid4().hex[:8]}"
    try:
        private.mkdir()
        progress(f"fetch {wanted()}", 0.0)
        package = _fetch(private)
        progress("unpack it", 0.8)
        version = _unpack(package, private)
        files = {name: file_digest(private / name) for name in SERVED}
        record = InstalledWeb(wanted(), version, {package.name: file_digest(package)}, files)
        package.unlink()
        publish(private / MANIFEST, to_json(record))
        _replace(folder(), private)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    _check.cache_clear()
    return folder()


def _fetch(private: Path) -> Path:
    """Let npm download the tarball, whose integrity it checks; it runs nothing of it."""
    words = ["npm", "pack", wanted(), "--ignore-scripts", "--silent", "--pack-destination", str(private)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=private)
    except FileNotFoundError as error:
        raise MachineError(
            f"fetching {PACKAGE} needs the program 'npm', which is not here", next_step="install Node.js with npm"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"fetching {PACKAGE} took more than {SECONDS:g} s", next_step="try again") from error
    packages = sorted(private.glob("*.tgz"))
    if done.returncode != 0 or len(packages) != 1:
        said = "\n  ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-6:])
        raise MachineError(f"npm pack {wanted()} failed (exit {done.returncode}):\n  {said}", next_step="read above")
    return packages[0]


def _unpack(package: Path, private: Path) -> str:
    """Take the served files, and nothing else, out of the tarball; return its version. Raises CorruptFile."""
    inside = {f"package/dist/{name}": name for name in SERVED}
    try:
        with tarfile.open(package, "r:gz") as archive:
            wanted_entries = [entry for entry in archive if entry.name in inside and entry.isreg()]
            for entry in wanted_entries:
                stream = archive.extractfile(entry)
                (private / inside[entry.name]).write_bytes(stream.read(LARGEST_BYTES) if stream else b"")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CorruptFile(f"{package.name}: cannot be unpacked: {error}") from error
    absent = [name for name in SERVED if not (private / name).is_file()]
    found = re.fullmatch(rf"{PACKAGE}-(\d+\.\d+\.\d+\S*)\.tgz", package.name)
    if absent or found is None:
        raise CorruptFile(f"{package.name} lacks {', '.join(absent) or 'a version in its name'}")
    return found[1]


def _replace(place: Path, private: Path) -> None:
    """Put a new installation where an old one may be."""
    old = place.with_name(f".browser-{uuid.uuid4().hex[:8]}")
    if place.exists():
        place.rename(old)
    Path(private).rename(place)
    shutil.rmtree(old, ignore_errors=True)


@functools.cache
def _check(root: Path) -> None:
    for name, expected in manifest().files.items():
        path = root / name
        actual = file_digest(path) if path.is_file() else "no such file"
        if actual != expected:
            raise CorruptFile(
                f"{path} is not what was installed: expected {expected}, found {actual}",
                next_step=f"{INSTALL} --again",
            )
