"""What can be done to the table, as values: made by a caller or by `diff`, carried out by `IPVS.apply`.

Each is checked when it is made, prints as a sentence, and names the command that carries it out.
Does not: send anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyipvs.const import Command
from pyipvs.errors import IPVSError
from pyipvs.model import Destination, Service, ServiceKey, check_pair


@dataclass(frozen=True, slots=True)
class _OnService:
    """A service with its whole configuration."""

    service: Service
    operation: ClassVar[str]
    command: ClassVar[Command]

    @property
    def key(self) -> ServiceKey:
        """The service that is changed."""
        return self.service.key

    @property
    def what(self) -> str:
        """What it changes, as errors name it."""
        return str(self.service.key)

    def __str__(self) -> str:
        service = self.service
        persistent = f", persistent {service.persistence_s} s" if service.persistence_s else ""
        return f"{self.operation} {service.key} ({service.scheduler}{persistent})"


class AddService(_OnService):
    """Make a service."""

    __slots__ = ()
    operation, command = "add service", Command.NEW_SERVICE


class UpdateService(_OnService):
    """Give a service this configuration."""

    __slots__ = ()
    operation, command = "update service", Command.SET_SERVICE


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Remove a service, its destinations with it."""

    key: ServiceKey
    operation: ClassVar[str] = "delete service"
    command: ClassVar[Command] = Command.DEL_SERVICE

    @property
    def what(self) -> str:
        """What it changes, as errors name it."""
        return str(self.key)

    def __str__(self) -> str:
        return f"{self.operation} {self.key}"


@dataclass(frozen=True, slots=True)
class _OnDestination:
    """A destination of the service `key`, with its whole configuration."""

    key: ServiceKey
    destination: Destination
    operation: ClassVar[str]
    command: ClassVar[Command]
    _between: ClassVar[str] = "of"

    def __post_init__(self) -> None:
        """Raises ValueError when the service cannot forward to the destination."""
        check_pair(self.key, self.destination)

    @property
    def what(self) -> str:
        """What it changes, as errors name it."""
        return f"{self.destination} {self._between} {self.key}"

    def __str__(self) -> str:
        destination = self.destination
        return f"{self.operation} {self.what} ({destination.method}, weight {destination.weight})"


class AddDestination(_OnDestination):
    """Make a destination."""

    __slots__ = ()
    operation, command, _between = "add destination", Command.NEW_DEST, "to"


class UpdateDestination(_OnDestination):
    """Give a destination this configuration."""

    __slots__ = ()
    operation, command = "update destination", Command.SET_DEST


@dataclass(frozen=True, slots=True)
class DeleteDestination:
    """Remove a destination at once. Of `destination` address and port count."""

    key: ServiceKey
    destination: Destination
    operation: ClassVar[str] = "delete destination"
    command: ClassVar[Command] = Command.DEL_DEST

    @property
    def what(self) -> str:
        """What it changes, as errors name it."""
        return f"{self.destination} of {self.key}"

    def __str__(self) -> str:
        return f"{self.operation} {self.what}"


Change = AddService | UpdateService | DeleteService | AddDestination | UpdateDestination | DeleteDestination
ON_SERVICE = (AddService, UpdateService, DeleteService)


@dataclass(frozen=True, slots=True)
class Failure:
    """A change that was not carried out, or (TimedOut, or errno ENOBUFS or EBADMSG) perhaps was."""

    change: Change
    error: IPVSError

    def __str__(self) -> str:
        return str(self.error)


class BatchError(IPVSError):
    """Some changes of a batch failed; the others are done. `failures` has each, in the order of the changes."""

    _SHOWN = 5

    def __init__(self, failures: list[Failure], count: int) -> None:
        """`count`: how many changes there were."""
        self.failures, self.count = failures, count
        shown = [str(failure) for failure in failures[: self._SHOWN]]
        more = len(failures) - len(shown)
        text = "\n  ".join([f"{len(failures)} of {count} changes failed; the others are done", *shown])
        text += f"\n  and {more} more" if more else ""
        self.operation, self.what = "apply", ""
        # Once: a second OSError.__init__ never releases what the first one set (oserror_init() of CPython 3.11).
        OSError.__init__(self, failures[0].error.errno or 0, text)


class ChangeList(list[Change]):
    """Changes in the order in which they are made; prints one a line."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no changes"


def order(changes: Iterable[Change]) -> ChangeList:
    """Services before their destinations, what comes before what goes: no service is empty meanwhile."""
    return ChangeList(sorted(changes, key=lambda change: _ORDER[type(change)]))


_ORDER: dict[type, int] = {
    kind: number
    for number, kind in enumerate(
        (AddService, UpdateService, AddDestination, UpdateDestination, DeleteDestination, DeleteService)
    )
}
