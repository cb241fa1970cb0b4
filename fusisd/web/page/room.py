"""The routes of the status page, and what they share: one drawing for all who look, and nothing drawn while nobody does.

An edition is what was published at one moment; it lasts a second, and each part of it that is asked for is drawn once, on
the worker of who asked first. While one worker makes the next edition the others answer with the last. The entity tag is
of what is drawn, so that a page that would look the same is not sent again.
Does not: draw (document.py).
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bottle import HTTPResponse, request

from fusisd.errors import Unavailable
from fusisd.ports import Core
from fusisd.web.encoding import takes_gzip
from fusisd.web.page.document import Drawn, document, main_part
from fusisd.web.page.services import Asked
from fusisd.web.page.standing import overview
from fusisd.web.page.trends import Trends

PERIOD_S = 0.9  # less than the second after which a page asks again
FIRST_LIMIT_S = 2.0
EVENTS = 25
KEPT = 32  # parts of an edition; who asks for more at a time has them drawn each time
LONGEST = 64  # of what is searched for

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = ("status.css", "status.js", "status-well.svg", "status-attention.svg", "status-down.svg")
_GZIP = 16 + zlib.MAX_WBITS
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


class Sent(NamedTuple):
    """A body both ways, and its entity tag."""

    plain: bytes
    packed: bytes
    etag: str
    status: int = 200

    @classmethod
    def of(cls, plain: bytes, what: bytes, status: int = 200) -> Sent:
        """With the tag of `what`, the part in which a difference counts."""
        packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
        return cls(plain, packer.compress(plain) + packer.flush(), f'W/"{_digest(what)}"', status)


@dataclass(frozen=True, slots=True)
class Edition:
    """What was published at one moment, and the parts of it that were drawn."""

    at_s: float
    drawn: Drawn
    parts: dict[Asked, Sent] = field(default_factory=dict)


class StatusPage:
    """The routes of this room over one core."""

    def __init__(self, core: Core, clock: Callable[[], float], wall_clock: Callable[[], float] = time.time) -> None:
        """`clock` is the one that the snapshots' times are of; `wall_clock` seconds since 1970."""
        self._core, self._clock, self._wall_clock = core, clock, wall_clock
        self._host = socket.gethostname()
        self._trends = Trends()
        self._making = threading.Lock()
        self._edition: Edition | None = None
        contents = {name: Path(__file__).with_name(name).read_bytes() for name in _FILES}
        self._files = {name: Sent.of(content, content) for name, content in contents.items()}
        self._version = _digest(b"".join(contents.values()))[:8]

    def routes(self) -> list[tuple[str, str, Callable[..., object]]]:
        """Method, path and handler of each route."""
        files: Iterator[tuple[str, str, Callable[..., object]]]
        files = (("GET", f"/{name}", partial(_answer, sent, _type(name))) for name, sent in self._files.items())
        return [("GET", "/", self.page), *files]

    def page(self) -> object:
        """The page, or the part of it that is asked for."""
        asked = _asked()
        edition = self._latest(asked)
        return _answer(edition.parts.get(asked) or self._draw(edition, asked), _type("html"))

    def _latest(self, asked: Asked) -> Edition:
        """An edition of this second, or the last one while another worker makes it."""
        last = self._edition
        if last is not None and self._clock() - last.at_s < PERIOD_S:
            return last
        if not self._making.acquire(timeout=FIRST_LIMIT_S if last is None else 0):
            if last is None:
                raise Unavailable("fusisd is busy; ask again")
            return last
        try:
            edition = self._edition if self._edition is not last else None
            if edition is None:
                edition = self._make()
                self._draw(edition, asked)  # before the others see it, so that they find it drawn
                self._edition = edition
            return edition
        finally:
            self._making.release()

    def _make(self) -> Edition:
        snapshot, reading, now_s = self._core.snapshot(), self._core.statistics(), self._clock()
        found = overview(snapshot, reading, now_s)
        self._trends.note(reading, [row.view.key for row in found.services])
        return Edition(now_s, Drawn(found, reading, self._trends.past, self._host, now_s))

    def _draw(self, edition: Edition, asked: Asked) -> Sent:
        events = self._core.events.last(EVENTS, lambda event: asked.service in ("", event.service))
        main = main_part(edition.drawn, events, asked)
        time_of_day = datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%H:%M:%S")
        whole = document(main, edition.drawn, asked, self._version, time_of_day)
        known = not asked.service or any(row.view.name == asked.service for row in edition.drawn.overview.services)
        sent = Sent.of(_encoded(whole), _encoded(main), 200 if known else 404)
        if len(edition.parts) < KEPT:
            edition.parts[asked] = sent
        return sent


def _asked() -> Asked:
    """What the query asks for; what it cannot mean is passed over."""
    page = str(request.query.get("page", ""))
    number = int(page) if page.isascii() and page.isdigit() and len(page) < 6 else 1
    text, service = (str(request.query.getunicode(name, ""))[:LONGEST] for name in ("q", "service"))
    return Asked(text, service, max(1, number))


def _answer(sent: Sent, content_type: str) -> HTTPResponse:
    """The body as the client takes it, or 304 when it has that already."""
    environ = request.environ
    headers = {**_HEADERS, "ETag": sent.etag}
    if sent.status == 200 and sent.etag in str(environ.get("HTTP_IF_NONE_MATCH", "")):
        return HTTPResponse(b"", 304, headers=headers)
    headers["Content-Type"] = content_type
    if takes_gzip(environ):
        return HTTPResponse(sent.packed, sent.status, headers={**headers, "Content-Encoding": "gzip"})
    return HTTPResponse(sent.plain, sent.status, headers=headers)


def _type(name: str) -> str:
    return f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a tag that was no UTF-8 may have come in


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=9).hexdigest()
