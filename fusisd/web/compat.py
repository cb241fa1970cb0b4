"""The frozen room: `/services` in the JSON shape and with the status codes that the first Fusis of 2016 had.

Bodies look as Go printed them: compact, keys in the order of its structs, one newline at the end. Repaired
against 2016: names are kept, unknown ids are 404, errors are JSON, nothing goes in unchecked. What is new
never comes here.
Does not: decide (the core does), check who may write (the app does).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bottle import HTTPResponse, request

from fusisd.commands import AddDestination, AddService, Command, DeleteDestination, DeleteService
from fusisd.errors import Invalid, NotFound
from fusisd.model import (
    FORWARDING_METHODS,
    SCHEDULERS,
    Destination,
    Service,
    checked_address,
    checked_name,
    checked_port,
    checked_weight,
)
from fusisd.ports import Core, DestinationView, ServiceView
from fusisd.web import body
from fusisd.web.errors import BadBody, MissingFields
from fusisd.web.kept import KeptList, Views
from pyipvs import Protocol, ServiceKey

JSON_TYPE = "application/json; charset=utf-8"
IGNORED_HEADER = "X-Fusis-Ignored-Keys"

FIELD_NAMES: Mapping[str, str] = {
    "name": "Name",
    "address": "Host",
    "port": "Port",
    "protocol": "Protocol",
    "scheduler": "Scheduler",
    "destinations": "Destinations",
    "weight": "Weight",
    "method": "Mode",
    "service": "service_id",
}
"""The model's words for fields, and this dialect's."""

_METHODS = {str(method): method for method in FORWARDING_METHODS}
_PROTOCOLS = {str(protocol): protocol for protocol in Protocol}
_SERVICE_KEYS = frozenset({"name", "host", "port", "protocol", "scheduler", "destinations"})
_DESTINATION_KEYS = frozenset({"name", "host", "port", "weight", "mode", "service_id"})
DRAIN_LIMIT_S = 60.0
_ALIASES = {"address": "host", "serviceid": "service_id"}  # the dialect of 2018


class Compat:
    """The routes of this room over one core."""

    def __init__(self, core: Core) -> None:
        """The core is asked anew for each request."""
        self._core = core
        self._list = KeptList(lambda view: compact(service_json(view)), _listed, b"[", b"]\n")

    def routes(self) -> list[tuple[str, str, Callable[..., object]]]:
        """Method, path and handler of each route."""
        return [
            ("GET", "/services", self.list_services),
            ("POST", "/services", self.add_service),
            ("GET", "/services/<name>", self.show_service),
            ("DELETE", "/services/<name>", self.delete_service),
            ("POST", "/services/<name>/destinations", self.add_destination),
            ("DELETE", "/services/<name>/destinations/<destination>", self.delete_destination),
        ]

    def list_services(self) -> object:
        """All services of the kernel, foreign ones with the name ""."""
        return json_response(self._list.whole(self._core.snapshot().services))

    def show_service(self, name: str) -> object:
        """One service of ours."""
        for view in self._core.snapshot().services:
            if view.name == name and not view.foreign and not view.draining:
                return json_response(render(service_json(view)))
        raise NotFound(f"there is no service {name!r}")

    def add_service(self) -> object:
        """Make a service and echo it."""
        fields, ignored = _known(body.json_object(request.environ), _SERVICE_KEYS)
        service, ignored_below = parse_service(fields)
        self._submit(AddService(service))
        return _echo(_service_echo(service), ignored | ignored_below)

    def delete_service(self, name: str) -> object:
        """Remove a service: absent here at once, in the kernel when its connections have ended."""
        self._submit(DeleteService(name, _drain_s()))
        return _empty()

    def add_destination(self, name: str) -> object:
        """Add a destination to a service and echo it."""
        fields, ignored = _known(body.json_object(request.environ), _DESTINATION_KEYS)
        said = body.text(fields, "service_id")
        if said not in ("", name):
            raise Invalid(f"service_id {said!r} is not the service of the path, {name!r}", "service")
        destination = parse_destination(fields)
        self._submit(AddDestination(name, destination))
        return _echo(_destination_json(destination, name), ignored)

    def delete_destination(self, name: str, destination: str) -> object:
        """Remove a destination of a service, as a service is."""
        self._submit(DeleteDestination(name, destination, _drain_s()))
        return _empty()

    def _submit(self, command: Command) -> None:
        self._core.submit(command, who(request.environ))


# Rendering.


def compact(value: object) -> bytes:
    """JSON as Go's encoder writes it, without the newline at its end."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def render(value: object) -> bytes:
    """JSON as Go's encoder writes it: compact, a newline at the end."""
    return compact(value) + b"\n"


def _listed(views: Views) -> Iterator[ServiceView]:
    return (view for view in views if not view.draining)


