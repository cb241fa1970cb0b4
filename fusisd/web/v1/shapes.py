"""The shapes of requests and answers as JSON Schemas: of requests from the tables that read them, of answers beside them.

In a request null says "none of that", so any member that need not be there may be null.
Does not: validate (the readers do).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusisd.checks import CHECK
from fusisd.documents import ADDRESS, DESTINATION_FIELDS, DESTINATION_NEEDS, KEY, NAME, RANGES, SERVICE_FIELDS, TIMEOUTS
from fusisd.fields import Schema, by_name, object_schema, text
from fusisd.model import CheckState, NodeStatus
from fusisd.web.v1.objects import KEY_FIELDS, NOT_SETTINGS
from pyipvs import Stats

TEXT = text.schema
TEXTS: Schema = {"type": "array", "items": TEXT}
TRUTH: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
NULL: Schema = {"type": "null"}
ANY_OBJECT: Schema = {"type": "object"}
NODE_NAME = TEXT


def or_null(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, NULL]} if schema else schema


def shape(members: Mapping[str, Schema], may: Mapping[str, Schema] | None = None) -> Schema:
    """An object with exactly these members; those of `may` may be left out."""
    may = may or {}
    return {"type": "object", "properties": {**members, **may}, "required": list(members), "additionalProperties": False}


def named(schema: Schema) -> Schema:
    """An object whose keys are names."""
    return {"type": "object", "additionalProperties": schema}


def listed(member: str, row: Schema) -> Schema:
    """A page of a collection."""
    return shape({member: {"type": "array", "items": row}, "next": or_null(TEXT)})


# Requests


def with_nulls(schema: Schema) -> Schema:
    """As a request may write it."""
    if schema is CHECK.schema:
        return CHECK_ASKED
    if isinstance(inside := schema.get("additionalProperties"), Mapping):
        return {**schema, "additionalProperties": or_null(with_nulls(inside))}
    if "properties" not in schema:
        return schema
    needed = schema["required"]
    members = {name: with_nulls(one) for name, one in schema["properties"].items()}
    return {**schema, "properties": {name: one if name in needed else or_null(one) for name, one in members.items()}}


CHECK_ASKED: Schema = {"oneOf": [with_nulls(kind) for kind in CHECK.schema["oneOf"]]}


def as_patch(schema: Schema) -> Schema:
    """As a merge patch may write it: nothing need be there, and any kind of check's members may be."""
    if schema is CHECK.schema:
        return ANY_OBJECT
    if isinstance(inside := schema.get("additionalProperties"), Mapping):
        return {**schema, "additionalProperties": or_null(as_patch(inside))}
    if "properties" not in schema:
        return schema
    members = {name: or_null(as_patch(one)) for name, one in schema["properties"].items()}
    return {**schema, "properties": members, "required": []}


_DESTINATION = {name: reader for name, reader in DESTINATION_FIELDS.items() if name != "drain_s"}
_DESTINATIONS = by_name(lambda name, value, place: value, NAME.schema, object_schema(_DESTINATION, DESTINATION_NEEDS))
_SETTINGS = {name: reader for name, reader in SERVICE_FIELDS.items() if name not in ("key", *NOT_SETTINGS)}
_SETTINGS["destinations"] = _DESTINATIONS
_BESIDE: dict[str, Schema] = {"name": NAME.schema, "status": {}}
"""What a document carries besides what is asked for: its name is that of the path, its status is passed over."""


def _object(fields: Mapping[str, Any], *needed: str) -> Schema:
    schema = object_schema(fields, needed)
    return {**schema, "properties": {**_BESIDE, **schema["properties"]}}


def _way(needed: tuple[str, ...], may: tuple[str, ...] = ()) -> Schema:
    """One way to say a service's key: by these parts, and none of the others."""
    parts = {name: KEY_FIELDS[name].schema for name in (*needed, *may)}
    others = dict.fromkeys(KEY_FIELDS, NULL) | {name: or_null(parts[name]) for name in may}
    return {"required": list(needed), "properties": {**others, **{name: parts[name] for name in needed}}}


_WAYS = [_way(("protocol", "port"), ("address", "family")), _way(("fwmark",), ("family",)), _way(("key",))]


