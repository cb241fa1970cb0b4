"""The owner of all control state and the only writer of the kernel: one inbox, one turn at a time, no waiting inside.

    adapters --enter(value)--> inbox --turn--> world -> target.build -> plan.diff -> kernel -> snapshot

Whatever arrives during a turn is taken together by the next (no timers in the way: a turn starts at once when idle). A
turn is level-triggered: it compares everything wanted with everything there, so a lost or repeated value does no harm.
Runs on the event loop's thread; nothing here locks or blocks but the kernel's own short system calls.
Does not: know HTTP, Serf, SQLite or `ip`; those enter values or take wishes through ports.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import pyipvs
from fusisd import membership, plan, target, views
from fusisd.model import CheckTarget, Health, HostSeen, HostWanted, Intent
from fusisd.ports import ChecksPort, HostPort, KernelPort, KernelTable, Remembered, Snapshot
from pyipvs import ServiceKey

log = logging.getLogger(__name__)

TURN_BUDGET_S = 0.05  # operations of one turn stop here and go on in the next, so that the loop answers others
DRIFT_PERIOD_S = 1.0  # how often the cheap fingerprint of the kernel's table is looked at
SETTLE_LIMIT_S = 3.0  # how long a command's answer waits for VIP and NAT before it tells the state as it is
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Committed:
    """Durable intent, the service keys claimed with it, and who waits for the turn that contains it."""

    intent: Intent
    claimed: frozenset[ServiceKey] = frozenset()
    waiters: tuple[asyncio.Future[Snapshot], ...] = ()


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


Value = Committed | MembersSeen | SerfState | ProbeChanged | HostSeen | Refresh


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation the kernel refused: how often, when it is tried again, and its sentence."""

    count: int
    retry_s: float
    reason: str


@dataclass(slots=True)
class Waiter:
    """A command's answer, due when its change is in the kernel and on the host, or at `until_s`."""

    future: asyncio.Future[Snapshot]
    until_s: float


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the stores held when we started."""

    intent: Intent = field(default_factory=Intent)
    owned: frozenset[ServiceKey] = frozenset()
    remembered: tuple[Remembered, ...] = ()
    serf_expected: bool = True
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the status shows as it is: version, interface, Serf's address."""


