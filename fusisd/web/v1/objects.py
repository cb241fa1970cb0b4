"""Services and destinations as this API writes and reads them: a document, and beside it `status`, which is ours to say.

A document is that of fusisd.documents, but that a service's key is written in its parts (protocol, address, port; or
fwmark), so that each can be changed and left out; a whole `key` is read, too. `status` in a request is passed over, so
that what was read can be sent back; everything else that is not known is refused.
Does not: speak HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyipvs
from fusisd.documents import ADDRESS, KEY, decode_destination, decode_service, encode_destination, encode_service
from fusisd.errors import Invalid
from fusisd.fields import Reader, one_of, read_object, refused_at, text, whole
from fusisd.model import Destination, Service, checked_name
from fusisd.ports import DestinationView, ServiceView, Snapshot
from fusisd.web.v1.asked import merged
from pyipvs import Family, Protocol, ServiceKey

Document = dict[str, Any]

NOT_SETTINGS = ("drain_s", "excluded")  # of fusisd.documents: said in another way, or in `status`
_FAMILIES = {"ipv4": Family.INET, "ipv6": Family.INET6}
_ANY = {Family.INET: "0.0.0.0", Family.INET6: "::"}  # what the door takes for "allocate one"
KEY_FIELDS: dict[str, Reader[Any]] = {
    "protocol": one_of({str(protocol): protocol for protocol in Protocol}),
    "address": ADDRESS,
    "port": whole(0, 65535),
    "fwmark": whole(1, 2**32 - 1),
    "family": one_of(_FAMILIES),
    "key": KEY,
}


# Reading


def read_service(name: str, asked: Document) -> Service:
    """The service of a request's document; without an address it is one to allocate. Raises Invalid."""
    document = merged({}, asked)  # null says "none of that", as in a patch
    document.pop("status", None)
    said = document.pop("name", name)
    if said != name:
        raise Invalid(f"name {said!r} is not that of the path, {name!r}", "name")
    _refuse_unsettable(document, "", NOT_SETTINGS)
    for place, destination in _objects(document.get("destinations")):
        _refuse_unsettable(destination, f"{place}.", ("drain_s",))
    key = _read_key({part: document.pop(part) for part in KEY_FIELDS if part in document})
    with _blamed(("persistence_engine", "persistence_s", "netmask", "scheduler", "flag")):
        return decode_service(checked_name(name), {"key": str(key), **document})


def read_destination(name: str, asked: Document) -> Destination:
    """The destination of a request's document. Raises Invalid."""
    document = merged({}, asked)
    document.pop("status", None)
    said = document.pop("name", name)
    if said != name:
        raise Invalid(f"name {said!r} is not that of the path, {name!r}", "name")
    _refuse_unsettable(document, "", ("drain_s",))
    with _blamed(("tunnel", "lower_threshold", "upper_threshold", "weight")):
        return decode_destination(checked_name(name), document)


def read_name(asked: Document) -> str:
    """The name in a document that makes something new. Raises Invalid."""
    if asked.get("name") is None:
        raise Invalid("name is missing", "name")
    return checked_name(text(asked["name"], "name"))


def _read_key(parts: Document) -> ServiceKey:
    if "key" in parts:
        whole: ServiceKey = read_object(parts, "", {"key": KEY_FIELDS["key"]}, (), " beside key")["key"]
        return whole
    if "fwmark" in parts:
        found = read_object(parts, "", {part: KEY_FIELDS[part] for part in ("fwmark", "family")}, (), " beside fwmark")
        return ServiceKey.fwmark(found["fwmark"], found.get("family", Family.INET))
    found = read_object(parts, "", KEY_FIELDS, ("protocol", "port"), ", or give fwmark")
    family = found.get("family")
    address = found.get("address") or _ANY[family or Family.INET]
    with refused_at("address"):
        key = ServiceKey(found["protocol"], address, found["port"])
    if family not in (None, key.family):
        raise Invalid(f"family contradicts address {address}", "family")
    return key


@contextmanager
def _blamed(parts: tuple[str, ...]) -> Iterator[None]:
    """What pyipvs refuses of the whole names no field; its sentence speaks of one."""
    try:
        yield
    except Invalid as error:
        if error.field is None:
            part = next((part for part in parts if part in str(error)), None)
            error.field = "flags" if part == "flag" else part
        raise


def _refuse_unsettable(document: Document, place: str, unsettable: tuple[str, ...]) -> None:
    for part in unsettable:
        if part in document:
            raise Invalid(f"{place}{part} is not known here", f"{place}{part}")


def _objects(value: object) -> Iterator[tuple[str, Document]]:
    for name, row in value.items() if isinstance(value, dict) else ():
        if isinstance(row, dict):
            yield f"destinations.{name}", row


def patched(document: Document, patch: Document) -> Document:
    """The document after a merge patch, in which a check of another kind takes the place of the one there is: what one
    kind asks means nothing to another."""
    result: Document = merged(_without_other_check(document, patch), patch)
    return result