_SERVICE = {**KEY_FIELDS, **_SETTINGS}
_RS1 = {"address": "10.0.0.11", "port": 8080, "method": "nat", "weight": 2}
_WEB = {"protocol": "tcp", "address": "10.0.0.1", "port": 80, "scheduler": "wlc", "check": {"kind": "http", "path": "/up"}}
_DNS = {"key": "udp/10.0.0.1:53", "scheduler": "rr", "flags": ["one_packet"], "destinations": {"rs1": _RS1}}
SERVICE_ASKED: Schema = {**with_nulls(_object(_SERVICE)), "oneOf": _WAYS, "examples": [_WEB, _DNS]}
NEW_SERVICE: Schema = {**with_nulls(_object(_SERVICE, "name")), "oneOf": _WAYS, "examples": [{"name": "web", **_WEB}]}
SERVICE_PATCH: Schema = {**as_patch(_object(_SERVICE)), "examples": [{"scheduler": "mh", "check": None}]}
DESTINATION_ASKED: Schema = {**with_nulls(_object(_DESTINATION, *DESTINATION_NEEDS)), "examples": [_RS1]}
NEW_DESTINATION: Schema = {
    **with_nulls(_object(_DESTINATION, "name", *DESTINATION_NEEDS)),
    "examples": [{"name": "rs1", **_RS1}],
}
DESTINATION_PATCH: Schema = {**as_patch(_object(_DESTINATION)), "examples": [{"weight": 0}]}


# Answers

_WEIGHT: Schema = COUNT
_LEFT: Schema = or_null(NUMBER)
_PLACE: dict[str, Schema] = {"address": ADDRESS.schema, "port": DESTINATION_FIELDS["port"].schema}
_METHOD: Schema = DESTINATION_FIELDS["method"].schema
_CONNECTIONS: dict[str, Schema] = {"active": COUNT, "inactive": COUNT}
DESTINATION_STATUS = shape(
    {
        **_PLACE,
        "method": _METHOD,
        "origin": {"enum": ["operator", "serf"]},
        "state": TEXT,
        "reason": TEXT,
        "applied": TRUTH,
        "weight": _WEIGHT,
        "wanted": or_null(_WEIGHT),
        **_CONNECTIONS,
        "drain_left_s": _LEFT,
    }
)
SERVICE_STATUS = shape(
    {
        "key": KEY.schema,
        "revision": COUNT,
        "applied": TRUTH,
        "reason": TEXT,
        "draining": TRUTH,
        "excluded": TEXTS,
        "destinations": named(DESTINATION_STATUS),
    }
)


def _shown(fields: Mapping[str, Any], always: tuple[str, ...], status: Schema) -> Schema:
    members = {name: reader.schema for name, reader in fields.items()}
    must = {"name": NAME.schema, **{name: members.pop(name) for name in always}, "status": status}
    return shape(must, members)


