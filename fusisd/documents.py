"""Intent as plain data and back: for the store's rows, for export and import, and for requests that carry a whole object.

A key is left out when it would say "none of that" (no check, no flags, no drain). What is a choice (scheduler, weight, a
check's interval) is always written, for a later fusisd may choose otherwise and must not change what runs here. Reading
is strict (fusisd.fields) and asks what the kernel can hold, since an adopted service may be odd; what an operator may
ask for is fusisd.state's to say.
Does not: do I/O, or compare with other intent.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyipvs
from fusisd.checks import CHECK, encode_check
from fusisd.errors import Invalid
from fusisd.fields import (
    Reader,
    by_name,
    list_of,
    matching,
    object_of,
    object_schema,
    one_of,
    only_once,
    parsed,
    read_object,
    refuse,
    refused_at,
    seconds,
    text,
    text_as,
    whole,
    words_of,
)
from fusisd.model import (
    FORWARDING_METHODS,
    NAME_PATTERN,
    Announce,
    Destination,
    Intent,
    Service,
    Tier,
    checked_address,
    checked_name,
)
from pyipvs import ServiceFlags, ServiceKey, Timeouts, Tunnel, TunnelType

FILE_SCHEMA = 1
"""Of an exported file: counts up when an older fusisd could not read what a newer writes."""

_MOST = 2**31 - 1  # the kernel's int
_DRAIN = seconds(0, 86400)
_PORT = whole(0, 65535)
_WORD = matching(r"[A-Za-z0-9_-]{1,15}", "must be 1 to 15 letters, digits, _ or -")  # as pyipvs: a module's name


NAME = text_as(checked_name, pattern=f"^{NAME_PATTERN}$")
"""What a service or a destination may be called."""
ADDRESS = text_as(checked_address, anyOf=[{"format": "ipv4"}, {"format": "ipv6"}])
"""A unicast address."""


# Services and destinations


def _written(document: dict[str, Any]) -> dict[str, Any]:
    """Without what says "none of that"; a number stays, 0 too."""
    return {key: value for key, value in document.items() if value is not None and value not in ("", [], {})}


def encode_destination(destination: Destination) -> dict[str, Any]:
    """A destination's document; its name is the key under which it stands."""
    tunnel = destination.tunnel
    return _written(
        {
            "address": destination.address,
            "port": destination.port,
            "weight": destination.weight,
            "method": str(destination.method),
            "upper_threshold": destination.upper_threshold or None,
            "lower_threshold": destination.lower_threshold or None,
            "tunnel": None if tunnel is None else _encode_tunnel(tunnel),
            "tier": None if destination.tier is Tier.PRIMARY else destination.tier.value,
            "check": None if destination.check is None else encode_check(destination.check),
            "drain_s": destination.drain_s,
            "managed_by": destination.managed_by,
        }
    )


def _encode_tunnel(tunnel: Tunnel) -> dict[str, Any]:
    return _written({"type": str(tunnel.type), "port": tunnel.port or None, "flags": tunnel.flags or None})


def _decode_tunnel(value: object, place: str) -> Tunnel:
    found = _TUNNEL(value, place)
    with refused_at(place):
        return Tunnel(**found)


_TUNNEL = object_of(
    {"type": one_of({str(kind): kind for kind in TunnelType}), "port": _PORT, "flags": whole(0, 3)}, ("type",)
)
DESTINATION_FIELDS: dict[str, Reader[Any]] = {
    "address": ADDRESS,
    "port": _PORT,
    "weight": whole(0, _MOST),
    "method": one_of({str(method): method for method in FORWARDING_METHODS}),
    "upper_threshold": whole(0, 2**32 - 1),
    "lower_threshold": whole(0, 2**32 - 1),
    "tunnel": Reader(_decode_tunnel, _TUNNEL.schema),
    "tier": one_of(words_of(Tier)),
    "check": CHECK,
    "drain_s": _DRAIN,
    "managed_by": NAME,
}
DESTINATION_NEEDS = ("address", "port")


