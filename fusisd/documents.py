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
from typing import Any

import pyipvs
from fusisd.errors import Invalid
from fusisd.fields import (
    Reader,
    by_name,
    list_of,
    matching,
    one_of,
    only_once,
    parsed,
    read_object,
    refuse,
    refused_at,
    seconds,
    short_text,
    text,
    truth,
    whole,
    words_of,
)
from fusisd.model import (
    Announce,
    CheckKind,
    CheckSettings,
    CheckSpec,
    Destination,
    Intent,
    Service,
    Tier,
    checked_address,
    checked_name,
)
from pyipvs import ForwardingMethod, ServiceFlags, ServiceKey, Timeouts, Tunnel, TunnelType

FILE_SCHEMA = 1
"""Of an exported file: counts up when an older fusisd could not read what a newer writes."""

_MOST = 2**31 - 1  # the kernel's int
_DRAIN = seconds(0, 86400)
_PORT = whole(0, 65535)
_WORD = matching(r"[A-Za-z0-9_-]{1,15}", "must be 1 to 15 letters, digits, _ or -")  # as pyipvs: a module's name


# Checks


def _decode_codes(value: object, place: str) -> tuple[int, int]:
    low, _, high = _CODES(value, place).partition("-")
    if int(high or low) < int(low):
        refuse(value, place, "must begin with the lower code")
    return int(low), int(high or low)


def _absolute(value: object, place: str) -> tuple[str, ...]:
    argv = list_of(short_text(4096), 1, 64)(value, place)
    return argv if argv[0].startswith("/") else refuse(value, place, "must begin with the program's absolute path")


_CODES = matching(r"[1-5][0-9]{2}(-[1-5][0-9]{2})?", "must be a status code, or two as 200-399")
_HEX = matching(r"([0-9a-fA-F]{2}){0,1024}", "must be at most 1024 bytes as hexadecimal digits")
_HOST = matching(r"[A-Za-z0-9._:\[\]-]{0,255}", "must be a host's name or address")
_DNS_NAME = matching(
    r"(?=.{1,254}\Z)(\.|([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?)", "must be a domain name in ASCII (RFC 1035)"
)
_RECORDS = ("A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT")
_HTTP: dict[str, Reader[Any]] = {
    "method": matching(r"[A-Z]{1,16}", "must be a method in capitals"),
    "path": matching(r"/[!-~]{0,2047}", "must begin with / and be visible ASCII without spaces"),
    "host": _HOST,
    "codes": list_of(_decode_codes, 1, 100),
    "body": short_text(1024),
}
_OWN: dict[CheckKind, dict[str, Reader[Any]]] = {
    CheckKind.NONE: {},
    CheckKind.TCP: {},
    CheckKind.HTTP: _HTTP,
    CheckKind.HTTPS: {**_HTTP, "tls_name": _HOST},
    CheckKind.UDP: {"send": _HEX, "expect": _HEX},
    CheckKind.DNS: {"name": _DNS_NAME, "record": one_of({record: record for record in _RECORDS})},
    CheckKind.SCRIPT: {"argv": _absolute},
}
"""What each kind of check may be told besides port and timing."""

_PATH_CHECK = {"path_check": truth}
_NEEDED = {CheckKind.DNS: ("name",), CheckKind.SCRIPT: ("argv",)}
_CHOICES = frozenset({"method", "path", "codes", "record"})  # written even when they are the default
_TIMING: dict[str, Reader[Any]] = {
    "interval_s": seconds(0.05, 86400),
    "timeout_s": seconds(0.01, 3600),
    "rise": whole(1, 1000),
    "fall": whole(1, 1000),
    "fast_interval_s": seconds(0.05, 86400),
}
_CHECK_KIND: Reader[CheckKind] = one_of(words_of(CheckKind))
_ASKED = {
    kind: {"kind": _CHECK_KIND, "port": whole(1, 65535), **_TIMING, **_PATH_CHECK, **own} for kind, own in _OWN.items()
}


def encode_check(check: CheckSpec) -> dict[str, Any]:
    """A check's document: its kind, its timing, and what this kind asks."""
    document: dict[str, Any] = {"kind": check.kind.value}
    if check.port is not None:
        document["port"] = check.port
    for name in CheckSpec.__dataclass_fields__:
        value = getattr(check, name)
        chosen = name in _CHOICES and name in _OWN[check.kind]
        if name not in ("kind", "port", "timing") and (chosen or value != getattr(_NO_CHECK, name)):
            document[name] = _plain(name, value)
    return document | {name: getattr(check.timing, name) for name in _TIMING}


_NO_CHECK = CheckSpec()


def _plain(name: str, value: Any) -> Any:
    if name == "codes":
        return [str(low) if low == high else f"{low}-{high}" for low, high in value]
    return list(value) if isinstance(value, tuple) else value


