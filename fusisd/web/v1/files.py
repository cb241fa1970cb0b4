"""The routes of a whole table as a file: what it would change, and make it so.

Each object carries the name of the file that made it (`managed_by`): what is taken out of the file is removed by the next
apply, and what the file did not make is removed with `prune` only.
Does not: decide what may be (the core does), or read a file from disk (fusisctl does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bottle import HTTPResponse

from fusisd import state
from fusisd.commands import Together
from fusisd.documents import NAME, RANGES, TIMEOUTS
from fusisd.errors import Stale
from fusisd.fields import Reader, by_name, object_of, only_once, refuse, whole, within
from fusisd.model import Intent, Service
from fusisd.ports import Core, Snapshot
from fusisd.web.v1 import changes, differences, objects, shapes
from fusisd.web.v1.objects import Document, to_allocate
from fusisd.web.v1.routes import SWITCH, Body, Change, Route, in_query
from fusisd.web.v1.services import answer


def _read_service(name: str, value: object, place: str) -> Service:
    if not isinstance(value, dict):
        refuse(value, place, "must be an object")
    with within(place):
        return objects.read_service(name, value)


def _read_services(value: object, place: str) -> Mapping[str, Service]:
    found = _BY_NAME(value, place)
    only_once(((one.name, one.key) for one in found.values() if not to_allocate(one.key)), place)
    return found


_BY_NAME = by_name(_read_service, NAME.schema, shapes.SERVICE_ASKED)
FILE = object_of(
    {
        "managed_by": NAME,
        "timeouts": TIMEOUTS,
        "ranges": RANGES,
        "services": Reader(_read_services, _BY_NAME.schema),
    },
    ("managed_by", "services"),
)
_PRUNE: dict[str, Reader[Any]] = {"prune": SWITCH}
_REVISION: dict[str, Reader[Any]] = {"revision": in_query(whole(0, 2**53))}


class Files:
    """The routes of this room over one core."""

    def __init__(self, core: Core) -> None:
        """The core is asked anew for each request."""
        self._core = core

    def routes(self) -> list[Route]:
        """What can be asked."""
        return [
            Route("POST", "/v1/plan", self.plan, {200: shapes.PLAN}, _PRUNE, Body(FILE), plans=False),
            Route("POST", "/v1/apply", self.apply, {200: shapes.APPLIED}, _PRUNE | _REVISION, Body(FILE)),
        ]

    def plan(self, asked: Document, prune: bool = False) -> Change:
        """What applying a whole table would change; nothing is."""
        return self._change(asked, prune, dry=True)

    def apply(self, asked: Document, prune: bool = False, revision: int | None = None) -> Change:
        """Make a whole table so, all of it or nothing. `revision`: only if nothing has changed since the plan at it."""
        now = self._core.snapshot().intent.revision
        if revision not in (None, now):
            raise Stale(f"the table is at revision {now}, the plan was made at {revision}: plan again")
        return self._change(asked, prune)

    def _change(self, asked: Document, prune: bool, dry: bool = False) -> Change:
        intent = self._core.snapshot().intent
        with changes.told_of(""):
            steps = changes.tried(intent, changes.apply_of(asked, intent, prune))
        made = tuple(step.command for step in steps if step.outcome != "unchanged")
        wanted = state.apply(intent, Together(made))

        def told(after: Snapshot) -> HTTPResponse:
            """What was asked for, and not what is there: a drain may be over by now."""
            return answer({"changes": list(differences.differences(intent, _allocated(wanted, after.intent)))})

        return Change(made, told, dry=dry)


def _allocated(wanted: Intent, there: Intent) -> Intent:
    """With the addresses that the door allocated."""
    found = {name: there.services.get(name, one).key for name, one in wanted.services.items() if to_allocate(one.key)}
    services = {name: replace(one, key=found.get(name, one.key)) for name, one in wanted.services.items()}
    return replace(wanted, services=services)
