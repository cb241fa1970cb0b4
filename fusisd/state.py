"""Intent and how commands change it: pure, so that every rule of the door can be tested without a daemon.

`apply` is the only way that intent changes. What can be known from intent alone is refused here (names and keys unique,
what IPVS cannot do); what needs the kernel (a foreign service with that key) is refused by the committer, who sees it.
Does not: read a clock, the store or the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusisd.errors import Conflict, Invalid, NotFound
from fusisd.model import (
    SCHEDULERS,
    AddDestination,
    AddService,
    Command,
    DeleteDestination,
    DeleteService,
    Destination,
    Intent,
    Service,
    checked_name,
    checked_weight,
)
from pyipvs import ForwardingMethod, ServiceKey


def apply(intent: Intent, command: Command) -> Intent:
    """The intent after `command`; the very same object when nothing changes. Raises Invalid, NotFound, Conflict."""
    match command:
        case AddService(service):
            return _add_service(intent, service)
        case DeleteService(name):
            _service(intent, name)
            return _with(intent, name, None)
        case AddDestination(service_name, destination):
            service = _service(intent, service_name)
            return _with(intent, service_name, _add_destination(service, destination))
        case DeleteDestination(service_name, name):
            service = _service(intent, service_name)
            return _with(intent, service_name, _delete_destination(service, name))


def service_of(command: Command) -> str:
    """The name of the one service that a command touches."""
    match command:
        case AddService(service):
            return service.name
        case DeleteService(name):
            return name
        case AddDestination(service_name, _) | DeleteDestination(service_name, _):
            return service_name


def cannot_forward(key: ServiceKey, destination: Destination) -> str:
    """Why IPVS could not forward this service to this destination; "" when it can.

    Port and family rules of net/netfilter/ipvs/ip_vs_ctl.c and ip_vs_xmit.c: only NAT rewrites the packet's port, and only
    a tunnel can carry one address family inside the other.
    """
    method = destination.method
    if method is not ForwardingMethod.NAT and key.mark is None and destination.port != key.port:
        return f"method {method} cannot change the port: use port {key.port}, or method nat"
    if method is not ForwardingMethod.TUNNEL and (":" in destination.address) != (":" in (key.address or "")):
        return f"{destination.address} and the VIP {key.address} are of different families: only method tunnel can join them"
    return ""


def _add_service(intent: Intent, service: Service) -> Intent:
    checked_name(service.name)
    if service.scheduler not in SCHEDULERS:
        raise Invalid(f"scheduler {service.scheduler!r} is unknown; one of {' '.join(SCHEDULERS)}", "scheduler")
    existing = intent.services.get(service.name)
    if existing is not None:
        if _settings(existing) == _settings(service):
            return intent
        raise Conflict(f"service {service.name} exists as {existing.key} with other settings; delete it first")
    for other in intent.services.values():
        if other.key == service.key:
            raise Conflict(f"{service.key} is service {other.name} already")
    built = replace(service, destinations={})
    for destination in service.destinations.values():
        built = _add_destination(built, destination)
    return _with(intent, service.name, built)


def _settings(service: Service) -> tuple[ServiceKey, str, int]:
    """What makes a repeated POST of a service the same service; destinations have their own requests."""
    return (service.key, service.scheduler, service.persistence_s)


def _add_destination(service: Service, destination: Destination) -> Service:
    checked_name(destination.name)
    checked_weight(destination.weight)
    if problem := cannot_forward(service.key, destination):
        raise Invalid(problem, "port" if "port" in problem else "address")
    existing = service.destinations.get(destination.name)
    if existing == destination:
        return service
    if existing is not None and existing.key != destination.key:
        raise Conflict(
            f"destination {destination.name} of service {service.name} is {existing.address}:{existing.port} already"
        )
    for other in service.destinations.values():
        if other.key == destination.key and other.name != destination.name:
            raise Conflict(
                f"{destination.address}:{destination.port} is destination {other.name} of {service.name} already"
            )
    destinations = {**service.destinations, destination.name: destination}
    return replace(service, destinations=destinations, excluded=service.excluded - {destination.name})


def _delete_destination(service: Service, name: str) -> Service:
    """Without an operator's destination of that name it can only be one that Serf brought: keep that out.

    Whether Serf brought one is the committer's to check; here the name alone is known.
    """
    destinations = {key: value for key, value in service.destinations.items() if key != name}
    if len(destinations) == len(service.destinations):
        return replace(service, excluded=service.excluded | {name})
    return replace(service, destinations=destinations)


def _service(intent: Intent, name: str) -> Service:
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
        services[name] = service
    return replace(intent, services=services)


def changed(old: Intent, new: Intent, names: Mapping[str, object]) -> dict[str, Service | None]:
    """The rows to store: of the services named, those that differ (None = deleted)."""
    return {name: new.services.get(name) for name in names if old.services.get(name) is not new.services.get(name)}
