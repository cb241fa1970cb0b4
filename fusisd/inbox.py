"""What enters control: each thing that is told or observed is one value; and what it starts from, and whom it tells.

Does not: do anything with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fusisd import membership
from fusisd.admission import Policy
from fusisd.commands import EndDrain
from fusisd.config import PATH_MARKS
from fusisd.drains import Drain, DrainKey
from fusisd.model import CheckTarget, Health, HostSeen, Intent, Path
from fusisd.ports import Remembered, Snapshot
from pyipvs import ServiceKey


@dataclass(frozen=True, slots=True)
class Committed:
    """Durable intent; the service keys claimed with it, and those let go (their kernel services stay as they are); the
    drains that run; until when nothing may be changed; whether this balancer is withdrawn; and who waits for the turn
    that contains it."""

    intent: Intent
    claimed: frozenset[ServiceKey] = frozenset()
    waiters: tuple[asyncio.Future[Snapshot], ...] = ()
    let_go: frozenset[ServiceKey] = frozenset()
    drains: Mapping[DrainKey, Drain] | None = None
    paused_until_s: float | None = None
    withdrawn: bool | None = None


@dataclass(frozen=True, slots=True)
class MembersSeen:
    """Serf's member list."""

    members: tuple[membership.Member, ...]


@dataclass(frozen=True, slots=True)
class SerfState:
    """How it stands with our own Serf agent; "" means connected."""

    problem: str


@dataclass(frozen=True, slots=True)
class ProbeChanged:
    """A check came to another conclusion."""

    check: CheckTarget
    health: Health


@dataclass(frozen=True, slots=True)
class Refresh:
    """A reader wants the kernel as it is now."""

    waiter: asyncio.Future[Snapshot]


@dataclass(frozen=True, slots=True)
class PathsNoted:
    """Marks chosen for paths are noted as ours, or could not be: `problem` says why."""

    rows: Mapping[ServiceKey, Path]
    problem: str = ""


Value = Committed | MembersSeen | SerfState | ProbeChanged | HostSeen | Refresh | PathsNoted | Policy


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the stores held when we started."""

    intent: Intent = field(default_factory=Intent)
    owned: frozenset[ServiceKey] = frozenset()
    remembered: tuple[Remembered, ...] = ()
    serf_expected: bool = True
    drains: Mapping[DrainKey, Drain] = field(default_factory=dict)
    paused_until_s: float = 0.0
    vips: frozenset[str] = frozenset()
    """Addresses of ours that stand on the host still."""
    paths: Mapping[ServiceKey, Path] = field(default_factory=dict)
    """The services of path checks that are ours; they are in `owned`, too."""
    path_marks: range = PATH_MARKS
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the status shows as it is: version, interface, Serf's address."""
    policy: Policy = Policy()
    """Who may join."""
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """Whom control tells what must be noted durably; none of these may block."""

    released: Callable[[Iterable[ServiceKey]], None]
    memory: Callable[[frozenset[Remembered]], None]
    drained: Callable[[EndDrain], None]
    paths: Callable[[Mapping[ServiceKey, Path]], None]
