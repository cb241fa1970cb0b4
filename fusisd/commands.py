"""What an operator may ask for, and what the daemon asks of itself, as values; state.py says what each does to intent.

A command of a service touches exactly that one, so each is one row in the store. One with a `revision` that is not None
is only for the service as it was at that commit.
Does not: check anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusisd.model import Destination, Service
from pyipvs import ServiceKey, Timeouts


@dataclass(frozen=True, slots=True)
class AddService:
    """Make this service (with no destinations yet, or with those it carries). The same again changes nothing; one that is
    being deleted stays, while the destinations it had go on draining."""

    service: Service


@dataclass(frozen=True, slots=True)
class UpdateService:
    """Give a service these settings (its destinations have commands of their own). Its key may change: then the kernel's
    service is replaced."""

    service: Service
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Remove the service and all its destinations: at once, or with `drain_s` when no connection is active any more, after
    that many seconds at the latest."""

    name: str
    drain_s: float | None = None
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class AddDestination:
    """Add a destination to a service; the same again changes nothing, or ends its drain."""

    service: str
    destination: Destination


@dataclass(frozen=True, slots=True)
class UpdateDestination:
    """Give a destination of this name these settings; another address or port replaces it in the kernel."""

    service: str
    destination: Destination
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteDestination:
    """Remove one destination; one that Serf found is kept out until added again. `drain_s` as for a service."""

    service: str
    name: str
    drain_s: float | None = None
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class CancelDrain:
    """Take a service, or (`name`) one of its destinations, back into service while it drains."""

    service: str
    name: str | None = None
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class EndDrain:
    """A drain is over, says control: remove what drained, unless somebody cancelled meanwhile."""

    service: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Adopt:
    """Make the kernel's foreign service of this key ours, as it stands: no packet notices. `service` is what the kernel
    has, filled in by the committer. `wanted`: make it ours as this service instead (from a backup), whose destinations are
    known again by address and port; what the kernel has besides stays."""

    name: str
    key: ServiceKey
    service: Service | None = None
    wanted: Service | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Forget a service and leave all of it in the kernel and on the host as it stands: no packet notices."""

    name: str


@dataclass(frozen=True, slots=True)
class SetGlobals:
    """Change the connection timeouts or the VIP ranges; None leaves one as it is. `single`: these timeouts by name."""

    timeouts: Timeouts | None = None
    ranges: tuple[str, ...] | None = None
    single: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Pause:
    """Change nothing in the kernel or on the host for so many seconds, whatever is wanted or found there; 0 ends a pause."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take this balancer out: its VIPs leave the host, the kernel's table stays; `withdrawn` False takes it back."""

    withdrawn: bool = True


One = (
    AddService
    | UpdateService
    | DeleteService
    | AddDestination
    | UpdateDestination
    | DeleteDestination
    | CancelDrain
    | EndDrain
    | Adopt
    | Release
    | SetGlobals
    | Pause
    | Withdraw
)


@dataclass(frozen=True, slots=True)
class Together:
    """These in their order, all of them or none: one commit, and one answer."""

    commands: tuple[One, ...]


Command = One | Together
