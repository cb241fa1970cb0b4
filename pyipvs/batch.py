"""Changes collected in a `with ipvs.batch()` block.

Does not: send them; IPVS.apply does at the block's end.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from pyipvs.arguments import DestinationLike, KeyLike, destination_of, key_of, service_of
from pyipvs.changes import (
    AddDestination,
    AddService,
    Change,
    DeleteDestination,
    DeleteService,
    UpdateDestination,
    UpdateService,
)
from pyipvs.model import Destination, Service


class Batch:
    """Changes of a `with ipvs.batch()` block. Its verbs take whole values: nothing is read meanwhile."""

    def __init__(self, apply: Callable[[list[Change]], object]) -> None:
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

    def delete_destination(self, key: KeyLike, destination: DestinationLike) -> None:
        """See IPVS.delete_destination."""
        self.changes.append(DeleteDestination(key_of(key), destination_of(destination, {})))
