"""The routes of what happened, and of why things are as they are.

Neither waits for anything: the ring of events and the snapshot are read as they stand.
Does not: know how a decision is explained (why.py does).
"""

from __future__ import annotations

from typing import Any

from fusisd.documents import NAME
from fusisd.errors import NotFound
from fusisd.events import Event
from fusisd.fields import Reader, matching, whole
from fusisd.ports import Core
from fusisd.web.v1 import shapes
from fusisd.web.v1.objects import Document
from fusisd.web.v1.pages import MOST
from fusisd.web.v1.routes import Route, in_query
from fusisd.web.v1.services import answer, service_view

PAGE = 100
TRANSITIONS = 10
_CURSOR = matching("[A-Za-z0-9]{1,40}-[0-9]{1,20}", "is no id of an event")
_QUERY: dict[str, Reader[Any]] = {"after": _CURSOR, "limit": in_query(whole(1, MOST)), "service": NAME}


class Events:
    """The routes of this room over one core."""

    def __init__(self, core: Core) -> None:
        """The core is asked anew for each request."""
        self._core = core

    def routes(self) -> list[Route]:
        """What can be asked."""
        one, two = "/v1/services/<name>/why", "/v1/services/<name>/destinations/<destination>/why"
        return [
            Route("GET", "/v1/events", self.list_events, {200: shapes.EVENTS}, _QUERY),
            Route("GET", one, self.why_service, {200: shapes.WHY_SERVICE}),
            Route("GET", two, self.why_destination, {200: shapes.WHY_DESTINATION}),
        ]

    def list_events(self, after: str | None = None, limit: int = PAGE, service: str | None = None) -> object:
        """The events after a cursor, or the last ones."""
        page = self._core.events.page(after, limit, service)
        return answer({"events": [shown(event) for event in page.events], "next": page.next, "missed": page.missed})

    def why_service(self, name: str) -> object:
        """A service: VIP, what is applied, refusals, warnings, what decided each weight."""
        told = self._core.snapshot().why(name)
        if told is None:
            raise NotFound(f"there is no service {name!r}")
        return answer({**told, "transitions": self._transitions(name, "", "")})

    def why_destination(self, name: str, destination: str) -> object:
        """A destination: every input, and which decided its weight."""
        snapshot = self._core.snapshot()
        told = snapshot.why(name, destination)
        if told is None:
            service_view(snapshot, name)
            raise NotFound(f"service {name} has no destination {destination!r}")
        serf = told.get("serf")
        node = str(serf["node"]) if isinstance(serf, dict) else ""
        return answer({**told, "transitions": self._transitions(name, destination, node)})

    def _transitions(self, service: str, destination: str, node: str) -> list[Document]:
        found = self._core.events.last(TRANSITIONS, lambda event: event.concerns(service, destination, node))
        return [shown(event) for event in found]


def shown(event: Event) -> Document:
    """An event as a document; what it has not is null."""
    of = {name: getattr(event, name) or None for name in ("service", "destination", "node")}
    when = {"id": event.id, "time": event.time, "monotonic_s": round(event.at_s, 6)}
    return {**when, "kind": event.kind, **of, "text": event.text, "cause": event.cause or None, "who": event.who or None}
