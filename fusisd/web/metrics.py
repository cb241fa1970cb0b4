"""`/metrics` for Prometheus: the controller's own, then services and destinations.

The text of the table is kept until there is another snapshot or reading, so that two who scrape share it. Packed for who
takes gzip, as Prometheus does: it is repetitive, and large.
Does not: know a metric (families.py and collector.py do).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from bottle import HTTPResponse, request

from fusisd.errors import Unavailable
from fusisd.ports import Core, Reading, ServiceView
from fusisd.web import families
from fusisd.web.encoding import takes_gzip
from fusisd.web.requests import Requests

if TYPE_CHECKING:
    from fusisd.web.collector import Controller

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_GZIP = 16 + zlib.MAX_WBITS


class _Written(NamedTuple):
    """The table's text, and what it was made of."""

    services: tuple[ServiceView, ...]
    reading: Reading
    text: bytes


class Metrics:
    """The route of this room over one core."""

    def __init__(self, core: Core, requests: Requests, clock: Callable[[], float]) -> None:
        """`clock` is the one that the snapshots' times are of."""
        self._core, self._requests, self._clock = core, requests, clock
        self._controller: Controller | None = None
        self._written: _Written | None = None

    def routes(self) -> list[tuple[str, str, Callable[..., object]]]:
        """Method, path and handler of each route."""
        return [("GET", "/metrics", self.metrics)]

    def metrics(self) -> object:
        """All metrics in the exposition format."""
        table = self._table()
        body, headers = self._own().text() + table, {"Content-Type": TEXT_TYPE, "Vary": "Accept-Encoding"}
        if takes_gzip(request.environ):
            packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
            body, headers = packer.compress(body) + packer.flush(), {**headers, "Content-Encoding": "gzip"}
        return HTTPResponse(body, 200, headers=headers)

    def _table(self) -> bytes:
        snapshot, reading, known = self._core.snapshot(), self._core.statistics(), self._written
        if known is None or known.services is not snapshot.services or known.reading is not reading:
            text = families.exposition(snapshot, reading).encode("utf-8", "backslashreplace")
            self._written = known = _Written(snapshot.services, reading, text)
        return known.text

    def _own(self) -> Controller:
        if self._controller is None:
            try:
                from fusisd.web.collector import Controller
            except ModuleNotFoundError as error:
                if error.name != "prometheus_client":
                    raise
                raise Unavailable("the package prometheus-client is missing: pip install 'pyipvs[fusisd]'") from None
            self._controller = Controller(self._core, self._requests, self._clock)
        return self._controller
