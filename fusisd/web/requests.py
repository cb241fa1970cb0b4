"""Which requests were answered how, and how long it took. Bottle's hooks around every request.

Methods that nobody has and paths without a route are one label each, so that no client makes series.
Does not: log, or see what the server refused before it called the application.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from bottle import Bottle, request, response

from fusisd.counts import Histogram

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_BEGAN = "fusis.began_s"


class Requests:
    """Counts on every worker's thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic seconds."""
        self._clock, self._lock = clock, threading.Lock()
        self._answered: Counter[tuple[str, str, int]] = Counter()
        self.seconds = Histogram()

    def watch(self, app: Bottle) -> None:
        """Count what this application answers from now on."""
        app.add_hook("before_request", self._begun)
        app.add_hook("after_request", self._ended)

    def answered(self) -> dict[tuple[str, str, int], int]:
        """How many, by method, route (`/services/<name>`, "" for none) and status code."""
        with self._lock:
            return dict(self._answered)

    def _begun(self) -> None:
        request.environ[_BEGAN] = self._clock()

    def _ended(self) -> None:
        environ = request.environ
        route = environ.get("bottle.route")
        method = request.method if request.method in METHODS else "other"
        key = (method, "" if route is None else route.rule, response.status_code)
        with self._lock:
            self._answered[key] += 1
            self.seconds.note(self._clock() - environ[_BEGAN])
