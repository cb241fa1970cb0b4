"""The routes of services, their destinations and their drains.

A request is checked against the published snapshot, made into commands (changes.py), and answered with the object as it is
in the snapshot after the last of them. The entity tag of a service, and of what is in it, is the revision of its last
commit.
Does not: decide what may be (the core does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from bottle import HTTPResponse, request

from fusisd.commands import AddDestination, CancelDrain, Command, DeleteDestination, DeleteService
from fusisd.errors import Conflict, NotFound, Stale
from fusisd.model import Destination, Service
from fusisd.ports import Core, DestinationView, ServiceView, Snapshot
from fusisd.web.compat import json_response, render, who
from fusisd.web.v1 import changes, objects
from fusisd.web.v1.asked import JSON, MERGE_PATCH, drain_s, etag, expected_revision, json_object, query
from fusisd.web.v1.objects import Document

PATCH_TRIES = 3  # a patch without If-Match is made from what is there at that moment, whoever else changes it


class Services:
    """The routes of this room over one core."""

    def __init__(self, core: Core) -> None:
        """The core is asked anew for each request."""
        self._core = core

    def routes(self) -> list[tuple[str, str, Callable[..., object]]]:
        """Method, path and handler of each route."""
        one, inside = "/v1/services/<name>", "/v1/services/<name>/destinations"
        return [
            ("GET", "/v1/services", self.list_services),
            ("POST", "/v1/services", self.add_service),
            ("GET", one, self.show_service),
            ("PUT", one, self.put_service),
            ("PATCH", one, self.patch_service),
            ("DELETE", one, self.delete_service),
            ("DELETE", f"{one}/drain", self.cancel_service_drain),
            ("GET", inside, self.list_destinations),
            ("POST", inside, self.add_destination),
            ("GET", f"{inside}/<destination>", self.show_destination),
            ("PUT", f"{inside}/<destination>", self.put_destination),
            ("PATCH", f"{inside}/<destination>", self.patch_destination),
            ("DELETE", f"{inside}/<destination>", self.delete_destination),
            ("DELETE", f"{inside}/<destination>/drain", self.cancel_destination_drain),
            ("GET", "/v1/drains", self.list_drains),
        ]

    # Services.

    def list_services(self) -> object:
        """Those of ours."""
        snapshot = self._snapshot()
        shown = [objects.shown_service(view) for view in objects.by_name(snapshot).values()]
        return answer({"services": shown})

    def show_service(self, name: str) -> object:
        """One of ours."""
        return service_answer(service_view(self._snapshot(), name))

    def add_service(self) -> object:
        """Make one."""
        query(())
        asked, intent = json_object(), self._core.snapshot().intent
        name = objects.read_name(asked)
        known = changes.there(intent, name)
        service = changes.with_its_address(objects.read_service(name, asked), intent)
        steps = changes.tried(intent, [changes.add(service, intent)])
        after = self._submit(step.command for step in steps)
        return service_answer(service_view(after, name), created=known is None)

    def put_service(self, name: str) -> object:
        """Make it so, new or not."""
        query(())
        return self._put_service(name, json_object(), self._core.snapshot())

    def patch_service(self, name: str) -> object:
        """Change some of it."""
        query(())
        patch = json_object(MERGE_PATCH, JSON)

        def attempt() -> object:
            snapshot = self._core.snapshot()
            known = _service(snapshot, name)
            _refuse_draining(known, f"service {name}")
            return self._put_service(name, objects.patched(objects.service_document(known), patch), snapshot, known.revision)

        return _again_when_stale(attempt)

    def _put_service(self, name: str, asked: Document, snapshot: Snapshot, made_from: int | None = None) -> object:
        intent = snapshot.intent
        known = changes.there(intent, name)
        revision = expected_revision(f"service {name}", known.revision if known else None)
        service = changes.with_its_address(objects.read_service(name, asked), intent)
        whole = asked.get("destinations") is not None or made_from is not None
        revision = made_from if revision is None else revision
        steps = changes.tried(intent, changes.put(service, intent, revision, whole))
        after = self._submit(step.command for step in steps)
        return service_answer(service_view(after, name), created=known is None)

    def delete_service(self, name: str) -> object:
        """Remove it, when its connections have ended or at once."""
        command = DeleteService(name, drain_s())
        self._check_tag(name)
        return self._gone_or_draining(self._submit([command]), name)

    def cancel_service_drain(self, name: str) -> object:
        """Take it back into service."""
        query(())
        self._check_tag(name)
        return service_answer(service_view(self._submit([CancelDrain(name)]), name))

    # Destinations.

    def list_destinations(self, name: str) -> object:
        """All of a service's, whoever brought them."""
        view = service_view(self._snapshot(), name)
        return answer({"destinations": [objects.shown_destination(view, row) for row in view.destinations]}, view=view)

    def show_destination(self, name: str, destination: str) -> object:
        """One of a service's."""
        return destination_answer(self._snapshot(), name, destination)

    def add_destination(self, name: str) -> object:
        """Add one."""
        query(())
        asked = json_object()
        known = _service(self._core.snapshot(), name)
        one = objects.read_destination(objects.read_name(asked), asked)
        after = self._submit([AddDestination(name, one)])
        return destination_answer(after, name, one.name, created=one.name not in known.destinations)

    def put_destination(self, name: str, destination: str) -> object:
        """Make it so, new or not."""
        query(())
        return self._put_destination(name, destination, json_object(), _service(self._core.snapshot(), name))

    def patch_destination(self, name: str, destination: str) -> object:
        """Change some of it."""
        query(())
        patch = json_object(MERGE_PATCH, JSON)

        def attempt() -> object:
            snapshot = self._core.snapshot()
            known, view = _service(snapshot, name), destination_view(snapshot, name, destination)
            if destination not in known.destinations:
                raise Conflict(f"{destination} was brought by Serf: change its agent, or PUT it whole to make it yours")
            _refuse_draining(known.destinations[destination], f"destination {destination} of {name}")
            document = objects.shown_destination(*view)
            return self._put_destination(name, destination, objects.patched(document, patch), known, known.revision)

        return _again_when_stale(attempt)

    def _put_destination(
        self, name: str, destination: str, asked: Document, known: Service, made_from: int | None = None
    ) -> object:
        there = destination in known.destinations
        revision = expected_revision(f"destination {destination} of {name}", known.revision if there else None)
        one = objects.read_destination(destination, asked)
        revision = made_from if revision is None else revision
        after = self._submit([changes.put_destination(known, one, revision)])
        return destination_answer(after, name, destination, created=not there)

    def delete_destination(self, name: str, destination: str) -> object:
        """Remove it, when its connections have ended or at once."""
        command = DeleteDestination(name, destination, drain_s())
        self._check_tag(name)
        return self._gone_or_draining(self._submit([command]), name, destination)

    def cancel_destination_drain(self, name: str, destination: str) -> object:
        """Take it back into service."""
        query(())
        self._check_tag(name)
        return destination_answer(self._submit([CancelDrain(name, destination)]), name, destination)

    # Drains.

    def list_drains(self) -> object:
        """What drains, and how far it is."""
        return answer({"drains": objects.drains(self._snapshot())})

    # What they share.

    def _snapshot(self) -> Snapshot:
        query(())
        return self._core.snapshot()

    def _submit(self, commands: Iterable[Command]) -> Snapshot:
        return submit(self._core, commands)

    def _check_tag(self, name: str) -> None:
        """The preconditions of a command that carries no revision."""
        service = self._core.snapshot().intent.services.get(name)
        expected_revision(f"service {name}", None if service is None else service.revision)

    def _gone_or_draining(self, after: Snapshot, name: str, destination: str | None = None) -> object:
        """204, or 202 and the object while it drains."""
        view = objects.by_name(after).get(name)
        if destination is None and view is not None and view.draining:
            return service_answer(view, 202)
        rows = [row for row in view.destinations if row.name == destination] if view is not None else []
        if view is not None and rows and rows[0].drain_left_s is not None:
            return answer(objects.shown_destination(view, rows[0]), 202, view=view)
        return HTTPResponse(b"", 204)


def submit(core: Core, commands: Iterable[Command]) -> Snapshot:
    """Make each durable and applied, one after the other; the snapshot after the last. Raises Refused."""
    return [core.submit(command, who(request.environ)) for command in commands][-1]


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


def _again_when_stale(attempt: Callable[[], Any]) -> Any:
    """What `attempt` gives; again from what is there then, when somebody was quicker and the client named no revision."""
    for _ in range(PATCH_TRIES - 1):
        try:
            return attempt()
        except Stale:
            if request.environ.get("HTTP_IF_MATCH") is not None:
                raise
    return attempt()