def decode_check(document: object, place: str = "") -> CheckSpec:
    """The check of a document; a key that its kind does not ask for is refused. Raises Invalid."""
    if not isinstance(document, dict):
        refuse(document, place, "must be an object")
    kind = _CHECK_KIND(document.get("kind"), f"{place}.kind".lstrip("."))
    hint = f" for a check of kind {kind.value}"
    found = read_object(document, place, _ASKED[kind], ("kind", *_NEEDED.get(kind, ())), hint)
    timing = {name: found.pop(name) for name in _TIMING if name in found}
    return CheckSpec(**found, timing=CheckSettings(**timing))


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
        }
    )


def _encode_tunnel(tunnel: Tunnel) -> dict[str, Any]:
    return _written({"type": str(tunnel.type), "port": tunnel.port or None, "flags": tunnel.flags or None})


def _decode_tunnel(value: object, place: str) -> Tunnel:
    found = read_object(value, place, _TUNNEL, ("type",))
    with refused_at(place):
        return Tunnel(**found)


def _address(value: object, place: str) -> str:
    return checked_address(text(value, place), place)


_TUNNEL: dict[str, Reader[Any]] = {
    "type": one_of({str(kind): kind for kind in TunnelType}),
    "port": _PORT,
    "flags": whole(0, 3),
}
_DESTINATION: dict[str, Reader[Any]] = {
    "address": _address,
    "port": _PORT,
    "weight": whole(0, _MOST),
    "method": one_of({str(method): method for method in ForwardingMethod}),
    "upper_threshold": whole(0, 2**32 - 1),
    "lower_threshold": whole(0, 2**32 - 1),
    "tunnel": _decode_tunnel,
    "tier": one_of(words_of(Tier)),
    "check": decode_check,
    "drain_s": _DRAIN,
}


def decode_destination(name: str, document: object, place: str = "") -> Destination:
    """The destination of a document; only `address` and `port` must be there. Raises Invalid."""
    found = read_object(document, place, _DESTINATION, ("address", "port"))
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
            "destinations": {name: encode_destination(destinations[name]) for name in sorted(destinations)},
            "excluded": sorted(service.excluded),
        }
    )


def _decode_key(value: object, place: str) -> ServiceKey:
    with refused_at(place):
        return ServiceKey.parse(text(value, place))


def _decode_flags(value: object, place: str) -> ServiceFlags:
    return ServiceFlags(sum(set(_FLAG_LIST(value, place))))


def _decode_destinations(value: object, place: str) -> dict[str, Destination]:
    found = by_name(decode_destination)(value, place)
    only_once(((row.name, f"{row.address} port {row.port}") for row in found.values()), place)
    return found


_FLAG_LIST = list_of(one_of({(flag.name or "").lower(): flag for flag in ServiceFlags}))
_SERVICE: dict[str, Reader[Any]] = {
    "key": _decode_key,
    "scheduler": _WORD,
    "flags": _decode_flags,
    "persistence_s": whole(0, _MOST),
    "netmask": whole(1, 128),
    "persistence_engine": _WORD,
    "vip": one_of({"managed": True, "external": False}),
    "announce": one_of(words_of(Announce)),
    "check": decode_check,
    "drain_s": _DRAIN,
    "destinations": _decode_destinations,
    "excluded": list_of(text),
}


def decode_service(name: str, document: object, place: str = "") -> Service:
    """The service of a document, every part checked; only `key` must be there. Raises Invalid."""
    found = read_object(document, place, _SERVICE, ("key",))
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


def decode_ranges(document: object, place: str = "ranges") -> tuple[str, ...]:
    """Networks that VIPs are allocated from, in canonical text, no two with an address in common. Raises Invalid."""
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for index, given in enumerate(list_of(text, most=1000)(document, place)):
        with refused_at(f"{place}[{index}]"):
            network = ipaddress.ip_network(given)
        if network.is_multicast:
            refuse(given, f"{place}[{index}]", "must be of unicast addresses")
        for other in networks:
            if network.version == other.version and network.overlaps(other):
                refuse(given, f"{place}[{index}]", f"overlaps {other}")
        networks.append(network)
    return tuple(map(str, networks))


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
    found = by_name(decode_service)(value, place)
    only_once(((service.name, service.key) for service in found.values()), place)
    return found


_INTENT: dict[str, Reader[Any]] = {
    "schema": _decode_schema,
    "timeouts": decode_timeouts,
    "ranges": decode_ranges,
    "services": _decode_services,
}


def decode_intent(document: object) -> Intent:
    """Intent of revision 0; names and keys are unique. Raises Invalid, which names the place."""
    if isinstance(document, dict) and "schema" in document:
        _decode_schema(document["schema"], "schema")  # first: what else is strange follows from it
    found = read_object(document, "", _INTENT, ("schema",))
    del found["schema"]
    return Intent(**found)


def export_intent(intent: Intent) -> str:
    """A file's text, for people and version control: the same intent gives the same bytes. ASCII."""
    return json.dumps(encode_intent(intent), indent=2) + "\n"


def import_intent(text: str) -> Intent:
    """The intent of a file's text, revision 0. Raises Invalid, which names the line or the place."""
    return decode_intent(parsed(text))