def json_response(data: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    """An answer with this JSON."""
    return HTTPResponse(data, status, headers={"Content-Type": JSON_TYPE, **(headers or {})})


def who(environ: Mapping[str, Any]) -> str:
    """Whose a command is, for the log and the events, as the write policy found: see WritePolicy.check."""
    return str(environ["fusis.who"])


def service_json(view: ServiceView) -> dict[str, object]:
    """A service in this dialect; one by firewall mark, for which it has no words, shows its key as Host."""
    destinations = [_destination_json(row, view.name) for row in view.destinations if row.drain_left_s is None]
    return _service(view.name, view.key, view.scheduler, destinations)


def _service(
    name: str, key: ServiceKey, scheduler: str, destinations: list[dict[str, object]]
) -> dict[str, object]:
    return {
        "Name": name,
        "Host": key.address if key.mark is None else str(key),
        "Port": key.port or 0,
        "Protocol": "" if key.protocol is None else str(key.protocol),
        "Scheduler": scheduler,
        "Destinations": destinations,
    }


def _service_echo(service: Service) -> dict[str, object]:
    destinations = [
        _destination_json(destination, service.name) for destination in service.destinations.values()
    ]
    return _service(service.name, service.key, service.scheduler, destinations)


def _destination_json(view: DestinationView | Destination, service_id: str) -> dict[str, object]:
    return {
        "Name": view.name,
        "Host": view.address,
        "Port": view.port,
        "Weight": view.weight,
        "Mode": str(view.method),
        "service_id": service_id,
    }


def _drain_s() -> float | None:
    """How long what is deleted may drain: as long as usual, or not at all with `?now=1`."""
    return None if request.query.get("now") in ("1", "true") else DRAIN_LIMIT_S


def _echo(value: object, ignored: frozenset[str]) -> HTTPResponse:
    if not ignored:
        return json_response(render(value))
    # ASCII and no control characters: a key must not be able to write a header of its own.
    shown = ", ".join(json.dumps(key)[1:-1] for key in sorted(ignored))[:200]
    return json_response(render(value), headers={IGNORED_HEADER: shown})


def _empty() -> HTTPResponse:
    return HTTPResponse(b"", 200, headers={"Content-Type": "text/html"})


# Parsing: the sentences speak of this dialect's fields.


def parse_service(fields: body.Fields) -> tuple[Service, frozenset[str]]:
    """The service in a body, and its destinations' unknown keys. Raises BadBody, MissingFields, Invalid."""
    name, host, port = body.text(fields, "Name"), body.text(fields, "Host"), body.number(fields, "Port") or 0
    protocol, scheduler = body.text(fields, "Protocol"), body.text(fields, "Scheduler")
    _required(Name=name, Host=host, Port=port, Protocol=protocol, Scheduler=scheduler)
    if scheduler not in SCHEDULERS:
        raise Invalid(f"Scheduler {scheduler!r} must be one of {' '.join(SCHEDULERS)}", "scheduler")
    if protocol not in _PROTOCOLS:
        raise Invalid(f"Protocol {protocol!r} must be one of {' '.join(_PROTOCOLS)}", "protocol")
    key = ServiceKey(_PROTOCOLS[protocol], checked_address(host, "Host"), checked_port(port, "Port"))
    destinations, ignored = _parse_destinations(fields)
    return Service(checked_name(name, "Name"), key, scheduler, destinations=destinations), ignored


def parse_destination(fields: body.Fields) -> Destination:
    """The destination in a body; weight 1, route unless said. Raises BadBody, MissingFields, Invalid."""
    name, host, port = body.text(fields, "Name"), body.text(fields, "Host"), body.number(fields, "Port") or 0
    weight, mode = body.number(fields, "Weight"), body.text(fields, "Mode") or "route"
    _required(Name=name, Host=host, Port=port)
    if mode not in _METHODS:
        raise Invalid(f"Mode {mode!r} must be one of {' '.join(_METHODS)}", "method")
    return Destination(
        checked_name(name, "Name"),
        checked_address(host, "Host"),
        checked_port(port, "Port"),
        checked_weight(1 if weight is None else weight),
        _METHODS[mode],
    )


def _parse_destinations(fields: body.Fields) -> tuple[dict[str, Destination], frozenset[str]]:
    items = fields.get("destinations") or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadBody("Destinations must be a list of objects")
    destinations: dict[str, Destination] = {}
    ignored: frozenset[str] = frozenset()
    for item in items:
        known, unknown = _known(item, _DESTINATION_KEYS)
        destination = parse_destination(known)
        if destination.name in destinations:
            raise Invalid(f"destination {destination.name!r} is there twice", "destinations")
        destinations[destination.name] = destination
        ignored |= unknown
    return destinations, ignored


def _required(**values: str | int) -> None:
    missing = [field for field, value in values.items() if not value]
    if missing:
        raise MissingFields(missing)


def _known(fields: dict[str, Any], keys: frozenset[str]) -> tuple[dict[str, Any], frozenset[str]]:
    """The fields that this dialect knows, under their own names, and the keys of all others."""
    known: dict[str, Any] = {}
    for key, value in fields.items():
        name = _ALIASES.get(key, key)
        if name in known:
            raise BadBody(f"{key} and {name} mean the same; give one")
        if name in keys:
            known[name] = value
    return known, frozenset(key for key in fields if _ALIASES.get(key, key) not in keys)
