"""From what was asked for to the commands that make it so: pure, tried out on the intent before they are submitted.

A document that changes much is several commands, which are made together; what intent alone refuses of them is known
before the door is asked.
Does not: submit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fusisd import state
from fusisd.commands import (
    AddDestination,
    AddService,
    Adopt,
    DeleteDestination,
    DeleteService,
    One,
    SetGlobals,
    UpdateDestination,
    UpdateService,
)
from fusisd.errors import Conflict, Refused
from fusisd.model import Destination, Intent, Service
from fusisd.web.v1.objects import to_allocate
from fusisd.web.v1.problem import field_of
from pyipvs import ServiceKey, Timeouts

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
    if known is not None and not all(_is_so(known, one) for one in service.destinations.values()):
        raise Conflict(f"service {service.name} exists with other destinations: PUT replaces them, or add each")
    return AddService(service)


def _is_so(known: Service, one: Destination) -> bool:
    """Whether the service has this destination, whoever manages it."""
    there = known.destinations.get(one.name)
    return there is not None and replace(one, managed_by=one.managed_by or there.managed_by) == there


def put(service: Service, intent: Intent, revision: int | None, drops: Callable[[Destination], bool]) -> Iterator[One]:
    """Make it so, whether it is there or not; of the destinations that it has besides, those drain that `drops` tells."""
    known = intent.services.get(service.name)
    if known is None or known.drain_s is not None:
        yield from () if known is None else _leaving(service, known, drops)
        yield AddService(service)
        return
    same_key = known.key == service.key
    yield UpdateService(service if same_key else known, revision)  # first, for it asks for the revision
    left = dict(known.destinations)
    for command in _leaving(service, known, drops):
        del left[command.name]
        yield command
    if not same_key:
        yield UpdateService(service)
    for one in service.destinations.values():
        if left.get(one.name) != one:
            yield put_destination(replace(known, destinations=left), one)


def _leaving(service: Service, known: Service, drops: Callable[[Destination], bool]) -> Iterator[DeleteDestination]:
    """What must go before others can come. In the midst of one commit a cut is none in the kernel: what is put in again, or
    comes under another name, keeps its place there. With another key of the service nothing drains, for the kernel's
    service is another one then."""
    wanted, places = service.destinations, {one.key for one in service.destinations.values()}
    for name, one in known.destinations.items():
        in_the_way = known.key != service.key or one.key in places
        if name in wanted:
            goes = known.key != service.key or wanted[name].key != one.key
        else:
            goes = drops(one) if one.drain_s is None and known.drain_s is None else in_the_way
        if goes:
            yield DeleteDestination(service.name, name, None if in_the_way or name in wanted else DRAIN_LIMIT_S)


def put_destination(known: Service, one: Destination, revision: int | None = None) -> One:
    """Make the destination so, whether an operator named it before or not."""
    if one.name in known.destinations:
        return UpdateDestination(known.name, one, revision)
    return AddDestination(known.name, one)


def import_of(file: Intent, intent: Intent, foreign: Collection[ServiceKey] = ()) -> Iterator[One]:
    """Make everything of a file so, and remove nothing. What drained when it was exported is left out. Of the services that
    the kernel has and that are not ours (`foreign`) those that the file names are made ours."""
    timeouts = file.timeouts if file.timeouts != Timeouts() else None
    yield SetGlobals(timeouts, file.ranges or None)
    for service in file.services.values():
        if service.drain_s is None:
            kept = {name: one for name, one in service.destinations.items() if one.drain_s is None}
            wanted = replace(service, destinations=kept)
            if service.key in foreign and service.name not in intent.services:
                yield Adopt(service.name, service.key, wanted, wanted)
            else:
                yield from put(wanted, intent, None, lambda one: False)


def apply_of(file: Mapping[str, Any], intent: Intent, prune: bool) -> Iterator[One]:
    """Make a file so, whose objects are from then on its own; what of it was taken out goes, with `prune` whatever else is
    there, too. What is only called otherwise keeps its place in the kernel."""
    by = file["managed_by"]
    if "timeouts" in file or "ranges" in file:
        yield SetGlobals(file.get("timeouts"), file.get("ranges"))
    wanted = {name: with_its_address(_managed(one, by), intent) for name, one in file["services"].items()}
    places = {one.key for one in wanted.values()}
    for name, known in intent.services.items():
        in_the_way = known.key in places
        goes = prune or known.managed_by == by if known.drain_s is None else in_the_way
        if name not in wanted and goes:
            yield DeleteService(name, None if in_the_way else DRAIN_LIMIT_S)
    for service in wanted.values():
        yield from put(service, intent, None, lambda one: prune or one.managed_by == by)


def _managed(service: Service, by: str) -> Service:
    destinations = {name: replace(one, managed_by=by) for name, one in service.destinations.items()}
    return replace(service, managed_by=by, destinations=destinations)


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
        inside = f"{base}." if base else ""
        if error.of not in ("", base) and error.of.startswith(inside):
            place = error.of.removeprefix(inside)
            error.field = place if error.field is None else f"{place}.{field_of(error)}"
            error.args = (f"{place}: {error}",)
        raise


def _outcome(before: Intent, command: One) -> str:
    new = isinstance(command, AddDestination | Adopt) or (
        isinstance(command, AddService) and command.service.name not in before.services
    )
    return "created" if new else "changed"
