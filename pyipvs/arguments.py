"""What the verbs take: services and destinations as values or as text, and settings as keywords.

Another program may have made what we would refuse to make; it can be changed all the same, so of what the kernel has
only the settings that are named are validated.
Does not: ask the kernel.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from pyipvs.changes import UpdateDestination
from pyipvs.model import Destination, ForwardingMethod, Service, ServiceKey, split_endpoint
from pyipvs.wire import trusted

KeyLike = ServiceKey | str
DestinationLike = Destination | str | tuple[str, int]
_HOW = {"method", "tunnel"}  # what the service's key limits, so that all of the destination is validated


def key_of(key: KeyLike) -> ServiceKey:
    """The key. Raises ValueError."""
    return key if isinstance(key, ServiceKey) else ServiceKey.parse(key)


def service_of(service: Service | KeyLike, settings: dict[str, Any]) -> Service:
    """The service with these settings, or one of them alone. Raises ValueError."""
    if isinstance(service, Service):
        return replace(service, **settings) if settings else service
    return Service(key_of(service), **settings)


def place_of(destination: str | tuple[str, int]) -> tuple[str, int]:
    """Address and port. Raises ValueError."""
    return split_endpoint(destination) if isinstance(destination, str) else destination


def destination_of(destination: DestinationLike, settings: dict[str, Any]) -> Destination:
    """The destination with these settings, or one of them alone. Raises ValueError."""
    if isinstance(destination, Destination):
        return _changed(destination, settings)
    return Destination(*place_of(destination), **settings)


def update_of(key: ServiceKey, known: Destination, settings: dict[str, Any]) -> UpdateDestination:
    """What gives a destination that the kernel has these settings. Raises ValueError."""
    if settings.keys() & _HOW:
        return UpdateDestination(key, _changed(known, settings))
    thresholds = {name: getattr(known, name) for name in ("upper_threshold", "lower_threshold")}
    wanted = Destination(known.address, known.port, **thresholds | settings)
    names = [field.name for field in fields(Destination)]
    values = [getattr(wanted if name in settings else known, name) for name in names]
    return trusted(UpdateDestination, key, trusted(Destination, *values))


def _changed(destination: Destination, settings: dict[str, Any]) -> Destination:
    """With these settings; a tunnel does not outlive method tunnel."""
    if str(settings.get("method", ForwardingMethod.TUNNEL)) != str(ForwardingMethod.TUNNEL):
        settings = {"tunnel": None} | settings
    return replace(destination, **settings) if settings else destination