def decode_destination(name: str, document: object, place: str = "") -> Destination:
    """The destination of a document; only `address` and `port` must be there. Raises Invalid."""
    found = read_object(document, place, DESTINATION_FIELDS, DESTINATION_NEEDS)
    destination = Destination(checked_name(name, place or "name"), **found)
    with refused_at(place):
        pyipvs.Destination(
            destination.address,
            destination.port,
            destination.weight,
            destination.method,
            destination.upper_threshold,
            destination.lower_threshold,
            destination.tunnel,
        )
    return destination


def encode_service(service: Service) -> dict[str, Any]:
    """A service's document; its name is the key under which it stands, and its revision is the store's."""
    destinations = service.destinations
    return _written(
        {
            "key": str(service.key),
            "scheduler": service.scheduler,
            "flags": [flag.name.lower() for flag in service.flags if flag.name],
            "persistence_s": service.persistence_s or None,
            "netmask": service.netmask,
            "persistence_engine": service.persistence_engine,
            "vip": None if service.vip_managed else "external",
            "announce": None if service.announce is Announce.ALWAYS else service.announce.value,
            "check": None if service.check is None else encode_check(service.check),
            "drain_s": service.drain_s,
            "managed_by": service.managed_by,
            "destinations": {name: encode_destination(destinations[name]) for name in sorted(destinations)},
            "excluded": sorted(service.excluded),
        }
    )


def _parse_key(said: str, place: str) -> ServiceKey:
    with refused_at(place):
        return ServiceKey.parse(said)


def _decode_flags(value: object, place: str) -> ServiceFlags:
    return ServiceFlags(sum(set(_FLAG_LIST(value, place))))


def _decode_destinations(value: object, place: str) -> dict[str, Destination]:
    found = _BY_NAME(value, place)
    only_once(((row.name, f"{row.address} port {row.port}") for row in found.values()), place)
    return found


KEY = text_as(_parse_key, examples=["tcp/10.0.0.1:80", "udp/[fd00::1]:53", "fwmark/7", "fwmark6/7"])
"""What tells services apart in the kernel, as one text."""
_BY_NAME = by_name(decode_destination, NAME.schema, object_schema(DESTINATION_FIELDS, DESTINATION_NEEDS))
_FLAG_LIST = list_of(one_of({(flag.name or "").lower(): flag for flag in ServiceFlags}))
SERVICE_FIELDS: dict[str, Reader[Any]] = {
    "key": KEY,
    "scheduler": _WORD,
    "flags": Reader(_decode_flags, _FLAG_LIST.schema),
    "persistence_s": whole(0, _MOST),
    "netmask": whole(1, 128),
    "persistence_engine": _WORD,
    "vip": one_of({"managed": True, "external": False}),
    "announce": one_of(words_of(Announce)),
    "check": CHECK,
    "drain_s": _DRAIN,
    "managed_by": NAME,
    "destinations": Reader(_decode_destinations, _BY_NAME.schema),
    "excluded": list_of(text),
}


def decode_service(name: str, document: object, place: str = "") -> Service:
    """The service of a document, every part checked; only `key` must be there. Raises Invalid."""
    found = read_object(document, place, SERVICE_FIELDS, ("key",))
    managed, excluded = found.pop("vip", True), frozenset(found.pop("excluded", ()))
    service = Service(checked_name(name, place or "name"), **found, excluded=excluded, vip_managed=managed)
    with refused_at(place):
        pyipvs.Service(
            service.key,
            service.scheduler,
            service.flags,
            service.persistence_s,
            service.netmask,
            service.persistence_engine,
        )
    return service


# Globals and the whole


def encode_timeouts(timeouts: Timeouts) -> dict[str, Any]:
    """The timeouts that are set."""
    return {name: getattr(timeouts, name) for name in _TIMEOUTS if getattr(timeouts, name)}


