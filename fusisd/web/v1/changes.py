"""From what was asked for to the commands that make it so: pure, tried out on the intent before they are submitted.

A document that changes much is several commands, which are made together; what intent alone refuses of them is known
before the door is asked.
Does not: submit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fusisd import state
from fusisd.commands import (
    AddDestination,
    AddService,
    DeleteDestination,
    One,
    SetGlobals,
    UpdateDestination,
    UpdateService,
)
from fusisd.errors import Conflict, Refused
from fusisd.model import Destination, Intent, Service
from fusisd.web.v1.objects import to_allocate
from fusisd.web.v1.problem import field_of
from pyipvs import Timeouts

DRAIN_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """One command, what it concerns (neither: the settings), and what comes of it: created, changed or unchanged."""

    service: str | None
    destination: str | None
    command: One
    outcome: str


def there(intent: Intent, name: str) -> Service | None:
    """The service of this name that is not being deleted."""
    service = intent.services.get(name)
    return None if service is None or service.drain_s is not None else service


def with_its_address(service: Service, intent: Intent) -> Service:
    """The service; with the address that it has already when none is asked for, as the door gives it."""
    known = there(intent, service.name)
    if known is None or known.key.address is None or not to_allocate(service.key):
        return service
    same = known.key.family is service.key.family
    return replace(service, key=replace(service.key, address=known.key.address)) if same else service


def add(service: Service, intent: Intent) -> One:
    """Make a new service; the same again changes nothing. Raises Conflict."""
    known = there(intent, service.name)
    if known is not None and any(known.destinations.get(name) != one for name, one in service.destinations.items()):
        raise Conflict(f"service {service.name} exists with other destinations: PUT replaces them, or add each")
    return AddService(service)


def put(service: Service, intent: Intent, revision: int | None, whole: bool) -> Iterator[One]:
    """Make it so, whether it is there or not. `whole`: its destinations are all that it should have, the others drain."""
    known = there(intent, service.name)
    if known is None:
        yield AddService(service)
        return
    yield UpdateService(service, revision)
    yield from _destinations(service.destinations.values(), known)
    for name, one in known.destinations.items():
        if whole and name not in service.destinations and one.drain_s is None:
            yield DeleteDestination(service.name, name, DRAIN_LIMIT_S)


def _destinations(wanted: Iterable[Destination], known: Service) -> Iterator[One]:
    for one in wanted:
        if known.destinations.get(one.name) != one:
            yield put_destination(known, one)


def put_destination(known: Service, one: Destination, revision: int | None = None) -> One:
    """Make the destination so, whether an operator named it before or not."""
    if one.name in known.destinations:
        return UpdateDestination(known.name, one, revision)
    return AddDestination(known.name, one)


def import_of(file: Intent, intent: Intent) -> Iterator[One]:
    """Make everything of a file so, and remove nothing. What drained when it was exported is left out."""
    timeouts = file.timeouts if file.timeouts != Timeouts() else None
    yield SetGlobals(timeouts, file.ranges or None)
    for service in file.services.values():
        if service.drain_s is None:
            kept = {name: one for name, one in service.destinations.items() if one.drain_s is None}
            yield from put(replace(service, destinations=kept), intent, None, whole=False)


def tried(intent: Intent, commands: Iterable[One]) -> list[Step]:
    """The commands with what comes of each. Raises Refused for what intent alone forbids, which tells of which object."""
    steps = []
    for command in commands:
        with state.refusals_of(command):
            after = state.apply(intent, command)
        outcome = "unchanged" if after is intent else _outcome(intent, command)
        steps.append(Step(state.service_of(command), state.destination_of(command), command, outcome))
        intent = after
    return steps


@contextmanager
def told_of(base: str) -> Iterator[None]:
    """A refusal inside is worded for who asked about `base` (`services.web`, "" = a whole file): of what is in it, the place
    is named, too."""
    try:
        yield
    except Refused as error:
        if error.of not in ("", base) and error.of.startswith(base):
            place = error.of[len(base) :].removeprefix(".")
            error.field = place if error.field is None else f"{place}.{field_of(error)}"
            error.args = (f"{place}: {error}",)
        raise


def _outcome(before: Intent, command: One) -> str:
    new = isinstance(command, AddDestination) or (
        isinstance(command, AddService) and command.service.name not in before.services
    )
    return "created" if new else "changed"
