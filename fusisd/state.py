"""Intent and how commands change it: pure, so that every rule of the door can be tested without a daemon.

`apply` is the only way that intent changes. What can be known from intent alone is refused here (names and keys unique,
what limits.py knows); what needs the kernel (a foreign service with that key) is refused by the committer, who sees it.
Does not: read a clock, the store or the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce

from fusisd.commands import (
    AddDestination,
    AddService,
    Adopt,
    CancelDrain,
    Command,
    DeleteDestination,
    DeleteService,
    EndDrain,
    One,
    Pause,
    Release,
    SetGlobals,
    Together,
    UpdateDestination,
    UpdateService,
    Withdraw,
)
from fusisd.documents import with_timeouts
from fusisd.errors import Conflict, Invalid, NotFound, Refused, Stale
from fusisd.limits import cannot_forward, cannot_keep, checked_destination, checked_service
from fusisd.model import Destination, DestinationKey, Intent, Service, checked_name
from pyipvs import ServiceKey

_DRAIN_LIMIT_S = 86400.0
_WithinService = DeleteService | AddDestination | UpdateDestination | DeleteDestination | CancelDrain


def apply(intent: Intent, command: Command) -> Intent:
    """The intent after `command`; the very same object when nothing changes. Raises Invalid, NotFound, Conflict."""
    match command:
        case Together(commands):
            return reduce(apply, commands, intent)
        case AddService(service):
            return _add_service(intent, service)
        case UpdateService(service, revision):
            return _update_service(intent, service, revision)
        case Adopt(_, key, service, wanted):
            return _adopt(intent, key, service, wanted)
        case DeleteService(name, None, revision):
            _check_revision(service_named(intent, name), revision)
            return _with(intent, name, None)
        case Release(name):
            service_named(intent, name)
            return _with(intent, name, None)
        case EndDrain(name, destination_name):
            return _end_drain(intent, name, destination_name)
        case SetGlobals():
            return _set_globals(intent, command)
        case Pause() | Withdraw():
            return intent
        case _:
            name = command.name if isinstance(command, DeleteService) else command.service
            return _with(intent, name, _within(service_named(intent, name), command))


def _within(service: Service, command: _WithinService) -> Service:
    """The service after a command that changes what is in it."""
    if not isinstance(command, AddDestination):
        _check_revision(service, command.revision)
    match command:
        case DeleteService(_, drain_s):
            return _drained(service, drain_s)
        case AddDestination(_, destination):
            return _add_destination(service, destination)
        case UpdateDestination(_, destination):
            return _update_destination(service, destination)
        case DeleteDestination(_, name, drain_s):
            return _delete_destination(service, name, drain_s)
        case CancelDrain(_, drained):
            return _cancel_drain(service, drained)


def parts(command: Command) -> tuple[One, ...]:
    """The commands that it is made of."""
    return command.commands if isinstance(command, Together) else (command,)


@contextmanager
def refusals_of(command: One) -> Iterator[None]:
    """A refusal inside tells of which object it is."""
    try:
        yield
    except Refused as error:
        places = (("services", service_of(command)), ("destinations", destination_of(command)))
        error.of = error.of or ".".join(f"{kind}.{name}" for kind, name in places if name is not None)
        raise


def service_of(command: One) -> str | None:
    """The name of the one service that a command touches, None for those that touch no service."""
    match command:
        case AddService(service) | UpdateService(service):
            return service.name
        case DeleteService(name) | Release(name) | Adopt(name):
            return name
        case AddDestination(name) | UpdateDestination(name) | DeleteDestination(name) | CancelDrain(name) | EndDrain(name):
            return name
        case SetGlobals() | Pause() | Withdraw():
            return None


def destination_of(command: One) -> str | None:
    """The name of the one destination that a command concerns, None for those that concern none, or a whole service."""
    match command:
        case AddDestination(_, destination) | UpdateDestination(_, destination):
            return destination.name
        case DeleteDestination(_, name) | CancelDrain(_, name) | EndDrain(_, name):
            return name
    return None


def _add_service(intent: Intent, service: Service) -> Intent:
    service = replace(checked_service(service), drain_s=None)
    existing = intent.services.get(service.name)
    if existing is not None and existing.drain_s is None:
        if settings(existing) != settings(service):
            raise Conflict(f"service {service.name} exists as {existing.key} with other settings; delete it first")
        return intent
    _check_key(intent, service)
    built = replace(service, destinations=_draining_still(existing))
    places = {one.key: one.name for one in built.destinations.values()}
    for destination in service.destinations.values():
        with refusals_of(AddDestination(service.name, destination)):
            built = _add_destination(built, destination, places)
        places[destination.key] = destination.name
    return _with(intent, service.name, built)


def _draining_still(deleted: Service | None) -> dict[str, Destination]:
    """A deleted service that is added again takes nothing back by itself: its destinations go on draining, until each is
    added again, too."""
    if deleted is None:
        return {}
    return {name: replace(one, drain_s=one.drain_s or deleted.drain_s) for name, one in deleted.destinations.items()}


def _adopt(intent: Intent, key: ServiceKey, service: Service | None, wanted: Service | None) -> Intent:
    """As it stands in the kernel: weights, schedulers and names need not be what an operator may ask for; of what is wanted
    instead they must."""
    if wanted is not None:
        for destination in checked_service(wanted).destinations.values():
            checked_destination(wanted, destination)
    if service is None:
        raise NotFound(f"there is no service {key} in the kernel that is not ours")
    checked_name(service.name)
    if service.name in intent.services:
        raise Conflict(f"service {service.name} exists as {intent.services[service.name].key}; adopt by another name")
    _check_key(intent, service)
    if problem := cannot_keep(service):
        raise Conflict(f"{key} cannot be adopted as it is: {problem}; change that in the kernel first")
    return _with(intent, service.name, service)


def _update_service(intent: Intent, service: Service, revision: int | None) -> Intent:
    existing = service_named(intent, service.name)
    _check_revision(existing, revision)
    had = {"destinations": existing.destinations, "excluded": existing.excluded, "drain_s": existing.drain_s}
    kept = replace(service, revision=existing.revision, **had)  # type: ignore[arg-type]
    if kept == existing:
        return intent
    _check_key(intent, checked_service(kept))
    for destination in kept.destinations.values():
        if problem := cannot_forward(kept.key, destination):
            raise Invalid(f"destination {destination.name}: {problem}", "address")
    return _with(intent, service.name, kept)


def _check_key(intent: Intent, service: Service) -> None:
    for other in intent.services.values():
        if other.key == service.key and other.name != service.name:
            raise Conflict(f"{service.key} is service {other.name} already")


def _check_revision(service: Service, revision: int | None) -> None:
    if revision is not None and revision != service.revision:
        raise Stale(f"service {service.name} was changed meanwhile: it is at revision {service.revision}, not {revision}")


def settings(service: Service) -> Service:
    """What makes a repeated request the same service; destinations have their own requests."""
    return replace(service, destinations={}, excluded=frozenset(), drain_s=None, managed_by="", revision=0)


def _drained(service: Service, drain_s: float | None) -> Service:
    return replace(service, drain_s=_checked_drain(drain_s)) if service.drain_s != drain_s else service


def _checked_drain(drain_s: float | None) -> float | None:
    if drain_s is not None and not 0 < drain_s <= _DRAIN_LIMIT_S:
        raise Invalid(f"drain_s {drain_s:g} must be above 0 and at most {_DRAIN_LIMIT_S:g}", "drain_s")
    return drain_s


Places = Mapping[DestinationKey, str]
"""The names of a service's destinations by their keys, for who adds thousands."""