_TIMEOUTS: dict[str, Reader[Any]] = {name: whole(0, _MOST) for name in ("tcp_s", "tcp_fin_s", "udp_s")}


def decode_timeouts(document: object, place: str = "") -> Timeouts:
    """Seconds; one left out stays as the kernel has it. Raises Invalid."""
    found = read_object(document, place, _TIMEOUTS)
    with refused_at(place):
        return Timeouts(**found)


TIMEOUTS = Reader(decode_timeouts, object_schema(_TIMEOUTS))
PARTIAL_TIMEOUTS = object_of(_TIMEOUTS)
"""Those that are there, by name, for `with_timeouts`."""


def with_timeouts(timeouts: Timeouts, some: Mapping[str, int]) -> Timeouts:
    """The timeouts with some of them changed. Raises Invalid."""
    with refused_at("timeouts"):
        return replace(timeouts, **some)


_NETWORKS = list_of(text, most=1000)


def decode_ranges(document: object, place: str = "ranges") -> tuple[str, ...]:
    """Networks that VIPs are allocated from, in canonical text, no two with an address in common. Raises Invalid."""
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for index, given in enumerate(_NETWORKS(document, place)):
        with refused_at(f"{place}[{index}]"):
            network = ipaddress.ip_network(given)
        if network.is_multicast:
            refuse(given, f"{place}[{index}]", "must be of unicast addresses")
        for other in networks:
            if network.version == other.version and network.overlaps(other):
                refuse(given, f"{place}[{index}]", f"overlaps {other}")
        networks.append(network)
    return tuple(map(str, networks))


RANGES = Reader(decode_ranges, _NETWORKS.schema)


def encode_intent(intent: Intent) -> dict[str, Any]:
    """All of it, without revisions: those count the commits of one store."""
    services = {name: encode_service(intent.services[name]) for name in sorted(intent.services)}
    timeouts = encode_timeouts(intent.timeouts)
    return {"schema": FILE_SCHEMA, "timeouts": timeouts, "ranges": list(intent.ranges), "services": services}


def _decode_schema(value: object, place: str) -> int:
    schema = whole(1, _MOST)(value, place)
    if schema > FILE_SCHEMA:
        raise Invalid(f"{place} {schema} is of a newer fusisd: this one reads up to {FILE_SCHEMA}", place)
    return schema


def _decode_services(value: object, place: str) -> dict[str, Service]:
    found = _SERVICES(value, place)
    only_once(((service.name, service.key) for service in found.values()), place)
    return found


_SERVICES = by_name(decode_service, NAME.schema, object_schema(SERVICE_FIELDS, ("key",)))
_INTENT: dict[str, Reader[Any]] = {
    "schema": Reader(_decode_schema, whole(1, FILE_SCHEMA).schema),
    "timeouts": TIMEOUTS,
    "ranges": RANGES,
    "services": Reader(_decode_services, _SERVICES.schema),
}


def decode_intent(document: object) -> Intent:
    """Intent of revision 0; names and keys are unique. Raises Invalid, which names the place."""
    if isinstance(document, dict) and "schema" in document:
        _decode_schema(document["schema"], "schema")  # first: what else is strange follows from it
    found = read_object(document, "", _INTENT, ("schema",))
    del found["schema"]
    return Intent(**found)


INTENT = Reader(lambda document, place: decode_intent(document), object_schema(_INTENT, ("schema",)))
"""A whole file."""


def export_intent(intent: Intent) -> str:
    """A file's text, for people and version control: the same intent gives the same bytes. ASCII."""
    return json.dumps(encode_intent(intent), indent=2) + "\n"


def import_intent(text: str) -> Intent:
    """The intent of a file's text, revision 0. Raises Invalid, which names the line or the place."""
    return decode_intent(parsed(text))