def _without_other_check(document: Document, patch: object) -> Document:
    if not isinstance(patch, dict):
        return document
    result = dict(document)
    check, wanted = document.get("check"), patch.get("check")
    if isinstance(check, dict) and isinstance(wanted, dict) and wanted.get("kind", check["kind"]) != check["kind"]:
        del result["check"]
    inside = patch.get("destinations")
    if isinstance(inside, dict):
        rows = document.get("destinations", {})
        result["destinations"] = {name: _without_other_check(row, inside.get(name)) for name, row in rows.items()}
    return result


def to_allocate(key: ServiceKey) -> bool:
    """Whether the service's address is left to us."""
    return key.address in _ANY.values()


# Writing


def service_document(service: Service) -> Document:
    """What an operator may set of a service; destinations that drain are gone from it."""
    document = encode_service(service)
    for part in ("key", *NOT_SETTINGS):
        document.pop(part, None)
    kept = {name: row for name, row in document.pop("destinations", {}).items() if "drain_s" not in row}
    return {"name": service.name, **_key_document(service.key), **document, "destinations": kept}


def _key_document(key: ServiceKey) -> Document:
    if key.mark is not None:
        family = {"family": "ipv6"} if key.family is Family.INET6 else {}
        return {"fwmark": key.mark, **family}
    return {"protocol": str(key.protocol), "address": key.address, "port": key.port}


def shown_service(view: ServiceView) -> Document:
    """A service of ours with its status."""
    assert view.service is not None, "foreign services have no document"
    status = {
        "key": str(view.key),
        "revision": view.service.revision,
        "applied": view.applied,
        "reason": view.reason,
        "draining": view.draining,
        "excluded": sorted(view.service.excluded),
        "destinations": {row.name: destination_status(row) for row in view.destinations},
    }
    return {**service_document(view.service), "status": status}


def destination_status(row: DestinationView) -> Document:
    """What becomes of a destination; `weight` is the kernel's, `wanted` what it should be (null: not in the kernel)."""
    left_s = row.drain_left_s
    return {
        "address": row.address,
        "port": row.port,
        "method": str(row.method),
        "origin": row.origin,
        "state": row.state,
        "reason": row.reason,
        "applied": row.applied,
        "weight": row.weight,
        "wanted": row.wanted,
        "active": row.active,
        "inactive": row.inactive,
        "drain_left_s": None if left_s is None else round(left_s, 1),
    }


def shown_destination(view: ServiceView, row: DestinationView) -> Document:
    """A destination, whoever brought it, with its status."""
    own = view.service.destinations.get(row.name) if view.service is not None else None
    asked = own or row.destination or Destination(row.name, row.address, row.port, row.weight, row.method)
    document = encode_destination(asked)
    document.pop("drain_s", None)
    return {"name": row.name, **document, "status": destination_status(row)}


def shown_foreign(view: ServiceView) -> Document:
    """A service of the kernel that is not ours."""
    kernel = view.kernel or pyipvs.Service(view.key, view.scheduler)
    return {
        "key": str(view.key),
        "scheduler": kernel.scheduler,
        "flags": [flag.name.lower() for flag in kernel.flags if flag.name],
        "persistence_s": kernel.persistence_s,
        "netmask": kernel.netmask,
        "persistence_engine": kernel.persistence_engine,
        "destinations": [_foreign_destination(row) for row in view.destinations],
    }


def _foreign_destination(row: DestinationView) -> Document:
    where = {"address": row.address, "port": row.port, "method": str(row.method), "weight": row.weight}
    return {**where, "active": row.active, "inactive": row.inactive}


def drains(snapshot: Snapshot) -> list[tuple[str, Document]]:
    """What drains, with its place: services (`destination` null) and destinations, with their connections and the time that
    is left."""
    rows = (row for view in snapshot.services for row in _drains_of(view))
    return [(f"{row['service']}/{row['destination'] or ''}", row) for row in rows]


def _drains_of(view: ServiceView) -> Iterator[Document]:
    draining = [row for row in view.destinations if row.drain_left_s is not None]
    if view.draining:
        left_s = max((row.drain_left_s or 0.0 for row in draining), default=0.0)
        connections = sum(row.active for row in draining), sum(row.inactive for row in draining)
        yield _drain(view.name, None, "an operator deleted it", *connections, left_s)
    for row in draining:
        yield _drain(view.name, row.name, row.reason, row.active, row.inactive, row.drain_left_s or 0.0)


def _drain(service: str, name: str | None, reason: str, active: int, inactive: int, left_s: float) -> Document:
    left = {"active": active, "inactive": inactive, "left_s": round(left_s, 1)}
    return {"service": service, "destination": name, "reason": reason, **left}


def in_order(views: Iterable[ServiceView]) -> list[ServiceView]:
    """The services of ours, by their names."""
    return sorted((view for view in views if not view.foreign), key=lambda view: view.name)


def by_name(snapshot: Snapshot) -> Mapping[str, ServiceView]:
    """The services of ours."""
    return {view.name: view for view in snapshot.services if not view.foreign}
