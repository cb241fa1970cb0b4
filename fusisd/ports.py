"""What the core needs from the world: the Protocols that adapters fulfil, and nothing of how they do it.

The core (control, committer) is given objects of these shapes by the daemon; tests give it small real ones.
Does not: import an adapter or do I/O.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ParamSpec, Protocol, TypeVar

import pyipvs
from fusisd.model import CheckTarget, Command, DestinationKey, HostWanted, Intent, Offer, Service

P = ParamSpec("P")
T = TypeVar("T")


class StoreCall(Protocol):
    """Runs a store's function in the store's one thread; awaitable on the loop."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """The function's result, or what it raised."""


@dataclass(frozen=True, slots=True)
class KernelDestination:
    """A destination as the kernel has it: configuration and its connections now."""

    destination: pyipvs.Destination
    active: int = 0
    inactive: int = 0


@dataclass(frozen=True, slots=True)
class KernelService:
    """A service as the kernel has it, with its destinations by (address, port)."""

    service: pyipvs.Service
    destinations: Mapping[DestinationKey, KernelDestination] = field(default_factory=dict)


KernelTable = Mapping[pyipvs.ServiceKey, KernelService]


class KernelPort(Protocol):
    """IPVS of this network namespace. Calls are short and synchronous; each raises pyipvs.IPVSError."""

    def read(self) -> KernelTable:
        """The whole table, foreign services included."""

    def exists(self, key: pyipvs.ServiceKey) -> bool:
        """Whether there is such a service now."""

    def fingerprint(self) -> bytes:
        """A value that changes when any service or destination (not a counter) changes: the cheap drift probe."""

    def add_service(self, service: pyipvs.Service) -> None:
        """Make a service."""

    def update_service(self, service: pyipvs.Service) -> None:
        """Change scheduler, flags or persistence of a service."""

    def delete_service(self, key: pyipvs.ServiceKey) -> None:
        """Remove a service and its destinations."""

    def add_destination(self, key: pyipvs.ServiceKey, destination: pyipvs.Destination) -> None:
        """Add a destination to a service."""

    def update_destination(self, key: pyipvs.ServiceKey, destination: pyipvs.Destination) -> None:
        """Change weight or method of a destination."""

    def delete_destination(self, key: pyipvs.ServiceKey, destination: DestinationKey) -> None:
        """Remove a destination."""


class HostPort(Protocol):
    """Addresses, NAT and sysctls of the host: told the latest wish, works it off beside the loop, reports HostSeen."""

    def want(self, wanted: HostWanted) -> None:
        """Replace the wish; never blocks. The adapter answers with a HostSeen value when it is worked off."""


class ChecksPort(Protocol):
    """The health monitor: told what to probe, reports ProbeChanged."""

    def want(self, targets: frozenset[CheckTarget]) -> None:
        """Probe exactly these from now on; never blocks. State of targets that stay is kept."""


class IntentStore(Protocol):
    """The durable wishes of operators. Blocking; called only by the committer's writer thread."""

    def load(self) -> Intent:
        """What was committed last. Raises StoreError."""

    def commit(self, expected_revision: int, services: Mapping[str, Service | None]) -> int:
        """Durably replace (or with None delete) these services; the new revision. Raises Conflict, StoreError."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A destination that Serf brought, kept so that our own restart does not remove it."""

    node: str
    address: str
    offer: Offer


class LocalStore(Protocol):
    """What concerns this machine only: ownership, previous sysctls, nodes remembered. Blocking. Never shared.

    Rows are tied to this boot and network namespace; rows of another are void.
    Kinds used: `service`, `vip`, `sysctl`.
    """

    def owned(self, kind: str) -> Mapping[str, str]:
        """Keys of this kind that we made, with the value noted at the time. Raises StoreError."""

    def claim(self, kind: str, keys: Mapping[str, str]) -> None:
        """Note durably, before they are made, that these are ours. The same again is fine. Raises StoreError."""

    def release(self, kind: str, keys: Iterable[str]) -> None:
        """Forget that these are ours; unknown ones are fine. Raises StoreError."""

    def remembered(self) -> tuple[Remembered, ...]:
        """Destinations that Serf had brought when we last ran. Raises StoreError."""

    def remember(self, destinations: Iterable[Remembered]) -> None:
        """Replace the remembered destinations by these. Raises StoreError."""


@dataclass(frozen=True, slots=True)
class DestinationView:
    """A destination as readers see it. `origin` is `operator`, `serf` or `foreign`; `weight` is the kernel's."""

    name: str
    address: str
    port: int
    weight: int
    method: pyipvs.ForwardingMethod
    origin: str
    state: str
    reason: str
    applied: bool
    active: int = 0
    inactive: int = 0


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service as readers see it; a foreign one has the name ''. `reason` says why `applied` is false, else ''."""

    name: str
    key: pyipvs.ServiceKey
    scheduler: str
    persistence_s: int
    foreign: bool
    applied: bool
    reason: str
    destinations: tuple[DestinationView, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is published for readers: frozen, replaced whole. `status` is plain data, ready for JSON."""

    generation: int
    at_s: float
    services: tuple[ServiceView, ...] = ()
    status: Mapping[str, object] = field(default_factory=dict)


class Core(Protocol):
    """What the web room may ask, from any thread (fulfilled by the bridge). Every call ends within its time limit."""

    def snapshot(self) -> Snapshot:
        """The published snapshot, refreshed first when it is old; never raises, an old one tells its age."""

    def submit(self, command: Command, who: str) -> Snapshot:
        """Make a command durable and run the turn that contains it; the snapshot after it.

        `who` says where it came from (`unix`, `tcp 10.0.0.9`). Raises Refused (Invalid, NotFound, Conflict, Unavailable).
        """
