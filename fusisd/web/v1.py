"""The native API below `/v1/`: services, destinations, drains, and who owns what, in the documents of fusisd.documents.

Objects are read whole and strictly; PATCH merges (RFC 7396) into the document that stands. A request that wants what is so
already is a success that changes nothing. `If-Match` takes the ETag of an earlier answer. Refusals are problem details
(RFC 9457) that name the field.
Does not: decide (the core does), check who may write (the app does), or speak the dialect of 2016 (compat.py does).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bottle import HTTPResponse, request

from fusisd import documents
from fusisd.commands import (
    AddDestination,
    AddService,
    Adopt,
    CancelDrain,
    Command,
    DeleteDestination,
    DeleteService,
    Pause,
    Release,
    SetGlobals,
    UpdateDestination,
    UpdateService,
)
from fusisd.errors import Conflict, FusisError, Invalid, NotFound, Refused, Stale, Unavailable
from fusisd.fields import parsed
from fusisd.model import Destination, Service
from fusisd.ports import Core, DestinationView, ServiceView, Snapshot
from fusisd.web.compat import DRAIN_LIMIT_S, who
from fusisd.web.errors import BadBody, UnsupportedMediaType, status_of
from pyipvs import ServiceKey

JSON_TYPE, PROBLEM_TYPE = "application/json", "application/problem+json"
RETRY_AFTER_S = 5
_OF_DESTINATIONS = ("destinations", "excluded", "drain_s")
Route = tuple[str, str, Callable[..., object]]


class V1:
    """The routes of this room over one core."""

    def __init__(self, core: Core) -> None:
        """Keeps nothing between requests."""
        self._core = core

    def routes(self) -> list[Route]:
        """Method, path and handler of each route."""
        service, destination = "/v1/services/<name>", "/v1/services/<name>/destinations/<destination>"
        return [
            ("GET", "/v1/services", self.list_services),
            ("POST", "/v1/services", self.add_service),
            ("GET", service, self.show_service),
            ("PUT", service, self.put_service),
            ("PATCH", service, self.patch_service),
            ("DELETE", service, self.delete_service),
            ("DELETE", f"{service}/drain", self.cancel_drain),
            ("POST", f"{service}/release", self.release),
            ("PUT", destination, self.put_destination),
            ("PATCH", destination, self.patch_destination),
            ("DELETE", destination, self.delete_destination),
            ("DELETE", f"{destination}/drain", self.cancel_drain),
            ("GET", "/v1/drains", self.drains),
            ("GET", "/v1/foreign", self.foreign),
            ("POST", "/v1/adopt", self.adopt),
            ("POST", "/v1/pause", self.pause),
            ("GET", "/v1/settings", self.settings),
            ("PUT", "/v1/settings", self.put_settings),
            ("GET", "/v1/export", self.export),
            ("POST", "/v1/import", self.take_in),
        ]

    # Services

    def list_services(self) -> object:
        """All services of ours, by name."""
        return _json({view.name: service_json(view) for view in self._core.snapshot().services if not view.foreign})

    def show_service(self, name: str) -> object:
        """One of ours."""
        return _shown(_view(self._core.snapshot(), name))

    def add_service(self) -> object:
        """Make one; its name stands in the document. Without an address in its key it gets one of the ranges."""
        document = _body()
        name = document.pop("name", None)
        if not isinstance(name, str):
            raise Invalid("name must be a text", "name")
        return self._created(self._submit(AddService(documents.decode_service(name, document))), name)

    def put_service(self, name: str) -> object:
        """Make one, or give it these settings; the destinations of one that exists have requests of their own."""
        document, known = _body(), self._core.snapshot().intent.services.get(name)
        if known is None:
            return self._created(self._submit(AddService(documents.decode_service(name, document))), name)
        return self._updated(name, {key: value for key, value in document.items() if key not in _OF_DESTINATIONS})

    def patch_service(self, name: str) -> object:
        """Change what is named; null takes it away."""
        known = _known(self._core.snapshot(), name)
        whole = {key: value for key, value in documents.encode_service(known).items() if key not in _OF_DESTINATIONS}
        patch = _body()
        if theirs := [key for key in patch if key in _OF_DESTINATIONS]:
            raise Invalid(f"{theirs[0]} has requests of its own", theirs[0])
        return self._updated(name, merged(whole, patch))

    def delete_service(self, name: str) -> object:
        """Remove it, when its connections have ended; at once with `?now=1`."""
        self._submit(DeleteService(name, _drain_s()))
        return _accepted(self._core.snapshot(), name)

    def release(self, name: str) -> object:
        """Forget it, and leave all of it as it stands."""
        self._submit(Release(name))
        return _json({"released": name})

    def _updated(self, name: str, document: dict[str, Any]) -> object:
        snapshot = self._submit(UpdateService(documents.decode_service(name, document), _revision()))
        return _shown(_view(snapshot, name))

    def _created(self, snapshot: Snapshot, name: str) -> object:
        return _shown(_view(snapshot, name), 201, {"Location": f"/v1/services/{name}"})

    # Destinations

    def put_destination(self, name: str, destination: str) -> object:
        """Make one, or give it these settings."""
        return self._put(name, documents.decode_destination(destination, _body()))

    def patch_destination(self, name: str, destination: str) -> object:
        """Change what is named of one that an operator made."""
        known = _known(self._core.snapshot(), name).destinations.get(destination)
        if known is None:
            raise NotFound(f"service {name} has no destination {destination!r} of an operator's")
        whole = documents.encode_destination(replace(known, drain_s=None))
        return self._put(name, documents.decode_destination(destination, merged(whole, _body())))

    def delete_destination(self, name: str, destination: str) -> object:
        """Remove it, as a service is; one that Serf brought stays out until it is put."""
        snapshot = self._submit(DeleteDestination(name, destination, _drain_s()))
        return _shown(_view(snapshot, name))

    def _put(self, name: str, destination: Destination) -> object:
        known = _known(self._core.snapshot(), name).destinations.get(destination.name)
        if known is None:
            snapshot = self._submit(AddDestination(name, destination))
        else:
            snapshot = self._submit(UpdateDestination(name, destination, _revision()))
        where = {"Location": f"/v1/services/{name}"} if known is None else {}
        return _shown(_view(snapshot, name), 201 if known is None else 200, where)

    # Drains, ownership, settings

    def drains(self) -> object:
        """What drains, and for how much longer."""
        found = [_draining(view) for view in self._core.snapshot().services if not view.foreign]
        return _json([drain for drains in found for drain in drains])

    def cancel_drain(self, name: str, destination: str | None = None) -> object:
        """Back into service."""
        return _shown(_view(self._submit(CancelDrain(name, destination)), name))

    def foreign(self) -> object:
        """What is in the kernel and not ours."""
        views = [view for view in self._core.snapshot().services if view.foreign]
        return _json([{"key": str(view.key), **service_json(view)} for view in views])

    def adopt(self) -> object:
        """Make a foreign service ours, as it stands."""
        document = _body()
        name, key = (_text(document, field) for field in ("name", "key"))
        try:
            parsed_key = ServiceKey.parse(key)
        except ValueError as error:
            raise Invalid(str(error), "key") from None
        return self._created(self._submit(Adopt(name, parsed_key)), name)

    def pause(self) -> object:
        """Change nothing in the kernel for so many seconds; 0 ends it."""
        seconds = _body().get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise Invalid("seconds must be a number", "seconds")
        self._submit(Pause(float(seconds)))
        return _json({"seconds": seconds})

    def settings(self) -> object:
        """Connection timeouts and VIP ranges."""
        return _json(_settings(self._core.snapshot()))

    def put_settings(self) -> object:
        """Change them; what is left out stays."""
        document = _body()
        if unknown := document.keys() - {"timeouts", "ranges"}:
            raise Invalid(f"{min(unknown)} is no setting; there are timeouts and ranges", min(unknown))
        timeouts = documents.decode_timeouts(document["timeouts"], "timeouts") if "timeouts" in document else None
        ranges = documents.decode_ranges(document["ranges"]) if "ranges" in document else None
        return _json(_settings(self._submit(SetGlobals(timeouts, ranges))))

    def export(self) -> object:
        """All intent, as a file that `POST /v1/import` takes."""
        return HTTPResponse(
            documents.export_intent(self._core.snapshot().intent), 200, headers={"Content-Type": JSON_TYPE}
        )

    def take_in(self) -> object:
        """Make everything of an exported file; what is not in it stays. Nothing is begun when a part of it is wrong."""
        wanted = documents.decode_intent(_body())
        self._submit(SetGlobals(wanted.timeouts, wanted.ranges))
        done = {}
        for service in wanted.services.values():
            done[service.name] = self._take_in(service)
        return _json(done)

    def _take_in(self, service: Service) -> str:
        try:
            if service.name not in self._core.snapshot().intent.services:
                self._submit(AddService(service))
                return "made"
            self._submit(UpdateService(service))
            for destination in service.destinations.values():
                self._submit(AddDestination(service.name, destination))
        except Refused as error:
            return f"refused: {error}"
        return "as in the file"

    def _submit(self, command: Command) -> Snapshot:
        return self._core.submit(command, who(request.environ))


def refusal(error: FusisError) -> HTTPResponse:
    """The answer to what was refused: problem details."""
    status = 412 if isinstance(error, Stale) else 409 if isinstance(error, Conflict) else status_of(error)
    problem = {"type": "about:blank", "title": type(error).__name__, "status": status, "detail": str(error)}
    if isinstance(error, Refused) and error.field is not None:
        problem["field"] = error.field
    headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, Unavailable) else {}
    headers |= {"WWW-Authenticate": 'Bearer realm="fusisd"'} if status == 401 else {}
    return HTTPResponse(_bytes(problem), status, headers={"Content-Type": PROBLEM_TYPE, **headers})


def merged(document: Any, patch: Any) -> Any:
    """The document after a merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def service_json(view: ServiceView) -> dict[str, Any]:
    """A service: what was asked for, and how it stands."""
    document: dict[str, Any] = {"scheduler": view.scheduler}
    if view.service is not None:
        document = documents.encode_service(view.service)
    asked: dict[str, Any] = document.get("destinations", {})
    shown = {row.name or f"{row.address}:{row.port}": row for row in view.destinations}
    document["destinations"] = {name: {**asked.get(name, {}), **destination_json(row)} for name, row in shown.items()}
    status: dict[str, Any] = {"applied": view.applied, "reason": view.reason, "draining": view.draining}
    if view.service is not None:
        status["revision"] = view.service.revision
    return {**document, "status": status}