def _add_destination(service: Service, destination: Destination, places: Places | None = None) -> Service:
    existing = service.destinations.get(destination.name)
    by = destination.managed_by or (existing.managed_by if existing is not None else "")
    destination = replace(destination, drain_s=None, managed_by=by)
    if existing == destination:
        return service
    if existing is not None and existing.key != destination.key:
        raise Conflict(
            f"destination {destination.name} of service {service.name} is {existing.address}:{existing.port} already"
        )
    return _put_destination(service, destination, places)


def _update_destination(service: Service, destination: Destination) -> Service:
    if destination.name not in service.destinations:
        raise NotFound(f"service {service.name} has no destination {destination.name!r} of an operator's")
    return service if service.destinations[destination.name] == destination else _put_destination(service, destination)


def _put_destination(service: Service, destination: Destination, places: Places | None = None) -> Service:
    checked_destination(service, destination)
    key, there = destination.key, service.destinations.values()
    holder = next((one.name for one in there if one.key == key), None) if places is None else places.get(key)
    if holder not in (None, destination.name):
        raise Conflict(f"{destination.address}:{destination.port} is destination {holder} of {service.name} already")
    destinations = {**service.destinations, destination.name: destination}
    return replace(service, destinations=destinations, excluded=service.excluded - {destination.name})


