"""The server of the page: a few fixed routes of the standard library's HTTP server, for one paired browser.

The rule: without the session's cookie there is not one byte of content, and the cookie is given for a token that works
once. Requests for another host name are refused (DNS rebinding), so are those of other origins; nothing is looked up
by path, bodies have limits, and a connection that is not authorised in time is closed.

http.server rather than a framework: eight routes, one client, no dependency where the network comes in.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

import msgspec

from edgeexport.devices.browser.desk import LARGEST_BLOBS, Desk
from edgeexport.records.browser import PageAnswer

LARGEST_JSON = 4 << 20
STRANGER_SECONDS, SILENT_SECONDS, POLL_SECONDS = 5.0, 30.0, 20.0
MOST_CONNECTIONS = 64
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "connect-src 'self'; img-src data:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}
BLOB = re.compile(r"/blob/([\w-]{22})/(\d{1,6})")


class PageServer(http.server.ThreadingHTTPServer):
    """Serves `pages` (path -> file) and the desk's job on one address until it is closed."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, address: str, *, pages: Mapping[str, Path], desk: Desk) -> None:
        """address: the only one it listens on. Raises OSError."""
        self.desk = desk
        self.pages = {path: (TYPES[file.suffix], file.read_bytes()) for path, file in pages.items()}
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((address, 0), _PageRequest)
        self.port = int(self.server_address[1])
        names = {address, "localhost"} if address == "127.0.0.1" else {address}
        self.hosts = frozenset(f"{name}:{self.port}" for name in names)
        self.cookie = f"edgeexport-{self.port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, unless there are too many already."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()


class _PageRequest(http.server.BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so that each has a connection of its own."""

    server: PageServer
    timeout = SILENT_SECONDS

    def setup(self) -> None:
        super().setup()
        self._deadline = threading.Timer(STRANGER_SECONDS, _cut, (self.connection,))
        self._deadline.daemon = True
        self._deadline.start()

    def finish(self) -> None:
        self._deadline.cancel()
        with contextlib.suppress(OSError):
            super().finish()

    def version_string(self) -> str:
        return "edgeexport"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the overridden parameter
        """Say nothing: what clients send is no text for a terminal."""

    def send_error(self, code: int, *_: Any, **__: Any) -> None:
        """Answer with a status and no body."""
        self._reply(code)

    def do_GET(self) -> None:
        """The page for a token or a session; all else for a session only."""
        path, _, query = self.path.partition("?")
        session = self._session()
        if not self._welcome():
            self._reply(HTTPStatus.FORBIDDEN)
        elif path == "/" and query:
            self._pair(query)
        elif not session:
            self._reply(HTTPStatus.FORBIDDEN)
        elif query:
            self._reply(HTTPStatus.NOT_FOUND)
        elif path == "/job":
            self._job(session)
        elif path in self.server.pages:
            kind, content = self.server.pages[path]
            self._reply(HTTPStatus.OK, content, kind=kind)
        else:
            found = self.server.desk.file(session, path.removeprefix("/file/")) if path.startswith("/file/") else None
            self._reply(HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND, found or b"")

    def do_POST(self) -> None:
        """An answer, or the bytes of an output."""
        session = self._session()
        if not self._welcome() or not session:
            self._reply(HTTPStatus.FORBIDDEN)
            return
        blob = BLOB.fullmatch(self.path)
        if blob is None and self.path != "/answer":
            self._reply(HTTPStatus.NOT_FOUND)
        elif self.headers.get("Content-Type", "") != ("application/octet-stream" if blob else "application/json"):
            self._reply(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        else:
            self._receive(session, blob)

    def _receive(self, session: str, blob: re.Match[str] | None) -> None:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length) or "Transfer-Encoding" in self.headers:
            self._reply(HTTPStatus.LENGTH_REQUIRED)
            return
        if int(length) > (LARGEST_BLOBS if blob else LARGEST_JSON):
            self._reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        content = self.rfile.read(int(length))
        if len(content) != int(length):
            return
        if blob:
            kept = self.server.desk.keep(session, job=blob[1], number=int(blob[2]), content=content)
            self._reply(HTTPStatus.NO_CONTENT if kept else HTTPStatus.CONFLICT)
            return
        try:
            answer = msgspec.json.decode(content, type=PageAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._reply(HTTPStatus.UNPROCESSABLE_ENTITY)
            return
        self._reply(HTTPStatus.NO_CONTENT if self.server.desk.answer(session, answer) else HTTPStatus.CONFLICT)

    def _pair(self, query: str) -> None:
        token = urllib.parse.parse_qs(query).get("token", [""])[0]
        session = self.server.desk.pair(token)
        if not session:
            self._reply(HTTPStatus.FORBIDDEN)
            return
        kind, content = self.server.pages["/"]
        cookie = f"{self.server.cookie}={session}; HttpOnly; SameSite=Strict; Path=/"
        self._reply(HTTPStatus.OK, content, kind=kind, cookie=cookie)

    def _job(self, session: str) -> None:
        work = self.server.desk.take(session, seconds=POLL_SECONDS)
        if work is None:
            self._reply(HTTPStatus.NO_CONTENT)
            return
        self._reply(HTTPStatus.OK, json.dumps({**work.told, "job": work.id}).encode(), kind="application/json")

    def _welcome(self) -> bool:
        """Whether the request was meant for this host, and comes from this page or from no page at all."""
        hosts = self.headers.get_all("Host") or []
        origin = self.headers.get("Origin")
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            return False
        return origin is None or origin == f"http://{hosts[0]}"

    def _session(self) -> str:
        """The session of the cookie if it is the paired one; then the connection is no stranger's any more."""
        try:
            morsel = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return ""
        if morsel is None or not self.server.desk.knows(morsel.value):
            return ""
        self._deadline.cancel()
        return morsel.value

    def _reply(
        self, status: int, content: bytes = b"", *, kind: str = "application/octet-stream", cookie: str = ""
    ) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(content)


def _cut(connection: socket.socket) -> None:
    """End a connection under whatever reads from it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
