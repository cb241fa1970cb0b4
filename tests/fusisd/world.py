"""Small real things for the core's tests: a clock that is set, a host and checks that remember what was wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fusisd.commands import EndDrain
from fusisd.control import Control
from fusisd.counts import Counts
from fusisd.inbox import Beginning, PathsNoted, ProbeChanged, Told
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.model import CheckSpec, CheckState, CheckTarget, Destination, Health, HostSeen, HostWanted, Path, Service
from fusisd.serf.values import Member
from pyipvs import IPVS, ForwardingMethod, ServiceKey
from pyipvs.testing import FakeKernel

VIP = "10.0.0.1"
WEB_KEY = ServiceKey.parse(f"tcp/{VIP}:80")


def web(name: str = "web", key: str = f"tcp/{VIP}:80", **settings: Any) -> Service:
    return Service(name, ServiceKey.parse(key), **settings)


def at(number: int, name: str | None = None, port: int = 80, **settings: Any) -> Destination:
    return Destination(name or f"d{number}", f"10.0.0.{10 + number}", port, **settings)


def member(number: int, status: str = "alive", tags: Mapping[str, str] | None = None) -> Member:
    offered = {"role": "agent", "s:web": "80/route/1"} if tags is None else tags
    return Member(f"rs{number}", f"10.0.0.{10 + number}", 7946, status, offered)


def check(number: int, port: int = 80) -> CheckTarget:
    return CheckTarget(f"10.0.0.{10 + number}", port)


UP = Health(CheckState.UP)
ALONE = CheckSpec(path_check=False)
"""What Serf's destinations get without it, but for the check through the VIP."""


def alone(number: int) -> CheckTarget:
    return CheckTarget(f"10.0.0.{10 + number}", 80, ALONE)


def down(since_s: float = 0.0) -> Health:
    return Health(CheckState.DOWN, since_s, "connection refused")


@dataclass
class Clock:
    """Set by hand; `step_s` is how far each look moves it."""

    now_s: float = 100.0
    step_s: float = 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@dataclass
class Host:
    """Fulfils every wish at the next `settle`."""

    wanted: HostWanted = field(default_factory=HostWanted)
    neighbours: dict[str, str] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()

    def want(self, wanted: HostWanted) -> None:
        self.wanted = wanted

    def seen(self) -> HostSeen:
        return HostSeen(self.wanted.standing, masquerades=self.wanted.masquerades, paths=self.wanted.paths)

    async def answers(self, address: str) -> str:
        return self.neighbours.get(address, "")

    async def own(self) -> frozenset[str]:
        return self.addresses


@dataclass
class Checks:
    """Every server has the VIP: the first answer through it is good."""

    wanted: frozenset[CheckTarget] = frozenset()
    fresh: set[CheckTarget] = field(default_factory=set)

    def want(self, targets: frozenset[CheckTarget]) -> None:
        self.fresh |= {check for check in targets - self.wanted if check.path is not None}
        self.wanted = targets

    def fresh_ones(self) -> set[CheckTarget]:
        fresh, self.fresh = self.fresh & self.wanted, set()
        return fresh
    @property
    def figures(self) -> dict[str, float]:
        return {"targets": len(self.wanted)}


class Daemon:
    """A Control on a fake kernel (or on the kernel and the host that are handed over), driven turn by turn."""

    def __init__(
        self,
        beginning: Beginning | None = None,
        fake: FakeKernel | None = None,
        kernel: IpvsKernel | None = None,
        host: Host | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.fake = fake or FakeKernel()
        self.ipvs = IPVS(transport=self.fake)
        self.clock, self.host, self.checks = Clock(), host or Host(), Checks()
        self.released: list[ServiceKey] = []
        self.memories: list[Any] = []
        self.drained: list[EndDrain] = []
        self.paths: dict[ServiceKey, Path] = dict(beginning.paths) if beginning is not None else {}
        self.control = Control(
            kernel or IpvsKernel(self.ipvs, None), self.host, self.checks, self.clock,
            beginning or Beginning(serf_expected=False),
            Told(self.release, self.memories.append, self.drained.append, self.note_paths),
            counts,
        )  # fmt: skip
        self.control.look()
        self.control.start()

    def turn(self, *values: Any) -> None:
        """Enter the values, and let the host settle as far as it can."""
        for value in values:
            self.control.enter(value)
        self.control.turn()
        for _ in range(3):
            self.control.enter(self.host.seen())
            self.control.turn()
        if self.checks.fresh:
            self.turn(*(ProbeChanged(check, UP) for check in self.checks.fresh_ones()))

    def release(self, keys: Iterable[ServiceKey]) -> None:
        """What the committer does."""
        for key in keys:
            self.released.append(key)
            self.paths.pop(key, None)

    def note_paths(self, rows: Mapping[ServiceKey, Path]) -> None:
        """What the committer does: note, then tell."""
        self.paths |= rows
        self.control.enter(PathsNoted(rows))

    def weights(self, key: ServiceKey = WEB_KEY) -> dict[str, int]:
        """Address to weight in the kernel."""
        return {row.destination.address: row.destination.weight for row in self.ipvs.destinations(key)}


ROUTE, NAT, TUNNEL = ForwardingMethod.ROUTE, ForwardingMethod.NAT, ForwardingMethod.TUNNEL
