"""A browser as a device: a page that runs onnxruntime-web, in a Chromium of this machine or on a phone.

    browser        a Chromium of this machine, without a window; where there is none, whoever opens the address
    browser:open   whoever opens the address on this machine (loopback)
    browser:lan    whoever opens the address in this network, a phone say: the QR code holds it

The rule: a launch is a fresh page load, in a fresh profile where the Chromium is ours. A page tells nothing of the
processor below it, so no browser judges a target.
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeexport.devices.browser import chromium
from edgeexport.devices.browser.desk import Desk
from edgeexport.devices.browser.jobs import Prepared, finish, prepare
from edgeexport.devices.browser.package import INSTALL, SERVED, installed, missing
from edgeexport.devices.browser.server import PageServer
from edgeexport.devices.protocol import NO_FILES, PROTOCOL, Device
from edgeexport.errors import CorruptFile, DeviceError, MachineError, RequestError
from edgeexport.records.browser import PageFacts
from edgeexport.records.device import DeviceFacts, Reachability
from edgeexport.records.target import Target

LOOPBACK = "127.0.0.1"
WAYS = ("", "open", "lan")
DESCRIBE_SECONDS = 120.0
# Seconds that a page is waited for, and after the last job, until the server stops by itself.
PAIR_SECONDS, IDLE_SECONDS = 300.0, 120.0
HERE = Path(__file__).parent
REASONS = {
    "energy": {"energy": {"reason": "not measured: a browser shows no energy counter"}},
    "profile": {"profile": {"reason": "onnxruntime-web gives no times of single operators here"}},
}


class Browser:
    """One browser. Its server starts with the first job, and stops when it has had none for two minutes."""

    def __init__(self, way: str = "") -> None:
        """way: one of `WAYS`."""
        self.name = f"browser:{way}" if way else "browser"
        self._program = "" if way else chromium.found()
        self._address = _lan_address() if way == "lan" else LOOPBACK
        self._root = installed()
        self._desk = Desk()
        self._server: PageServer | None = None
        self._boot = ""
        self._facts: PageFacts | None = None
        self._idle: threading.Timer | None = None
        self._closing: weakref.finalize[..., Any] | None = None

    def describe(self, runtime: str = "") -> DeviceFacts:
        """Return what the browser is; see `Device.describe`. What it lacks stands in `cpu`."""
        del runtime
        if self._facts is None:
            self.run({"mode": "describe"}, timeout=DESCRIBE_SECONDS)
        assert self._facts is not None
        return described(self.name, self._facts)

    def run(
        self,
        job: Mapping[str, Any],
        *,
        files: Mapping[str, Path] = NO_FILES,
        timeout: float,
        outputs_to: Path | None = None,
    ) -> dict[str, Any]:
        """Run one job in a fresh load of the page; see `Device.run`. Energy and profiles have reasons, no numbers."""
        mode = str(job.get("mode"))
        if mode in REASONS:
            return {**REASONS[mode], "protocol": PROTOCOL, "mode": mode}
        prepared = prepare(job, files, device=self.name)
        if self._idle is not None:
            self._idle.cancel()
        server = self._serve()
        try:
            self._show(server, prepared, timeout=timeout)
        finally:
            self._desk.put(None)
            self._rest()
        answer = finish(prepared, device=self.name, outputs_to=outputs_to, boot_id=self._boot)
        self._facts = prepared.work.answer.facts if prepared.work.answer else None
        about = msgspec.to_builtins(described(self.name, self._facts)) if mode == "describe" and self._facts else {}
        return {**about, **answer, "protocol": PROTOCOL, "mode": mode, "bench_digest": page_digest()}

    def can_judge(self, target: Target) -> tuple[bool, str]:
        """Return that a browser judges no target: wasm is not the target's native runtime."""
        return False, f"{self.name} runs wasm in a page, {target.name} its runtime on the processor itself"

    def close(self) -> None:
        """Stop the server; a later job starts another."""
        if self._idle is not None:
            self._idle.cancel()
        if self._closing is not None:
            self._closing()
        self._server = None

    def _serve(self) -> PageServer:
        if self._server is None:
            pages = {"/": HERE / "page.html", "/page.js": HERE / "page.js"}
            pages |= {f"/ort/{name}": self._root / name for name in SERVED}
            try:
                self._server = PageServer(self._address, pages=pages, desk=self._desk)
            except OSError as error:
                raise MachineError(f"{self.name}: cannot listen on {self._address}: {error}") from error
            self._desk.invite()
            self._boot = uuid.uuid4().hex
            self._closing = weakref.finalize(self, self._server.close)
        return self._server

    def _rest(self) -> None:
        self._idle = threading.Timer(IDLE_SECONDS, self.close)
        self._idle.daemon = True
        self._idle.start()

    def _show(self, server: PageServer, prepared: Prepared, *, timeout: float) -> None:
        """Give the job to a page and wait for its answer."""
        if self._program:
            url = f"http://{self._address}:{server.port}/?token={self._desk.invite()}"
            self._desk.put(prepared.work)
            with chromium.showing(url, self._program) as process:
                self._wait(prepared, timeout=timeout, gone=lambda: process.poll() is not None)
            return
        if not self._desk.paired():
            self._invite(server)
        self._desk.put(prepared.work)
        self._wait(prepared, timeout=timeout, gone=lambda: False)

    def _invite(self, server: PageServer) -> None:
        """Show where the page is, and wait until somebody opens it."""
        url = f"http://{self._address}:{server.port}/?token={self._desk.invite()}"
        sys.stderr.write(f"{self.name}: open {url}\n{qr_code(url)}waiting for up to {PAIR_SECONDS:g} s\n")
        sys.stderr.flush()
        end = time.monotonic() + PAIR_SECONDS
        while not self._desk.paired():
            if time.monotonic() > end:
                raise DeviceError(f"{self.name}: nobody opened the page within {PAIR_SECONDS:g} s")
            time.sleep(0.1)

    def _wait(self, prepared: Prepared, *, timeout: float, gone: Callable[[], bool]) -> None:
        end = time.monotonic() + timeout
        while not self._desk.wait(prepared.work, seconds=0.5):
            if gone():
                raise DeviceError(f"{self.name}: the browser ended in the middle of a {prepared.mode!r} job")
            if time.monotonic() > end:
                raise DeviceError(f"{self.name}: no answer to a {prepared.mode!r} job within {timeout:g} s")