SERVICE = _shown(
    {**{name: reader for name, reader in KEY_FIELDS.items() if name != "key"}, **_SETTINGS},
    ("scheduler", "destinations"),
    SERVICE_STATUS,
)
DESTINATION = _shown(_DESTINATION, ("address", "port", "weight", "method"), DESTINATION_STATUS)
DRAIN = shape({"service": TEXT, "destination": or_null(TEXT), "reason": TEXT, **_CONNECTIONS, "left_s": NUMBER})
FOREIGN = shape(
    {
        "key": KEY.schema,
        "scheduler": TEXT,
        "flags": TEXTS,
        "persistence_s": COUNT,
        "netmask": or_null(COUNT),
        "persistence_engine": or_null(TEXT),
        "destinations": {
            "type": "array",
            "items": shape({**_PLACE, "method": TEXT, "weight": _WEIGHT, **_CONNECTIONS}),
        },
    }
)
_EVENT_OF: dict[str, Schema] = {name: or_null(TEXT) for name in ("service", "destination", "node", "cause", "who")}
EVENT = shape(
    {"id": TEXT, "time": {"type": "string", "format": "date-time"}, "monotonic_s": NUMBER, "kind": TEXT, "text": TEXT}
    | _EVENT_OF
)
EVENTS = shape({"events": {"type": "array", "items": EVENT}, "next": TEXT, "missed": TRUTH})
_TRANSITIONS: dict[str, Schema] = {"transitions": {"type": "array", "items": EVENT}}
_HEALTH: dict[str, Schema] = {
    "check": shape({"kind": TEXT, "address": TEXT, "port": COUNT}),
    "state": {"enum": [state.value for state in CheckState]},
    "reason": TEXT,
    "since_s": or_null(NUMBER),
}
_CHECKED = or_null(shape(_HEALTH))
CHECKED = shape({"service": TEXT, "destination": TEXT, **_HEALTH, "path": _CHECKED})
_DECIDED = {
    "destination": TEXT,
    "state": TEXT,
    "reason": TEXT,
    "weight": or_null(_WEIGHT),
    "wanted": or_null(_WEIGHT),
    "applied": TRUTH,
    "decided": shape({"input": TEXT, "rule": TEXT}),
    "health": _CHECKED,
    "path": _CHECKED,
}
WHY_SERVICE = shape(
    {
        "service": TEXT,
        "key": KEY.schema,
        "desired": ANY_OBJECT,
        "kernel": or_null(ANY_OBJECT),
        "applied": TRUTH,
        "reason": TEXT,
        "vip": or_null(ANY_OBJECT),
        "conflict": TRUTH,
        "refusal": TEXT,
        "warning": TEXT,
        "hold": TEXT,
        "destinations": {"type": "array", "items": shape(_DECIDED)},
        **_TRANSITIONS,
    }
)
WHY_DESTINATION = shape(
    {"service": TEXT, "desired": ANY_OBJECT, "hold": TEXT, **_DECIDED, **_TRANSITIONS}
    | dict.fromkeys(("kernel", "serf", "drain"), or_null(ANY_OBJECT))
)
NODE = shape(
    {
        "name": NODE_NAME,
        "address": TEXT,
        "status": {"enum": [status.value for status in NodeStatus]},
        "missing": TRUTH,
        "since_s": NUMBER,
        "services": TEXTS,
        "problems": TEXTS,
    }
)
NODE_WITH_EVENTS = shape({**NODE["properties"], **_TRANSITIONS})
SETTINGS = shape({"timeouts": shape(TIMEOUTS.schema["properties"]), "ranges": RANGES.schema})
STATUS: Schema = {
    "type": "object",
    "properties": {"ok": TRUTH, "generation": COUNT, "age_ms": NUMBER},
    "required": ["ok", "generation", "age_ms"],
}
_COUNTERS: dict[str, Schema] = dict.fromkeys(Stats._fields, COUNT)
_OF_SERVICE: dict[str, Schema] = {
    "statistics": or_null(shape(_COUNTERS)),
    "destinations": named(or_null(shape({**_CONNECTIONS, "persistent": COUNT, **_COUNTERS}))),
}
_READ: dict[str, Schema] = {"age_ms": or_null(NUMBER), "problem": TEXT}
STATISTICS = shape({**_READ, "services": named(shape(_OF_SERVICE))})
SERVICE_STATISTICS = shape({"name": TEXT, **_READ, **_OF_SERVICE})
PAUSED = shape({"seconds": NUMBER})
RELEASED = shape({"name": TEXT, "key": or_null(KEY.schema)})
WITHDRAWN = shape({"withdrawn": TRUTH, "vips": TEXTS, "external": TEXTS})
_OUTCOME: Schema = {"enum": ["created", "changed", "unchanged", "skipped"]}
_OBJECT: dict[str, Schema] = {"service": or_null(TEXT), "destination": or_null(TEXT)}
IMPORTED = shape({"objects": {"type": "array", "items": shape({**_OBJECT, "outcome": _OUTCOME})}})
_ACTION: Schema = {"enum": ["create", "change", "drain", "delete"]}
DIFFERENCE = shape({**_OBJECT, "action": _ACTION, "fields": named(shape({"before": {}, "after": {}}))})
_DIFFERENCES: dict[str, Schema] = {"changes": {"type": "array", "items": DIFFERENCE}}
_STEPS: Schema = {"type": "array", "items": shape({"what": TEXT, "reason": TEXT, **_OBJECT})}
PLAN = shape({**_DIFFERENCES, "steps": _STEPS, "revision": COUNT})
APPLIED = shape(_DIFFERENCES)
PROBLEM = shape({"type": TEXT, "title": TEXT, "status": COUNT, "detail": TEXT}, {"field": TEXT})
REFUSED_UNREAD = shape({"error": TEXT})
"""What is no request that HTTP allows is answered so before anybody knows its path."""

COMPONENTS: dict[str, Schema] = {
    "Check": CHECK.schema,
    "CheckAsked": CHECK_ASKED,
    "Service": SERVICE,
    "ServiceStatus": SERVICE_STATUS,
    "ServiceAsked": SERVICE_ASKED,
    "NewService": NEW_SERVICE,
    "ServicePatch": SERVICE_PATCH,
    "Destination": DESTINATION,
    "DestinationStatus": DESTINATION_STATUS,
    "DestinationAsked": DESTINATION_ASKED,
    "NewDestination": NEW_DESTINATION,
    "DestinationPatch": DESTINATION_PATCH,
    "Drain": DRAIN,
    "Foreign": FOREIGN,
    "Event": EVENT,
    "Node": NODE,
    "Difference": DIFFERENCE,
    "Plan": PLAN,
    "Problem": PROBLEM,
}
"""What has a name in the document; wherever one of these stands it is referred to."""