class Control:
    """The one owner. Make it, `start()` it, run `run()` as a task, `enter()` values, read `snapshot`."""

    def __init__(
        self,
        kernel: KernelPort,
        host: HostPort,
        checks: ChecksPort,
        clock: Callable[[], float],
        beginning: Beginning,
        on_released: Callable[[Iterable[ServiceKey]], None],
        on_memory: Callable[[frozenset[Remembered]], None],
    ) -> None:
        """`clock` is monotonic seconds. `on_released` and `on_memory` tell the store's writer and must not block."""
        self._kernel, self._host, self._checks, self._clock = kernel, host, checks, clock
        self._on_released, self._on_memory = on_released, on_memory
        self._world = target.World(
            beginning.intent, membership.recalled(beginning.remembered, clock()), {}, {}, beginning.owned
        )
        self._memory = membership.memory(self._world.nodes)
        self._awaiting_serf = beginning.serf_expected
        self._host_wanted: HostWanted | None = None
        self._serf_problem = "not connected yet" if beginning.serf_expected else ""
        self._target = target.Target()
        self._failures: dict[tuple[plan.Verb, ServiceKey, tuple[str, int] | None], Failure] = {}
        self._inbox: deque[tuple[float, Value]] = deque()
        self._bell = asyncio.Event()
        self._waiters: list[Waiter] = []
        self._fingerprint = b""
        self._kernel_problem = ""
        self._next_drift_s = 0.0
        self._counts = views.Counts()
        self._facts = beginning.facts
        self.read_cost_s = 0.0
        self.snapshot = Snapshot(0, clock())

    def is_foreign(self, key: ServiceKey) -> bool:
        """Whether the kernel has, at this moment, a service of that key which is not ours. Raises pyipvs.IPVSError."""
        return key not in self.owned and self._kernel.exists(key)

    @property
    def owned(self) -> frozenset[ServiceKey]:
        """The services that are ours."""
        return self._world.owned

    @property
    def intent(self) -> Intent:
        """The durable intent that turns work with."""
        return self._world.intent

    @property
    def vips(self) -> frozenset[str]:
        """Our addresses that are on the host; any thread may read it."""
        return self._world.host.vips

    @property
    def nodes(self) -> membership.Nodes:
        """What Serf has shown."""
        return self._world.nodes

    def look(self) -> KernelTable:
        """Read the kernel's table; before `start`. Raises pyipvs.IPVSError."""
        self._read()
        return self._world.table

    def start(self, claimed: frozenset[ServiceKey] = frozenset()) -> None:
        """Run the first turn, after `look`; `claimed` became ours since the stores were read."""
        self._world = replace(self._world, owned=self.owned | claimed)
        self._work([], self._clock())

    def enter(self, value: Value) -> None:
        """Take a value into the inbox; on the loop's thread only. Returns at once."""
        self._inbox.append((self._clock(), value))
        self._bell.set()

    async def run(self) -> None:
        """Turns for ever, until cancelled."""
        while True:
            await self._wait()
            try:
                self.turn()
            except Exception:  # edge 1 of 3: a defect in one turn must not end the daemon; the next turn starts afresh
                self._counts.turn_errors += 1
                log.exception("turn failed")
                await asyncio.sleep(RETRY_S[0])

    def turn(self) -> None:
        """Take everything in the inbox, make the kernel follow, publish."""
        now_s = self._clock()
        entered = [self._inbox.popleft() for _ in range(len(self._inbox))]
        self._bell.clear()
        refreshers: list[asyncio.Future[Snapshot]] = []
        for _, value in entered:
            if isinstance(value, Refresh):
                refreshers.append(value.waiter)
            else:
                self._fold(value, now_s)
        self._look(now_s, bool(refreshers))
        self._work([stamp for stamp, value in entered if not isinstance(value, Refresh)], now_s)
        for waiter in refreshers:
            _resolve(waiter, self.snapshot)

    async def _wait(self) -> None:
        retries = [failure.retry_s for failure in self._failures.values()]
        answers = [waiter.until_s for waiter in self._waiters]
        linger = [] if self._target.wake_s is None else [self._target.wake_s]
        wake_s = min([self._next_drift_s, *retries, *answers, *linger])
        try:
            async with asyncio.timeout(max(0.0, wake_s - self._clock())):
                await self._bell.wait()
        except TimeoutError:
            pass  # a deadline of our own: drift, retry or linger

    def _fold(self, value: Value, now_s: float) -> None:
        """One value into the world. Observations enter as they are; nothing is decided here."""
        world = self._world
        match value:
            case Committed(intent, claimed, waiters):
                self._world = replace(world, intent=intent, owned=world.owned | claimed)
                self._waiters.extend(Waiter(future, now_s + SETTLE_LIMIT_S) for future in waiters)
            case MembersSeen(members):
                nodes = membership.update(world.nodes, members, now_s)
                views.log_node_changes(world.nodes, nodes)
                self._world = replace(world, nodes=nodes)
                self._awaiting_serf = False
            case SerfState(problem):
                self._serf_problem = problem
            case ProbeChanged(check, health):
                self._world = replace(world, health={**world.health, check: health})
                log.info("check %s:%d %s %s", check.address, check.port, health.state.value, health.reason)
            case HostSeen():
                self._world = replace(world, host=value)

    def _look(self, now_s: float, asked: bool) -> None:
        """Read the kernel's table when a reader asked, or when its fingerprint moved."""
        if now_s >= self._next_drift_s:
            self._next_drift_s = now_s + DRIFT_PERIOD_S
            try:
                fingerprint = self._kernel.fingerprint()
            except OSError as error:
                self._kernel_problem = str(error)
                return
            asked = asked or fingerprint != self._fingerprint or bool(self._kernel_problem)
            self._fingerprint = fingerprint
        if asked:
            self._try_read()

    def _try_read(self) -> None:
        """Read the table; when that fails what is known stands, the status says so and the next look tries again."""
        try:
            self._read()
        except OSError as error:
            if not self._kernel_problem:
                log.error("cannot read the kernel: %s", error)
            self._kernel_problem = str(error)
        else:
            self._kernel_problem = ""

    def _read(self) -> None:
        began_s = self._clock()
        table = self._kernel.read()
        self._world = replace(self._world, table=table)
        self.read_cost_s = self._clock() - began_s

    def _work(self, stamps: list[float], now_s: float) -> None:
        """Build the target, apply the difference, tell the others, publish."""
        self._target = target.build(self._world, now_s)
        known_checks = self._target.checks
        self._world = replace(self._world, health={c: h for c, h in self._world.health.items() if c in known_checks})
        self._checks.want(known_checks)
        left = self._apply(stamps, now_s)
        if self._target.host != self._host_wanted:
            self._host_wanted = self._target.host
            self._world = replace(self._world, host=replace(self._world.host, settled=False))
            self._host.want(self._target.host)
        self._keep_memory()
        self._publish(now_s)
        self._answer(left, now_s)

    def _apply(self, stamps: list[float], now_s: float) -> bool:
        """Apply what the plan asks for within the turn's budget; whether something is left that will not wait."""
        ops = plan.diff(self._target, self._world.table, self.owned, self._world.host.vips, self._awaiting_serf)
        self._forget_failures(ops)
        applied = 0
        for op in ops:
            failure = self._failures.get(op.target)
            if failure is not None and failure.retry_s > now_s:
                continue
            if self._clock() - now_s > TURN_BUDGET_S:
                self._bell.set()
                return True
            applied += self._apply_one(op, now_s)
        if applied:
            ended_s = self._clock()
            reaction_s = ended_s - min(stamps) if stamps else None
            self._counts.reacted(reaction_s)
            log.info(
                "turn ops=%d/%d reaction_ms=%s",
                applied,
                len(ops),
                "-" if reaction_s is None else f"{reaction_s * 1e3:.2f}",
            )
        return False

    def _apply_one(self, op: plan.Op, now_s: float) -> bool:
        try:
            _send(self._kernel, op)
        except pyipvs.IPVSError as error:
            self._refused(op, error, now_s)
            return False
        log.info("%s (%s)", op, op.reason)
        self._counts.ops += 1
        self._failures.pop(op.target, None)
        self._world = replace(self._world, table=plan.after(self._world.table, op))
        if op.verb is plan.Verb.DELETE_SERVICE:
            self._disown(op.key)
        return True

    def _refused(self, op: plan.Op, error: pyipvs.IPVSError, now_s: float) -> None:
        """The kernel said no: a condition on the object, tried again later; what it is now is read from the kernel."""
        if op.verb is plan.Verb.ADD_SERVICE and isinstance(error, pyipvs.AlreadyExists):
            self._disown(op.key)  # somebody made it between our look and our try: it is theirs
        known = self._failures.get(op.target)
        count = known.count + 1 if known else 1
        retry_s = now_s + RETRY_S[min(count, len(RETRY_S)) - 1]
        self._failures[op.target] = Failure(count, retry_s, str(error))
        self._counts.op_errors += 1
        if known is None or known.reason != str(error):
            log.error("%s failed: %s", op, error)
        self._try_read()

    def _disown(self, key: ServiceKey) -> None:
        self._world = replace(self._world, owned=self.owned - {key})
        self._on_released((key,))

    def _forget_failures(self, ops: tuple[plan.Op, ...]) -> None:
        planned = {op.target for op in ops}
        for gone in [failed for failed in self._failures if failed not in planned]:
            del self._failures[gone]

    def _keep_memory(self) -> None:
        memory = membership.memory(self._world.nodes)
        if memory != self._memory:
            self._memory = memory
            self._on_memory(memory)

    def _publish(self, now_s: float) -> None:
        reasons: dict[ServiceKey, str] = {}
        for (_, key, _), failure in self._failures.items():
            reasons.setdefault(key, failure.reason)
        self.snapshot = views.build(
            views.Known(
                self._world,
                self._target,
                reasons,
                self._serf_problem,
                self._kernel_problem,
                self._counts,
                self._facts,
            ),
            self.snapshot.generation + 1,
            now_s,
        )

    def _answer(self, left: bool, now_s: float) -> None:
        """Answer the commands whose change is there, or whose time is up."""
        settled = not left and self._world.host.settled
        for waiter in self._waiters:
            if settled or now_s >= waiter.until_s:
                _resolve(waiter.future, self.snapshot)
        self._waiters = [waiter for waiter in self._waiters if not waiter.future.done()]


def _send(kernel: KernelPort, op: plan.Op) -> None:
    """One operation to the kernel. Raises pyipvs.IPVSError."""
    match op:
        case plan.Op(plan.Verb.ADD_SERVICE, service=pyipvs.Service() as service):
            kernel.add_service(service)
        case plan.Op(plan.Verb.UPDATE_SERVICE, service=pyipvs.Service() as service):
            kernel.update_service(service)
        case plan.Op(plan.Verb.DELETE_SERVICE, key):
            kernel.delete_service(key)
        case plan.Op(plan.Verb.ADD_DESTINATION, key, destination=pyipvs.Destination() as destination):
            kernel.add_destination(key, destination)
        case plan.Op(plan.Verb.UPDATE_DESTINATION, key, destination=pyipvs.Destination() as destination):
            kernel.update_destination(key, destination)
        case plan.Op(plan.Verb.DELETE_DESTINATION, key, destination=pyipvs.Destination() as destination):
            kernel.delete_destination(key, (destination.address, destination.port))


def _resolve(waiter: asyncio.Future[Snapshot], snapshot: Snapshot) -> None:
    if not waiter.done():
        waiter.set_result(snapshot)