def destination_json(row: DestinationView) -> dict[str, Any]:
    """A destination: where it is, and how it stands; `weight` in `status` is the kernel's."""
    status = {"state": row.state, "reason": row.reason, "applied": row.applied, "weight": row.weight, "origin": row.origin}
    status |= {"active": row.active, "inactive": row.inactive}
    if row.drain_left_s is not None:
        status["drain_left_s"] = round(row.drain_left_s, 1)
    return {"address": row.address, "port": row.port, "method": str(row.method), "status": status}


def _draining(view: ServiceView) -> list[dict[str, Any]]:
    rows = [row for row in view.destinations if row.drain_left_s is not None]
    return [{"service": view.name, "destination": row.name, **destination_json(row)["status"]} for row in rows]


def _settings(snapshot: Snapshot) -> dict[str, Any]:
    intent = snapshot.intent
    return {"timeouts": documents.encode_timeouts(intent.timeouts), "ranges": list(intent.ranges)}


def _view(snapshot: Snapshot, name: str) -> ServiceView:
    for view in snapshot.services:
        if view.name == name and not view.foreign:
            return view
    raise NotFound(f"there is no service {name!r}")


def _known(snapshot: Snapshot, name: str) -> Service:
    service = _view(snapshot, name).service
    assert service is not None  # a view that is not foreign has one
    return service


