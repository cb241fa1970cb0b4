"""What a destination is asked, as plain data and back: one table of what each kind of check may be told.

Does not: ask it (health/ does).
"""

from __future__ import annotations

from typing import Any

from fusisd.fields import (
    Reader,
    Schema,
    list_of,
    matching,
    object_schema,
    one_of,
    read_object,
    refuse,
    seconds,
    short_text,
    truth,
    whole,
    words_of,
)
from fusisd.model import CheckKind, CheckSettings, CheckSpec


def _decode_codes(value: object, place: str) -> tuple[int, int]:
    low, _, high = _CODES(value, place).partition("-")
    if int(high or low) < int(low):
        refuse(value, place, "must begin with the lower code")
    return int(low), int(high or low)


def _absolute(value: object, place: str) -> tuple[str, ...]:
    argv = _ARGV(value, place)
    return argv if argv[0].startswith("/") else refuse(value, place, "must begin with the program's absolute path")


_ARGV = list_of(short_text(4096), 1, 64)
_CODES = matching(r"[1-5][0-9]{2}(-[1-5][0-9]{2})?", "must be a status code, or two as 200-399")
_HEX = matching(r"([0-9a-fA-F]{2}){0,1024}", "must be at most 1024 bytes as hexadecimal digits")
_HOST = matching(r"[A-Za-z0-9._:\[\]-]{0,255}", "must be a host's name or address")
_DNS_NAME = matching(
    r"(?=.{1,254}$)(\.|([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?)", "must be a domain name in ASCII (RFC 1035)"
)
_RECORDS = ("A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT")
_HTTP: dict[str, Reader[Any]] = {
    "method": matching(r"[A-Z]{1,16}", "must be a method in capitals"),
    "path": matching(r"/[!-~]{0,2047}", "must begin with / and be visible ASCII without spaces"),
    "host": _HOST,
    "codes": list_of(Reader(_decode_codes, _CODES.schema), 1, 100),
    "body": short_text(1024),
}
_OWN: dict[CheckKind, dict[str, Reader[Any]]] = {
    CheckKind.NONE: {},
    CheckKind.TCP: {},
    CheckKind.HTTP: _HTTP,
    CheckKind.HTTPS: {**_HTTP, "tls_name": _HOST},
    CheckKind.UDP: {"send": _HEX, "expect": _HEX},
    CheckKind.DNS: {"name": _DNS_NAME, "record": one_of({record: record for record in _RECORDS})},
    CheckKind.SCRIPT: {"argv": Reader(_absolute, _ARGV.schema)},
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
_ASKED: dict[CheckKind, dict[str, Reader[Any]]] = {
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


def _check_schema(kind: CheckKind) -> Schema:
    schema = object_schema(_ASKED[kind], ("kind", *_NEEDED.get(kind, ())))
    return {**schema, "properties": {**schema["properties"], "kind": {"const": kind.value}}}


CHECK = Reader(decode_check, {"oneOf": [_check_schema(kind) for kind in CheckKind]})
"""What is asked of destinations."""
