"""Changes collected for one `apply`, and what a caller may give for a service or destination.

Does not: send anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from pyipvs.changes import (
    AddDestination,
    AddService,
    Change,
    DeleteDestination,
    DeleteService,
    UpdateDestination,
    UpdateService,
)
from pyipvs.model import Destination, ForwardingMethod, Service, ServiceKey, split_endpoint

KeyLike = ServiceKey | str
DestinationLike = Destination | str


class Batch:
    """Changes of a `with ipvs.batch()` block. Its verbs take whole values: nothing is read meanwhile."""

    def __init__(self, apply: Callable[[list[Change]], None]) -> None:
        """Made by IPVS.batch."""
        self._apply = apply
        self.changes: list[Change] = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises BatchError."""
        if kind is None:
            self._apply(self.changes)

    def add_service(self, service: Service | KeyLike, **settings: Any) -> None:
        """See IPVS.add_service."""
        self.changes.append(AddService(service_of(service, settings)))

    def update_service(self, service: Service) -> None:
        """Give a service this configuration."""
        self.changes.append(UpdateService(service))

    def delete_service(self, key: KeyLike) -> None:
        """See IPVS.delete_service."""
        self.changes.append(DeleteService(key_of(key)))

    def add_destination(self, key: KeyLike, destination: DestinationLike, **settings: Any) -> None:
        """See IPVS.add_destination."""
        self.changes.append(AddDestination(key_of(key), destination_of(destination, settings)))

    def update_destination(self, key: KeyLike, destination: Destination) -> None:
        """Give a destination this configuration."""
        self.changes.append(UpdateDestination(key_of(key), destination))

    def delete_destination(self, key: KeyLike, destination: DestinationLike | tuple[str, int]) -> None:
        """See IPVS.delete_destination."""
        self.changes.append(DeleteDestination(key_of(key), destination_of(destination, {})))


def key_of(key: KeyLike) -> ServiceKey:
    """The key, or what its text says. Raises ValueError."""
    return key if isinstance(key, ServiceKey) else ServiceKey.parse(key)


def service_of(service: Service | KeyLike, settings: dict[str, Any]) -> Service:
    """The service with these settings, or one of a key and settings. Raises ValueError."""
    if isinstance(service, Service):
        return replace(service, **settings) if settings else service
    return Service(key_of(service), **settings)


def destination_of(destination: DestinationLike | tuple[str, int], settings: dict[str, Any]) -> Destination:
    """The same of a destination; a pair is address and port. Raises ValueError."""
    if isinstance(destination, tuple):
        return Destination(*destination, **settings)
    if isinstance(destination, Destination):
        return changed(destination, settings)
    return Destination(*split_endpoint(destination), **settings)


def changed(destination: Destination, settings: dict[str, Any]) -> Destination:
    """With these settings; a tunnel does not outlive method tunnel."""
    if str(settings.get("method", ForwardingMethod.TUNNEL)) != str(ForwardingMethod.TUNNEL):
        settings = {"tunnel": None} | settings
    return replace(destination, **settings) if settings else destination
