"""The desk between the server's threads and the one who waits: pairing, the one job of the moment, its one answer.

The rule: a pairing token works once and ends the session before it; a job is taken once, answered once, and only by
the session that took it. What comes late or twice is refused and changes nothing.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any

from edgeexport.records.browser import PageAnswer

LARGEST_BLOBS = 512 << 20


@dataclass
class Work:
    """One job on its way: what the page is told, the bytes it may fetch by id, and what it has sent."""

    told: Mapping[str, Any]
    files: Mapping[str, bytes]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    session: str = ""
    blobs: dict[int, bytes] = field(default_factory=dict)
    answer: PageAnswer | None = None


class Desk:
    """All state that requests share, behind one lock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._token = ""
        self._session = ""
        self._work: Work | None = None
        self._asked = 0

    def invite(self) -> str:
        """Return a new 128-bit pairing token; what was paired before is paired no more."""
        with self._changed:
            self._token, self._session = secrets.token_urlsafe(16), ""
            return self._token

    def pair(self, token: str) -> str:
        """Return the session that a token opens, or nothing; the token is used up."""
        with self._changed:
            if not self._token or not _same(token, self._token):
                return ""
            self._token, self._session = "", secrets.token_urlsafe(16)
            self._changed.notify_all()
            return self._session

    def knows(self, session: str) -> bool:
        """Return whether this is the session that is paired now."""
        with self._changed:
            return bool(self._session) and _same(session, self._session)

    def paired(self) -> bool:
        """Return whether somebody is paired."""
        with self._changed:
            return bool(self._session)

    def put(self, work: Work | None) -> None:
        """Lay a job down, or take away what lies there."""
        with self._changed:
            self._work = work
            self._changed.notify_all()

    def take(self, session: str, *, seconds: float) -> Work | None:
        """Wait for a job that nobody has taken, and take it. Who asked last gets it: older pages are gone."""

        def ready() -> bool:
            return mine != self._asked or (self._work is not None and not self._work.session)

        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            self._changed.wait_for(ready, seconds)
            free = self._work is not None and not self._work.session
            if mine != self._asked or not free or self._work is None or session != self._session:
                return None
            self._work.session = session
            return self._work

    def file(self, session: str, name: str) -> bytes | None:
        """Return a file of the job that the session took, by its unguessable id."""
        with self._changed:
            work = self._taken(session)
            return None if work is None else work.files.get(name)

    def keep(self, session: str, *, job: str, number: int, content: bytes) -> bool:
        """Keep the bytes of an output; False when there is no such job, or they were sent already, or are too many."""
        with self._changed:
            work = self._taken(session, job)
            if work is None or number in work.blobs:
                return False
            if sum(map(len, work.blobs.values())) + len(content) > LARGEST_BLOBS:
                return False
            work.blobs[number] = content
            return True

    def answer(self, session: str, answer: PageAnswer) -> bool:
        """Accept the answer to the job that the session took; False for any other, and for a second one."""
        with self._changed:
            work = self._taken(session, answer.job)
            if work is None:
                return False
            work.answer = answer
            self._changed.notify_all()
            return True

    def wait(self, work: Work, *, seconds: float) -> bool:
        """Wait until a job is answered; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: work.answer is not None, seconds)

    def _taken(self, session: str, job: str | None = None) -> Work | None:
        work = self._work
        if work is None or work.answer is not None or not work.session or not _same(session, work.session):
            return None
        return work if job is None or _same(job, work.id) else None


def _same(one: str, other: str) -> bool:
    """Compare secrets in constant time."""
    return compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))