def _accepted(snapshot: Snapshot, name: str) -> object:
    """What is left of a service that was deleted: it drains, or it is gone."""
    gone = all(view.foreign or view.name != name for view in snapshot.services)
    return _json({"deleted": name}) if gone else _shown(_view(snapshot, name), 202)


def _shown(view: ServiceView, status: int = 200, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    revision = view.service.revision if view.service is not None else 0
    return _json({"name": view.name, **service_json(view)}, status, {"ETag": f'"{revision}"', **(headers or {})})


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    return HTTPResponse(_bytes(value), status, headers={"Content-Type": JSON_TYPE, **(headers or {})})


def _bytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _body() -> dict[str, Any]:
    """The request's document. Raises BadBody, UnsupportedMediaType."""
    environ = request.environ
    media_type = str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
    if media_type not in ("", JSON_TYPE, "application/merge-patch+json"):
        raise UnsupportedMediaType(f"the body must be {JSON_TYPE}, not {media_type}; set the Content-Type header")
    try:
        value = parsed(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode())
    except (Invalid, UnicodeDecodeError) as error:
        raise BadBody(f"the body is {error}") from None
    if not isinstance(value, dict):
        raise BadBody("the body must be a JSON object")
    return value


def _text(document: Mapping[str, Any], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str):
        raise Invalid(f"{field} must be a text", field)
    return value


def _drain_s() -> float | None:
    """How long what is deleted may drain: `?drain_s=`, as usual without, not at all with `?now=1`."""
    if request.query.get("now") in ("1", "true"):
        return None
    try:
        return float(request.query.get("drain_s") or DRAIN_LIMIT_S)
    except ValueError:
        raise Invalid("drain_s must be a number of seconds", "drain_s") from None


def _revision() -> int | None:
    """The revision that the request was made from, None when it does not say. Raises Invalid."""
    text = str(request.environ.get("HTTP_IF_MATCH", "")).strip().strip('"')
    if text in ("", "*"):
        return None
    if not (text.isascii() and text.isdigit()):
        raise Stale(f"If-Match {text!r} is no ETag of ours")
    return int(text)
