"""What the core needs from the world: the Protocols that adapters fulfil, and nothing of how they do it.

The core (control, committer) is given objects of these shapes by the daemon; tests give it small real ones.
Does not: import an adapter or do I/O.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

import pyipvs
from fusisd.commands import Command
from fusisd.counts import Counts
from fusisd.events import Ring
from fusisd.model import CheckTarget, Destination, DestinationKey, HostWanted, Intent, Offer, Service
from pyipvs.ruleset import Entry

P = ParamSpec("P")
T = TypeVar("T")


class StoreCall(Protocol):
    """Runs a store's function in the store's one thread; awaitable on the loop."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """The function's result, or what it raised."""


class KernelDestination(NamedTuple):
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

    def read_service(self, key: pyipvs.ServiceKey) -> KernelService | None:
        """One service as it is now, None when it is not there."""

    def scan(self) -> Iterator[Entry]:
        """The whole table with its counters, service by service, for who does other things in between."""

    def probe(self) -> Mapping[pyipvs.ServiceKey, bytes]:
        """For every service a value that changes when it or its destinations (not a counter) change: cheap."""

    def apply(self, changes: Sequence[pyipvs.Change]) -> Sequence[pyipvs.Failure]:
        """Carry out these changes in their order; those that the kernel refused. One that fails stops no other."""

    def can_load(self, service: pyipvs.Service) -> str:
        """Why the kernel has not this service's scheduler or persistence engine; "" when it has."""

    def timeouts(self) -> pyipvs.Timeouts:
        """The connection timeouts of the network namespace."""

    def set_timeouts(self, timeouts: pyipvs.Timeouts) -> None:
        """Change them; 0 leaves one as it is."""


class HostPort(Protocol):
    """Addresses, NAT and sysctls of the host: told the latest wish, works it off beside the loop, reports HostSeen."""

    def want(self, wanted: HostWanted) -> None:
        """Replace the wish; never blocks. The adapter answers with a HostSeen value when it is worked off."""

    async def answers(self, address: str) -> str:
        """The Ethernet address that answers for this one on the wire, "" when none does within a second; an address of
        this host's own gives "", too. Raises FusisError when it cannot be asked."""

    async def own(self) -> frozenset[str]:
        """The addresses that this host has, other than VIPs that we put there, and the first and broadcast addresses of its
        networks: none of them may be given away. Raises FusisError."""


class ChecksPort(Protocol):
    """The health monitor: told what to probe, reports ProbeChanged."""

    def want(self, targets: frozenset[CheckTarget]) -> None:
        """Probe exactly these from now on; never blocks. State of targets that stay is kept."""

    @property
    def figures(self) -> Mapping[str, float]:
        """How it goes, for the status: how many targets, probes a second, how far intervals are stretched."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit replaces: these services (None = deleted), and the globals when not None."""

    services: Mapping[str, Service | None] = field(default_factory=dict)
    timeouts: pyipvs.Timeouts | None = None
    ranges: tuple[str, ...] | None = None


class IntentStore(Protocol):
    """The durable wishes of operators. Blocking; called only by the committer's writer thread."""

    def load(self) -> Intent:
        """What was committed last. Raises StoreError."""

    def commit(self, expected_revision: int, change: Change) -> int:
        """Durably make this change; the new revision, which the services changed carry. Raises Conflict, StoreError."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A destination that Serf brought, kept so that our own restart does not remove it."""

    node: str
    address: str
    offer: Offer
    left_s: float | None = None
    """When it left or dropped the service, in monotonic seconds: it drains."""


