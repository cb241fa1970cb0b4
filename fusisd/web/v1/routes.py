"""A route as a value: how it is asked and what it answers. Routing, validation and the OpenAPI document are made of it.

A handler is given what the path, the query and the body mean, and answers; that of a change gives the commands it comes to
instead, and what to answer once they are made, so that they are made, and tried again, in one place.
Does not: know what a route is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bottle import HTTPResponse, request

from fusisd.commands import One, Together
from fusisd.errors import Stale
from fusisd.fields import Reader, Schema, one_of, text
from fusisd.ports import Core, Foreseen, Snapshot
from fusisd.web.compat import json_response, render, who
from fusisd.web.v1 import differences
from fusisd.web.v1.asked import JSON, json_object, query
from fusisd.web.v1.changes import told_of

GENERATION = "Fusis-Generation"
TRIES = 3  # a change without If-Match is made from what is there at that moment, whoever else changes it

SWITCH = one_of({"0": False, "false": False, "1": True, "true": True})
"""Yes or no, as a query says it."""
_DRY: dict[str, Reader[Any]] = {"dry_run": SWITCH}


def in_query(reader: Reader[Any]) -> Reader[Any]:
    """A number, as a query writes it."""
    return Reader(lambda value, place: reader(_number(text(value, place)), place), reader.schema)


def _number(said: str) -> object:
    """The number that is said, as JSON would say it; what is none stays as it is, for the reader to refuse."""
    if not _NUMBER.fullmatch(said):
        return said
    return int(said) if said.isdigit() else float(said)


_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: JSON of these media types, the first by choice."""

    reader: Reader[Any]
    media_types: tuple[str, ...] = (JSON,)


@dataclass(frozen=True, slots=True)
class Change:
    """What a request comes to: commands, which are made together or not at all; what is answered when they are made; and
    what was asked about (`services.web`; "": a whole file), so that a refusal names the place in it. `dry`: only told."""

    commands: Sequence[One]
    told: Callable[[Snapshot], HTTPResponse]
    of: str = ""
    dry: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """`path` as Bottle writes it; `handler` is called with the names of the path, the query and (`asked`) the body;
    `answers`: the schema of each success, None: no body. `tagged`: it answers with an ETag and heeds preconditions.
    `refusals`: status codes besides those that every route of its kind may answer. `plans`: its change can be foreseen."""

    method: str
    path: str
    handler: Callable[..., object]
    answers: Mapping[int, Schema | None]
    query: Mapping[str, Reader[Any]] = field(default_factory=dict)
    body: Body | None = None
    tagged: bool = False
    refusals: tuple[int, ...] = ()
    plans: bool = True

    @property
    def asks(self) -> Mapping[str, Reader[Any]]:
        """What the query may say: a change of what is wanted may be told only."""
        return {**self.query, **_DRY} if self.tells else self.query

    @property
    def tells(self) -> bool:
        """Whether `?dry_run=1` is understood."""
        return self.plans and self.method != "GET"

    @property
    def summary(self) -> str:
        """What it is for, in a sentence."""
        return (self.handler.__doc__ or "").partition("\n")[0]

    def answer(self, core: Core, **names: str) -> object:
        """Answer the request of this thread. Raises FusisError."""
        if not self.tagged and self.method != "GET" and request.environ.get("HTTP_IF_MATCH") is not None:
            raise Stale("If-Match is for what has a revision, which this has not: leave it out")
        asked = {**names, **query(self.asks)}
        dry = asked.pop("dry_run", False)
        if self.body is not None:
            asked["asked"] = self.body.reader(json_object(*self.body.media_types), "")
        for _ in range(TRIES - 1):
            try:
                return _made(core, self.handler(**asked), dry)
            except Stale:
                if request.environ.get("HTTP_IF_MATCH") is not None:
                    raise
        return _made(core, self.handler(**asked), dry)


def _made(core: Core, result: object, dry: bool) -> object:
    """The answer; a change is made first, or told only."""
    if not isinstance(result, Change):
        return result
    dry = dry or result.dry
    if not result.commands:
        intent = core.snapshot().intent
        return _foreseen(Foreseen(intent, intent)) if dry else result.told(core.snapshot())
    command = result.commands[0] if len(result.commands) == 1 else Together(tuple(result.commands))
    with told_of(result.of):
        if dry:
            return _foreseen(core.foresee(command))
        after = core.submit(command, who(request.environ))
    return _accepted(result.told(after), after)


def _accepted(told: HTTPResponse, after: Snapshot) -> HTTPResponse:
    """The answer; 202 with the generation that it tells of when the kernel or the host has not all of it yet."""
    if not after.settled and told.status_code in (200, 201):
        told.status = 202
        told.set_header(GENERATION, str(after.generation))
    return told


def _foreseen(foreseen: Foreseen) -> object:
    return json_response(render(differences.shown(foreseen)))
