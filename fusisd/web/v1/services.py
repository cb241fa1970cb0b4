"""The routes of services, their destinations and their drains.

A request is checked against the published snapshot, made into commands (changes.py), and answered with the object as it is
in the snapshot after the last of them. The entity tag of a service, and of what is in it, is the revision of its last
commit.
Does not: decide what may be (the core does).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from bottle import HTTPResponse

from fusisd.commands import AddDestination, CancelDrain, DeleteDestination, DeleteService, One
from fusisd.errors import Conflict, Invalid, NotFound
from fusisd.fields import Reader, Schema, seconds
from fusisd.model import Destination, Intent, Service
from fusisd.ports import Core, DestinationView, ServiceView, Snapshot
from fusisd.web.compat import compact, json_response, render
from fusisd.web.kept import KeptList
from fusisd.web.v1 import changes, objects, shapes
from fusisd.web.v1.asked import JSON, MERGE_PATCH, etag, expected_revision
from fusisd.web.v1.objects import Document
from fusisd.web.v1.pages import PAGED, cut, page
from fusisd.web.v1.routes import SWITCH, Body, Change, Route, in_query

_HEAD, _TAIL = b'{"services":[', b'],"next":%s}\n'  # as `pages.page` has it, with the rows rendered already


class Services:
    """The routes of this room over one core."""

    def __init__(self, core: Core) -> None:
        """The core is asked anew for each request."""
        self._core = core
        self._list = KeptList(lambda view: compact(objects.shown_service(view)), objects.in_order, _HEAD, _TAIL % b"null")

    def routes(self) -> list[Route]:
        """What can be asked."""
        one, inside = "/v1/services/<name>", "/v1/services/<name>/destinations"
        two, service, destination = f"{inside}/<destination>", shapes.SERVICE, shapes.DESTINATION
        made, gone = {200: service, 201: service}, {202: service, 204: None}
        services, destinations = shapes.listed("services", service), shapes.listed("destinations", destination)
        put, patch = {200: destination, 201: destination}, _patch(shapes.DESTINATION_PATCH)
        return [
            Route("GET", "/v1/services", self.list_services, {200: services}, PAGED),
            Route("POST", "/v1/services", self.add_service, made, body=_document(shapes.NEW_SERVICE), tagged=True),
            Route("GET", one, self.show_service, {200: service}, tagged=True),
            Route("PUT", one, self.put_service, made, body=_document(shapes.SERVICE_ASKED), tagged=True),
            Route("PATCH", one, self.patch_service, {200: service}, body=_patch(shapes.SERVICE_PATCH), tagged=True),
            Route("DELETE", one, self.delete_service, gone, REMOVAL, tagged=True),
            Route("DELETE", f"{one}/drain", self.cancel_service_drain, {200: service}, tagged=True),
            Route("GET", inside, self.list_destinations, {200: destinations}, PAGED, tagged=True),
            Route("POST", inside, self.add_destination, put, body=_document(shapes.NEW_DESTINATION), tagged=True),
            Route("GET", two, self.show_destination, {200: destination}, tagged=True),
            Route("PUT", two, self.put_destination, put, body=_document(shapes.DESTINATION_ASKED), tagged=True),
            Route("PATCH", two, self.patch_destination, {200: destination}, body=patch, tagged=True),
            Route("DELETE", two, self.delete_destination, {202: destination, 204: None}, REMOVAL, tagged=True),
            Route("DELETE", f"{two}/drain", self.cancel_destination_drain, {200: destination}, tagged=True),
            Route("GET", "/v1/drains", self.list_drains, {200: shapes.listed("drains", shapes.DRAIN)}, PAGED),
        ]

    # Services.

    def list_services(self, after: str = "", limit: int | None = None) -> object:
        """Services of ours."""
        views = self._core.snapshot().services
        if not after and limit is None:
            return json_response(self._list.whole(views))
        chosen, following = cut(((view.name, view) for view in objects.in_order(views)), after, limit)
        rows = b",".join([self._list.row(view) for _, view in chosen])
        return json_response(b"".join([_HEAD, rows, _TAIL % compact(following)]))

    def show_service(self, name: str) -> object:
        """One service."""
        return service_answer(service_view(self._core.snapshot(), name))

    def add_service(self, asked: Document) -> Change:
        """Make a service; the same again changes nothing."""
        intent, name = self._core.snapshot().intent, objects.read_name(asked)
        known = changes.there(intent, name)
        service = changes.with_its_address(objects.read_service(name, asked), intent)
        expected_revision(f"service {name}", known.revision if known else None)
        return _service_change(intent, [changes.add(service, intent)], name, created=known is None)

    def put_service(self, name: str, asked: Document) -> Change:
        """Make it so, new or not."""
        return self._put_service(name, asked, self._core.snapshot())

    def patch_service(self, name: str, asked: Document) -> Change:
        """Change some of it."""
        snapshot = self._core.snapshot()
        known = _service(snapshot, name)
        _refuse_draining(known, f"service {name}")
        return self._put_service(name, objects.patched(objects.service_document(known), asked), snapshot, known.revision)

    def _put_service(self, name: str, asked: Document, snapshot: Snapshot, made_from: int | None = None) -> Change:
        intent = snapshot.intent
        known = changes.there(intent, name)
        service = changes.with_its_address(objects.read_service(name, asked), intent)
        revision = expected_revision(f"service {name}", known.revision if known else None)
        whole = asked.get("destinations") is not None or made_from is not None
        revision = made_from if revision is None else revision
        commands = changes.put(service, intent, revision, lambda one: whole)
        return _service_change(intent, commands, name, created=known is None)

    def delete_service(self, name: str, drain_s: float | None = None, now: bool = False) -> Change:
        """Remove it, when its connections have ended or at once."""
        command = DeleteService(name, _limit(drain_s, now), self._revision(name))
        return Change([command], lambda after: _gone_or_draining(after, name))

    def cancel_service_drain(self, name: str) -> Change:
        """Take it back into service."""
        command = CancelDrain(name, revision=self._revision(name))
        return Change([command], lambda after: service_answer(service_view(after, name)))

    # Destinations.

    def list_destinations(self, name: str, after: str = "", limit: int | None = None) -> object:
        """All destinations of a service, whoever brought them."""
        view = service_view(self._core.snapshot(), name)
        rows = ((row.name, row) for row in view.destinations)
        shown = page("destinations", rows, lambda row: objects.shown_destination(view, row), after, limit)
        return answer(shown, view=view)

    def show_destination(self, name: str, destination: str) -> object:
        """One destination."""
        return destination_answer(self._core.snapshot(), name, destination)

    def add_destination(self, name: str, asked: Document) -> Change:
        """Add a destination; one that drains is taken back."""
        known = _service(self._core.snapshot(), name)
        one = objects.read_destination(objects.read_name(asked), asked)
        there = one.name in known.destinations
        expected_revision(f"destination {one.name} of {name}", known.revision if there else None)
        return _destination_change(AddDestination(name, one), name, one.name, created=not there)

    def put_destination(self, name: str, destination: str, asked: Document) -> Change:
        """Make it so, new or not."""
        return _put_destination(_service(self._core.snapshot(), name), destination, asked)

    def patch_destination(self, name: str, destination: str, asked: Document) -> Change:
        """Change some of it."""
        snapshot = self._core.snapshot()
        known, view = _service(snapshot, name), destination_view(snapshot, name, destination)
        if destination not in known.destinations:
            raise Conflict(f"{destination} was brought by Serf: change its agent, or PUT it whole to make it yours")
        _refuse_draining(known.destinations[destination], f"destination {destination} of {name}")
        document = objects.patched(objects.shown_destination(*view), asked)
        return _put_destination(known, destination, document, known.revision)

    def delete_destination(self, name: str, destination: str, drain_s: float | None = None, now: bool = False) -> Change:
        """Remove it, when its connections have ended or at once."""
        command = DeleteDestination(name, destination, _limit(drain_s, now), self._revision(name))
        return Change([command], lambda after: _gone_or_draining(after, name, destination))

    def cancel_destination_drain(self, name: str, destination: str) -> Change:
        """Take it back into service."""
        command = CancelDrain(name, destination, self._revision(name))
        return _destination_change(command, name, destination, created=False)

    # Drains.

    def list_drains(self, after: str = "", limit: int | None = None) -> object:
        """What drains, and how far it is."""
        return answer(page("drains", objects.drains(self._core.snapshot()), lambda row: row, after, limit))

    def _revision(self, name: str) -> int | None:
        """The revision that the request is made from, for the core to hold against the one of the moment of the change."""
        return expected_revision(f"service {name}", _service(self._core.snapshot(), name).revision)


# Changes.

REMOVAL: dict[str, Reader[Any]] = {"drain_s": in_query(seconds(0.001, 86400)), "now": SWITCH}
"""How something is removed."""


def _document(schema: Schema) -> Body:
    """A whole object, which its handler reads by its name."""
    return Body(Reader(lambda value, place: value, schema))


def _patch(schema: Schema) -> Body:
    """A merge patch of an object."""
    return Body(Reader(lambda value, place: value, schema), (MERGE_PATCH, JSON))


def _limit(drain_s: float | None, now: bool) -> float | None:
    """How long what is deleted may drain; None: it is cut."""
    if now and drain_s is not None:
        raise Invalid("give drain_s, or now=1: not both", "now")
    return None if now else changes.DRAIN_LIMIT_S if drain_s is None else drain_s


def _service_change(intent: Intent, commands: Iterable[One], name: str, created: bool) -> Change:
    of = f"services.{name}"
    with changes.told_of(of):
        steps = changes.tried(intent, commands)
    made = [step.command for step in steps]
    return Change(made, lambda after: service_answer(service_view(after, name), created=created), of)


def _destination_change(command: One, name: str, destination: str, created: bool) -> Change:
    of = f"services.{name}.destinations.{destination}"
    return Change([command], lambda after: destination_answer(after, name, destination, created), of)


def _put_destination(known: Service, destination: str, asked: Document, made_from: int | None = None) -> Change:
    one = objects.read_destination(destination, asked)
    there = destination in known.destinations
    revision = expected_revision(f"destination {destination} of {known.name}", known.revision if there else None)
    revision = made_from if revision is None else revision
    return _destination_change(changes.put_destination(known, one, revision), known.name, destination, created=not there)


# Answers.


def _gone_or_draining(after: Snapshot, name: str, destination: str | None = None) -> HTTPResponse:
    """204, or 202 and the object while it drains."""
    view = objects.by_name(after).get(name)
    if destination is None and view is not None and view.draining:
        return service_answer(view, 202)
    rows = [row for row in view.destinations if row.name == destination] if view is not None else []
    if view is not None and rows and rows[0].drain_left_s is not None:
        return answer(objects.shown_destination(view, rows[0]), 202, view=view)
    return HTTPResponse(b"", 204)


def answer(
    document: object, status: int = 200, view: ServiceView | None = None, location: str | None = None
) -> HTTPResponse:
    """A JSON answer, with the entity tag of the service that it is of."""
    headers = {} if view is None or view.service is None else {"ETag": etag(view.service.revision)}
    if location is not None:
        headers["Location"] = location
    return json_response(render(document), status, headers)


def service_answer(view: ServiceView, status: int = 200, created: bool = False) -> HTTPResponse:
    """A service; 201 with its place when it is new."""
    where = f"/v1/services/{quote(view.name)}" if created else None
    return answer(objects.shown_service(view), 201 if created else status, view, where)


def destination_answer(snapshot: Snapshot, name: str, destination: str, created: bool = False) -> HTTPResponse:
    """A destination, likewise."""
    view, row = destination_view(snapshot, name, destination)
    where = f"/v1/services/{quote(name)}/destinations/{quote(destination)}" if created else None
    return answer(objects.shown_destination(view, row), 201 if created else 200, view, where)


def service_view(snapshot: Snapshot, name: str) -> ServiceView:
    """The service of ours. Raises NotFound."""
    view = objects.by_name(snapshot).get(name)
    if view is None:
        raise NotFound(f"there is no service {name!r}")
    return view


def destination_view(snapshot: Snapshot, name: str, destination: str) -> tuple[ServiceView, DestinationView]:
    """A destination with its service. Raises NotFound."""
    view = service_view(snapshot, name)
    for row in view.destinations:
        if row.name == destination:
            return view, row
    raise NotFound(f"service {name} has no destination {destination!r}")


def _service(snapshot: Snapshot, name: str) -> Service:
    view = service_view(snapshot, name)
    assert view.service is not None, "services of ours have one"
    return view.service


def _refuse_draining(known: Service | Destination, what: str) -> None:
    if known.drain_s is not None:
        raise Conflict(f"{what} is being deleted: cancel its drain first, or PUT it to add it again")