class LocalStore(Protocol):
    """What concerns this machine only: ownership, previous sysctls, nodes remembered. Blocking. Never shared.

    Rows are tied to this boot and network namespace; rows of another are void.
    Kinds used: `service` (key: name), `vip` (address: interface), `sysctl` (name: previous value), `drain` (see
    control.Drains), `path` (a path check's service: the path), `nat` (masquerade rows of released services, kept), `pause`
    (`until`: monotonic seconds), `withdraw` (`withdrawn`: true or false).
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


class DestinationView(NamedTuple):
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
    drain_left_s: float | None = None
    """Not None while it drains: seconds until it is cut, at the time of the snapshot."""
    wanted: int | None = None
    """The weight that it should have in the kernel now; None: it should not be there, or is foreign."""
    destination: Destination | None = None
    """What was asked for, by an operator or by a node's tags; None: foreign."""
    since_s: float | None = None
    """Since when it is down, in monotonic seconds; None: it is not."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service as readers see it; a foreign one has the name ''. `reason` says why `applied` is false, else ''.

    `service` is what the operator asked for (None: foreign), `kernel` what the kernel has (None: not there)."""

    name: str
    key: pyipvs.ServiceKey
    scheduler: str
    persistence_s: int
    foreign: bool
    applied: bool
    reason: str
    destinations: tuple[DestinationView, ...]
    service: Service | None = None
    kernel: pyipvs.Service | None = None

    @property
    def draining(self) -> bool:
        """An operator's DELETE drains the whole service."""
        return self.service is not None and self.service.drain_s is not None


def _unknown(service: str, destination: str | None) -> None:
    del service, destination


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is published for readers: frozen, replaced whole."""

    generation: int
    at_s: float
    services: tuple[ServiceView, ...] = ()
    intent: Intent = field(default_factory=Intent)
    tell_status: Callable[[], Mapping[str, object]] = dict
    tell_why: Callable[[str, str | None], Mapping[str, object] | None] = _unknown
    settled: bool = True
    """False in an answer to a command: its time was up before its change was in the kernel and on the host."""

    @property
    def status(self) -> Mapping[str, object]:
        """How the daemon is, as plain data ready for JSON; worked out by whoever asks, from what is frozen here."""
        return self.tell_status()

    def why(self, service: str, destination: str | None = None) -> Mapping[str, object] | None:
        """What a service, or one of its destinations, is and what decided it (why.py), as plain data; None: not there."""
        return self.tell_why(service, destination)


@dataclass(frozen=True, slots=True)
class Reading:
    """The kernel's counters as they were at one time; frozen, replaced whole."""

    at_s: float
    cost_s: float = 0.0
    """How long the loop worked for it."""
    entries: Mapping[pyipvs.ServiceKey, Entry] = field(default_factory=dict)
    problem: str = ""
    """Why these are old: the kernel could not be read."""


class Step(NamedTuple):
    """Something that would be done to the kernel or the host, why, and the names of what it is of ("" = none)."""

    what: str
    reason: str = ""
    service: str = ""
    destination: str = ""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a command would come to, were it given now: the intent before and after, and the steps that follow once checks
    pass."""

    before: Intent
    after: Intent
    steps: tuple[Step, ...] = ()


class Core(Protocol):
    """What the web room may ask, from any thread (fulfilled by the bridge). Every call ends within its time limit."""

    def snapshot(self) -> Snapshot:
        """The published snapshot, refreshed first when it is old; never raises, an old one tells its age."""

    def submit(self, command: Command, who: str) -> Snapshot:
        """Make a command durable and run the turn that contains it; the snapshot after it.

        `who` says whose it is (`unix`, `tcp 10.0.0.9 token=4f0c31a2`). Raises Refused (Invalid, NotFound, Conflict,
        Unavailable).
        """

    def foresee(self, command: Command) -> Foreseen:
        """What a command would come to; nothing is stored or changed. Raises Refused as `submit` does."""

    def statistics(self) -> Reading:
        """The kernel's counters, read first when they are a second old; never raises, an old reading tells its age."""

    def counts(self) -> Counts:
        """What happened since the start; it goes on changing."""

    @property
    def events(self) -> Ring:
        """What happened; any thread may read it."""

    def tell(self, kind: str, text: str, who: str) -> None:
        """Something happened that no command stands for: it becomes an event, soon."""
