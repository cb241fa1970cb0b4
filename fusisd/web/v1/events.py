"""The routes of what happened, and of why things are as they are.

Neither waits for anything: the ring of events and the snapshot are read as they stand.
Does not: know how a decision is explained (why.py does).
"""

from __future__ import annotations

from collections.abc import Callable

from fusisd.errors import Invalid, NotFound
from fusisd.events import Event
from fusisd.model import checked_name
from fusisd.ports import Core
from fusisd.web.v1.asked import query
from fusisd.web.v1.objects import Document
from fusisd.web.v1.services import answer, service_view

PAGE = 100
MOST = 1000
TRANSITIONS = 10


class Events:
    """The routes of this room over one core."""

    def __init__(self, core: Core) -> None:
        """The core is asked anew for each request."""
        self._core = core

    def routes(self) -> list[tuple[str, str, Callable[..., object]]]:
        """Method, path and handler of each route."""
        return [
            ("GET", "/v1/events", self.list_events),
            ("GET", "/v1/services/<name>/why", self.why_service),
            ("GET", "/v1/services/<name>/destinations/<destination>/why", self.why_destination),
        ]

    def list_events(self) -> object:
        """The events after a cursor, or the last ones."""
        asked = query(("after", "limit", "service"))
        service = asked.get("service")
        if service is not None:
            checked_name(service, "service")
        page = self._core.events.page(asked.get("after"), _limit(asked.get("limit", str(PAGE))), service)
        return answer({"events": [shown(event) for event in page.events], "next": page.next, "missed": page.missed})

    def why_service(self, name: str) -> object:
        """A service: VIP, what is applied, refusals, warnings, what decided each weight."""
        query(())
        told = self._core.snapshot().why(name)
        if told is None:
            raise NotFound(f"there is no service {name!r}")
        return answer({**told, "transitions": self._transitions(name, "", "")})

    def why_destination(self, name: str, destination: str) -> object:
        """A destination: every input, and which decided its weight."""
        query(())
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


def _limit(said: str) -> int:
    limit = int(said) if said.isascii() and said.isdigit() and len(said) < 6 else 0
    if not 1 <= limit <= MOST:
        raise Invalid(f"limit {said!r} must be 1 to {MOST}", "limit")
    return limit


def shown(event: Event) -> Document:
    """An event as a document; what it has not is null."""
    of = {name: getattr(event, name) or None for name in ("service", "destination", "node")}
    when = {"id": event.id, "time": event.time, "monotonic_s": round(event.at_s, 6)}
    return {**when, "kind": event.kind, **of, "text": event.text, "cause": event.cause or None, "who": event.who or None}