def _delete_destination(service: Service, name: str, drain_s: float | None) -> Service:
    """Without an operator's destination of that name it can only be one that Serf brought: keep that out.

    Whether Serf brought one is the committer's to check; here the name alone is known.
    """
    existing = service.destinations.get(name)
    if existing is None:
        return service if name in service.excluded else replace(service, excluded=service.excluded | {name})
    destinations = dict(service.destinations)
    if drain_s is None:
        del destinations[name]
    else:
        destinations[name] = replace(existing, drain_s=_checked_drain(drain_s))
    return replace(service, destinations=destinations)


def _cancel_drain(service: Service, name: str | None) -> Service:
    if name is None:
        return _drained(service, None)
    existing = service.destinations.get(name)
    if existing is None:
        if name not in service.excluded:
            raise NotFound(f"service {service.name} drains no destination {name!r}")
        return replace(service, excluded=service.excluded - {name})
    if existing.drain_s is None:
        return service
    return replace(service, destinations={**service.destinations, name: replace(existing, drain_s=None)})


def _end_drain(intent: Intent, name: str, destination_name: str | None) -> Intent:
    service = intent.services.get(name)
    if service is None:
        return intent
    if destination_name is None:
        return intent if service.drain_s is None else _with(intent, name, None)
    existing = service.destinations.get(destination_name)
    if existing is None or existing.drain_s is None:
        return intent
    return _with(intent, name, _delete_destination(service, destination_name, None))


def _set_globals(intent: Intent, command: SetGlobals) -> Intent:
    timeouts = intent.timeouts if command.timeouts is None else command.timeouts
    timeouts = with_timeouts(timeouts, dict(command.single))
    ranges = intent.ranges if command.ranges is None else command.ranges
    if (timeouts, ranges) == (intent.timeouts, intent.ranges):
        return intent
    return replace(intent, timeouts=timeouts, ranges=ranges)


def service_named(intent: Intent, name: str) -> Service:
    """The service. Raises NotFound."""
    try:
        return intent.services[name]
    except KeyError:
        raise NotFound(f"there is no service {name!r}") from None


def _with(intent: Intent, name: str, service: Service | None) -> Intent:
    if service is not None and intent.services.get(name) is service:
        return intent
    services: dict[str, Service] = dict(intent.services)
    if service is None:
        del services[name]
    else:
        services[name] = replace(service, revision=intent.revision + 1)
    return replace(intent, services=services)


def changed(old: Intent, new: Intent, names: Mapping[str, object]) -> dict[str, Service | None]:
    """The rows to store: of the services named, those that differ (None = deleted)."""
    return {name: new.services.get(name) for name in names if old.services.get(name) is not new.services.get(name)}
