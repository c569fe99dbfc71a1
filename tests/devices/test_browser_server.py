"""The page's server against strangers: without the cookie not one byte, and alive afterwards."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeexport.devices.browser import HERE
from edgeexport.devices.browser import server as serving
from edgeexport.devices.browser.desk import Desk, Work
from edgeexport.devices.browser.server import LARGEST_JSON, PageServer
from tests.devices.phone import Phone

SECRET = b"the weights that nobody else may see"
FILE = "a" * 22


@dataclass
class Desktop:
    desk: Desk
    server: PageServer

    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/?token={self.desk.invite()}"

    def raw(self, text: str, body: bytes = b"") -> bytes:
        """What the server sends for bytes as they are; HOST stands for its host."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as connection:
            host = f"127.0.0.1:{self.server.port}"
            connection.sendall(text.replace("HOST", host).replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received


@pytest.fixture
def desktop() -> Iterator[Desktop]:
    desk = Desk()
    served = PageServer("127.0.0.1", pages={"/": HERE / "page.html", "/page.js": HERE / "page.js"}, desk=desk)
    yield Desktop(desk, served)
    served.close()


@pytest.fixture
def phone(desktop: Desktop) -> Phone:
    """Paired, with a job that it has taken."""
    paired = Phone(desktop.url())
    desktop.desk.put(Work({"mode": "describe"}, {FILE: SECRET}))
    assert paired.job()["mode"] == "describe"
    return paired


PATHS = (
    "/", "/page.js", "/job", f"/file/{FILE}", "/answer", "/../page.js", "/..%2f..%2fetc/passwd", "/%2e%2e/page.js",
    "/file/../page.js", "/file/..%2f..%2fpage.js", "//etc/passwd", "/page.js%00", "/?token=", "/?token=wrong",
    f"/?token={'a' * 22}", "/?token=%00", "/?token[]=x", "http://127.0.0.1/page.js", "/page.js?token=", "*",
)  # fmt: skip
COOKIES = ("", "Cookie: edgeexport-PORT=wrong\n", "Cookie: edgeexport-PORT=\n")


def _bare(reply: bytes) -> bool:
    """Whether a reply refuses, and has no body."""
    head, _, body = reply.partition(b"\r\n\r\n")
    return not body and SECRET not in head and b"Set-Cookie" not in head and b" 200 " not in head.splitlines()[0]


@pytest.mark.parametrize("cookie", COOKIES)
@pytest.mark.parametrize("path", PATHS)
def test_a_stranger_gets_no_byte(desktop: Desktop, phone: Phone, path: str, cookie: str) -> None:
    given = cookie.replace("PORT", str(desktop.server.port)).rstrip("\n")
    head = f"GET {path} HTTP/1.1\nHost: HOST" + (f"\n{given}" if given else "")
    assert _bare(desktop.raw(head))
    assert phone.ask("GET", "/page.js")[0].status == 200


@pytest.mark.parametrize(
    "headers",
    [
        "Host: evil.example",
        "Host: evil.example:80",
        "Host: 127.0.0.1",
        "Host: HOST.evil.example",
        "Host: HOST\nHost: evil.example",
        "Accept: */*",
        "Host: HOST\nOrigin: http://evil.example",
        "Host: HOST\nOrigin: null",
        "Host: HOST\nOrigin: https://HOST",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PUT", "HEAD", "TRACE"])
def test_another_host_or_origin_gets_nothing_even_with_the_cookie(
    desktop: Desktop, phone: Phone, headers: str, method: str
) -> None:
    reply = desktop.raw(f"{method} /page.js HTTP/1.1\n{headers}\nCookie: {phone.cookie}\nContent-Length: 0")
    assert _bare(reply)
    assert b"Access-Control" not in reply


def test_a_token_works_once_and_a_new_one_ends_the_session_before(desktop: Desktop) -> None:
    url = desktop.url()
    first = Phone(url)
    assert (first.status, Phone(url).status, Phone(url).cookie) == (200, 403, "")
    second = Phone(desktop.url())
    assert second.ask("GET", "/")[0].status == 200
    assert first.ask("GET", "/")[0].status == 403
    stale = desktop.url()
    desktop.desk.invite()
    assert Phone(stale).status == 403


def test_a_page_is_isolated_and_runs_no_script_but_its_own(desktop: Desktop) -> None:
    reply, content = Phone(desktop.url()).ask("GET", "/")
    assert reply.getheader("Cross-Origin-Opener-Policy") == "same-origin"
    assert reply.getheader("Cross-Origin-Embedder-Policy") == "require-corp"
    assert "'unsafe-inline'" not in str(reply.getheader("Content-Security-Policy"))
    assert reply.getheader("Access-Control-Allow-Origin") is None
    assert content == (HERE / "page.html").read_bytes()
    assert "innerHTML" not in (HERE / "page.js").read_text()


def test_posts_need_their_type_their_length_and_the_limit(desktop: Desktop, phone: Phone) -> None:
    assert phone.post({}, kind="text/plain") == 415
    assert phone.post({}, kind="application/x-www-form-urlencoded") == 415
    assert phone.ask("POST", "/page.js", b"{}", Content_Type="application/json")[0].status == 404
    head = f"POST /answer HTTP/1.1\nHost: HOST\nCookie: {phone.cookie}\nContent-Type: application/json"
    assert b" 413 " in desktop.raw(f"{head}\nContent-Length: {LARGEST_JSON + 1}")
    assert b" 411 " in desktop.raw(f"{head}\nContent-Length: -1")
    assert b" 411 " in desktop.raw(f"{head}\nContent-Length: 1\nTransfer-Encoding: chunked")
    assert desktop.raw(f"{head}\nContent-Length: 100", b"{}") == b""
    assert phone.ask("GET", "/")[0].status == 200


FORGED: tuple[Any, ...] = (
    b"", b"null", b"[]", b"{", b"\xff", b"[" * 100000, {}, {"job": 7}, {"job": "JOB", "device": "local"},
    {"job": "JOB", "facts": {}}, {"job": "JOB", "facts": Phone.facts(cores=0)},
    {"job": "JOB", "facts": Phone.facts(agent="\x1b[2J\n")}, {"job": "JOB", "facts": Phone.facts(agent="x" * 1000)},
    {"job": "JOB", "load_ms": -1}, {"job": "JOB", "load_ms": 1e300}, {"job": "JOB", "digest": "sha256:<script>"},
    {"job": "JOB", "outputs": [[{"name": "y", "blob": 0, "dtype": "object", "shape": [1]}]]},
    {"job": "JOB", "outputs": [[{"name": "y", "blob": 0, "dtype": "int8", "shape": [-1]}]]},
    {"job": "JOB", "error": {"kind": "<b>", "message": ""}}, {"job": "JOB", "sentinel_before_ns": [0]},
)  # fmt: skip


def test_a_forged_answer_is_refused_and_the_true_one_still_counts(desktop: Desktop, phone: Phone) -> None:
    work = desktop.desk._work
    assert work is not None
    for forged in FORGED:
        placed = {**forged, "job": work.id} if isinstance(forged, dict) and forged.get("job") == "JOB" else forged
        assert phone.post(placed) in {411, 422}, forged
    assert phone.post({"job": "b" * 22, "facts": Phone.facts()}) == 409
    assert work.answer is None
    true = {"job": work.id, "facts": Phone.facts()}
    assert [phone.post(true), phone.post(true)] == [204, 409]
    desktop.desk.put(Work({"mode": "describe"}, {}))
    assert phone.post(true) == 409


def test_a_job_is_taken_once_and_its_files_go_with_it(desktop: Desktop, phone: Phone) -> None:
    assert phone.ask("GET", f"/file/{FILE}")[1] == SECRET
    assert phone.ask("GET", "/file/bbb")[0].status == 404
    work = desktop.desk._work
    assert work is not None
    blob = f"/blob/{work.id}/0"
    assert phone.ask("POST", blob, b"1", Content_Type="application/octet-stream")[0].status == 204
    assert phone.ask("POST", blob, b"2", Content_Type="application/octet-stream")[0].status == 409
    assert work.blobs == {0: b"1"}
    assert phone.post({"job": work.id, "facts": Phone.facts()}) == 204
    assert phone.ask("GET", f"/file/{FILE}")[0].status == 404


def test_slow_clients_are_cut_and_keep_nobody_out(
    desktop: Desktop, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "STRANGER_SECONDS", 1.0)
    slow = [socket.create_connection(("127.0.0.1", desktop.server.port), timeout=10) for _ in range(20)]
    for connection in slow:
        connection.sendall(b"GET / HTTP/1.1\r\nHost:")
    assert phone.ask("GET", "/page.js")[0].status == 200
    end = time.monotonic() + 10
    for connection in slow:
        while time.monotonic() < end:
            try:
                connection.sendall(b"x")
                time.sleep(0.02)
            except OSError:
                break
        connection.close()
    assert time.monotonic() < end
    assert phone.ask("GET", "/page.js")[0].status == 200


def _status(served: PageServer) -> int:
    late = http.client.HTTPConnection("127.0.0.1", served.port, timeout=5)
    late.request("GET", "/")
    return late.getresponse().status


def test_more_connections_than_there_is_room_for_are_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(serving, "STRANGER_SECONDS", 1.0)
    served = PageServer("127.0.0.1", pages={"/": HERE / "page.html"}, desk=Desk())
    held = [socket.create_connection(("127.0.0.1", served.port), timeout=5) for _ in range(2)]
    time.sleep(0.3)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        _status(served)
    for connection in held:
        assert connection.recv(10) == b""
    time.sleep(0.2)
    assert _status(served) == 403
    served.close()