def connect(reference: str) -> Device:
    """Return `browser`, `browser:open` or `browser:lan`. Raises RequestError; MachineError without onnxruntime-web."""
    way = reference.partition(":")[2]
    if way not in WAYS or reference == "browser:":
        raise RequestError(f"no browser {reference!r}", next_step="known: browser, browser:open, browser:lan")
    return Browser(way)


def available() -> tuple[Reachability, ...]:
    """Return whether a browser can be asked: onnxruntime-web is installed, and a Chromium is here or may be opened."""
    reason = missing()
    if not reason:
        try:
            installed()
        except CorruptFile as error:
            reason = str(error)
    if reason:
        return (Reachability("browser", reachable=False, reason=f"{reason}; run `{INSTALL}`"),)
    program = chromium.found()
    told = f"{program}, without a window" if program else "no Chromium on PATH: whoever opens the address it shows"
    return (
        Reachability("browser", reachable=True, reason=f"{told}; wasm"),
        Reachability("browser:lan", reachable=True, reason="a phone that opens the address it shows as a QR code"),
    )


def described(name: str, facts: PageFacts) -> DeviceFacts:
    """Return a page's facts as those of a machine: what it can do as features, what it lacks after its name."""
    can = {
        "simd": facts.simd,
        "threads": facts.threads,
        "cross-origin-isolated": facts.isolated,
        "webgpu": facts.webgpu,
    }
    lacks = [feature for feature, there in can.items() if not there]
    lacking = f" without {', '.join(lacks)}" if lacks else ""
    return DeviceFacts(
        device=name,
        arch="wasm32",
        cpu=f"{facts.agent}{lacking}; clock of {facts.resolution_ms * 1000:.3g} us",
        features=tuple(feature for feature, there in can.items() if there),
        cores=facts.cores,
        os="browser",
        kernel="",
        python="",
        runtime_version=f"{facts.version} (web)",
        bench_digest=page_digest(),
        product=facts.agent,
    )


def page_digest() -> str:
    """Return the digest of the page, which is the device program here."""
    content = (HERE / "page.html").read_bytes() + (HERE / "page.js").read_bytes()
    return "sha256:" + hashlib.sha256(content).hexdigest()


def qr_code(url: str) -> str:
    """Return an address as a QR code of text. Raises MissingExtra without the extra `web`."""
    import io

    from edgeexport.errors import MissingExtra

    try:
        import segno
    except ImportError as error:
        raise MissingExtra("segno", extra="web", purpose="showing an address as a QR code") from error
    text = io.StringIO()
    segno.make(url, micro=False).terminal(out=text, compact=True)
    return text.getvalue()


def _lan_address() -> str:
    """This machine's address in its network: where the default route starts. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError as error:
            raise MachineError(f"browser:lan: this machine is in no network: {error}") from error
