"""A phone's browser, pretended: it pairs, takes a job and answers as the page does, or otherwise on purpose."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any


class Phone:
    """A client with the cookie that the address's token gave it."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.host = parts.netloc
        self.cookie = ""
        reply, _ = self.ask("GET", f"/?{parts.query}")
        self.status = reply.status
        self.cookie = (reply.getheader("Set-Cookie") or "").partition(";")[0]

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        """One request; headers with `_` for `-`."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        cookie = {"Cookie": self.cookie} if self.cookie else {}
        connection.request(method, path, body or None, {**cookie, **named})
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return reply, content

    def job(self) -> dict[str, Any]:
        """Wait for a job."""
        reply, content = self.ask("GET", "/job")
        assert reply.status == 200, reply.status
        told: dict[str, Any] = json.loads(content)
        return told

    def answer(self, **fields: Any) -> int:
        """Take a job and answer it; return the status."""
        return self.post({"job": self.job()["job"], **fields})

    def post(self, answer: Any, kind: str = "application/json") -> int:
        """Send an answer; return the status."""
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return self.ask("POST", "/answer", body, Content_Type=kind)[0].status

    @staticmethod
    def facts(**changes: Any) -> dict[str, Any]:
        """What a page tells of itself."""
        plain = {
            "agent": "A phone", "cores": 8, "secure": False, "isolated": True, "simd": True, "threads": True,
            "webgpu": False, "resolution_ms": 0.1, "version": "1.30.0",
        }  # fmt: skip
        return {**plain, **changes}
