"""What a change would do, as a document that can be shown like a diff: object by object, field by field, and the steps.

Does not: foresee it (the core does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fusisd.documents import encode_destination, encode_timeouts
from fusisd.model import Destination, Intent, Service
from fusisd.ports import Foreseen
from fusisd.web.v1.objects import Document, service_document

Fields = Mapping[str, Any]


def shown(foreseen: Foreseen) -> Document:
    """The answer to what would be: `changes` of what is wanted, the `steps` in the kernel and on the host, and the
    `revision` of all that this was told from."""
    changes = list(differences(foreseen.before, foreseen.after))
    steps = [
        {"what": step.what, "reason": step.reason, "service": step.service or None, "destination": step.destination or None}
        for step in foreseen.steps
    ]
    return {"changes": changes, "steps": steps, "revision": foreseen.before.revision}


def differences(before: Intent, after: Intent) -> Iterator[Document]:
    """A row for each object that is another; services in the order they are wanted in, those that go at the end."""
    settings = [_settings(intent) for intent in (before, after)]
    yield from _row(None, None, *settings)
    for name, service in after.services.items():
        old = before.services.get(name)
        yield from _row(name, None, _service(old), _service(service))
        known = {} if old is None else old.destinations
        for one in service.destinations.values():
            yield from _row(name, one.name, _destination(known.get(one.name)), _destination(one))
        for gone in [one for one in known.values() if one.name not in service.destinations]:
            yield from _row(name, gone.name, _destination(gone), {})
    for name in [name for name in before.services if name not in after.services]:
        yield from _row(name, None, _service(before.services[name]), {})


def _settings(intent: Intent) -> Document:
    return {"timeouts": encode_timeouts(intent.timeouts), "ranges": list(intent.ranges)}


def _service(service: Service | None) -> Document:
    if service is None:
        return {}
    document = service_document(service)
    del document["destinations"]
    excluded = {"excluded": sorted(service.excluded)} if service.excluded else {}
    return {**document, **excluded, "drain_s": service.drain_s}


def _destination(one: Destination | None) -> Document:
    return {} if one is None else {"drain_s": None, **encode_destination(one)}


def _row(service: str | None, destination: str | None, before: Fields, after: Fields) -> Iterator[Document]:
    """Nothing when both are the same; an object that is not there is empty."""
    if before == after:
        return
    names = [name for name in {**before, **after} if name != "name" and before.get(name) != after.get(name)]
    fields = {name: {"before": before.get(name), "after": after.get(name)} for name in names if after}
    yield {"service": service, "destination": destination, "action": _action(before, after), "fields": fields}


def _action(before: Fields, after: Fields) -> str:
    if not before:
        return "create"
    if not after:
        return "delete"
    drains = [document.get("drain_s") is not None for document in (before, after)]
    return "drain" if drains == [False, True] else "change"
