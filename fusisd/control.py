"""The owner of all control state and the only writer of the kernel: one inbox, one turn at a time, no waiting inside.

    adapters --enter(value)--> inbox --turn--> world -> targets -> plan.diff -> kernel -> snapshot

Whatever arrives during a turn is taken together by the next (no timers in the way: a turn starts at once when idle). A
turn is level-triggered: for every service that something touched it compares what is wanted with what is there, so a lost
or repeated value does no harm; the kernel's table is probed once a second and walked in slices besides, so that nothing
needs to be told to be found. What does not fit in a turn's budget goes on in the next.
Runs on the event loop's thread; nothing here locks or blocks but the kernel's own short system calls.
Does not: know HTTP, Serf, SQLite or `ip`; those enter values or take wishes through ports.
"""

from __future__ import annotations

import asyncio
import logging
from collections import ChainMap, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pyipvs
from fusisd import fold, foresight, look, marks, membership, plan, target, targets, views
from fusisd.admission import Policy
from fusisd.answers import Answers, resolve
from fusisd.applier import Applier, KernelTimeouts
from fusisd.commands import EndDrain
from fusisd.counts import Counts
from fusisd.drains import DrainKey
from fusisd.inbox import Beginning, Committed, MembersSeen, PathsNoted, ProbeChanged, Refresh, SerfState, Told, Value
from fusisd.journal import Journal
from fusisd.look import Look
from fusisd.model import CheckTarget, HostSeen, HostWanted, Intent
from fusisd.ports import ChecksPort, Foreseen, HostPort, KernelPort, KernelService, KernelTable, Snapshot
from fusisd.target import TargetService, World
from pyipvs import ServiceKey

log = logging.getLogger(__name__)

TURN_BUDGET_S = 0.03  # operations of one turn stop here and go on in the next, so that the loop answers others
DRAIN_RETRY_S = 5.0  # how soon the committer is told again of a drain that is over
ERROR_PAUSE_S = 0.2
AT_A_TIME = 200  # destinations that are judged or compared before the clock is looked at again

T = TypeVar("T")


class Control:
    """The one owner. Make it, `start()` it, run `run()` as a task, `enter()` values, read `snapshot`."""

    def __init__(
        self,
        kernel: KernelPort,
        host: HostPort,
        checks: ChecksPort,
        clock: Callable[[], float],
        beginning: Beginning,
        told: Told,
        counts: Counts | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`clock` is monotonic seconds; `counts` is written by others, too; the `journal` is told what happens."""
        self.journal = journal or Journal(clock)
        self._kernel, self._host, self._checks, self._clock, self._told = kernel, host, checks, clock, told
        nodes, owned = membership.recalled(beginning.remembered, clock()), beginning.owned | beginning.paths.keys()
        begun = World(beginning.intent, nodes, owned=owned, drains=beginning.drains, withdrawn=beginning.withdrawn)
        self._world = replace(begun, host=HostSeen(beginning.vips), offers=target.offered(nodes), policy=beginning.policy)
        self._marks = marks.Marks(beginning.paths, beginning.path_marks)
        self._remembered, self._memory = nodes, membership.memory(nodes)
        self._awaiting_serf = beginning.serf_expected
        self._serf_problem = "not connected yet" if beginning.serf_expected else ""
        self._targets, self._views, self._look = targets.Targets(), views.Views(), Look(kernel, clock)
        self._applier = Applier(kernel, clock, self.journal)
        self._host_wanted: HostWanted | None = None
        self._checks_wanted: frozenset[CheckTarget] = self._targets.checks
        self._touched: set[str] = set()
        self._pending: set[ServiceKey] = set()
        self._inbox: deque[tuple[float, Value]] = deque()
        self._bell = asyncio.Event()
        self._answers = Answers()
        self._drained_told: dict[DrainKey, float] = {}
        self._timeouts = KernelTimeouts(kernel)
        self._paused_until_s = beginning.paused_until_s
        self._counts = counts or Counts()
        self._facts = beginning.facts
        self.snapshot = Snapshot(0, clock())

    # What others on the loop may ask.

    def foreign(self, key: ServiceKey) -> KernelService | None:
        """The kernel's service of that key as it is now, when it is there and not ours. Raises pyipvs.IPVSError."""
        return None if key in self.owned else self._kernel.read_service(key)

    def foresight(self, before: Intent, value: Committed) -> Callable[[], Foreseen]:
        """What works out what this commit would come to, were it entered now."""
        return partial(foresight.foreseen, self._world, before, value, self._clock(), self._awaiting_serf)

    def cannot_load(self, service: pyipvs.Service) -> str:
        """Why the kernel has not its scheduler or persistence engine; "" when it has. Raises pyipvs.IPVSError."""
        return self._kernel.can_load(service)

    @property
    def owned(self) -> frozenset[ServiceKey]:
        """The services that are ours."""
        return self._world.owned

    @property
    def intent(self) -> Intent:
        """The durable intent that turns work with."""
        return self._world.intent

    @property
    def host(self) -> HostSeen:
        """What the host has of what is wanted; any thread may read it."""
        return self._world.host

    @property
    def nodes(self) -> membership.Nodes:
        """What Serf has shown."""
        return self._world.nodes

    @property
    def target(self) -> target.Target:
        """What should be so."""
        return self._targets.target

    @property
    def marks(self) -> marks.Marks:
        """The firewall marks of path checks."""
        return self._marks

    @property
    def read_cost_s(self) -> float:
        """How long the last look at the kernel took."""
        return self._look.cost_s

    def look(self) -> KernelTable:
        """Read the kernel's whole table; before `start`. Raises pyipvs.IPVSError."""
        self._world = replace(self._world, table=self._look.whole())
        return self._world.table

    def start(self, claimed: frozenset[ServiceKey] = frozenset()) -> None:
        """Run the first turn, after `look`; `claimed` became ours since the stores were read."""
        self._world = replace(self._world, owned=self.owned | claimed)
        self._touched, self._pending = set(self.intent.services), set(self.owned)
        self._targets.look_at_foreign(self._world)
        now_s = self._clock()
        self._work([], now_s, float("inf"))
        self._counts.tell(self._clock() - now_s)

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
                self._touched |= set(self.intent.services)
                await asyncio.sleep(ERROR_PAUSE_S)

    def turn(self) -> None:
        """Take everything in the inbox, make the kernel follow, publish."""
        now_s = self._clock()
        entered = [self._inbox.popleft() for _ in range(len(self._inbox))]
        self._bell.clear()
        refreshers = [value.waiter for _, value in entered if isinstance(value, Refresh)]
        stamps = [stamp for stamp, value in entered if not isinstance(value, Refresh)]
        self._fold([value for _, value in entered], now_s)
        if not stamps or self._look.overdue(now_s):  # what was told just now comes before what must be searched for
            self._look_at_kernel(now_s, bool(refreshers))
        self._work(stamps, now_s)
        for waiter in refreshers:
            if stamps:
                self.enter(Refresh(waiter))
            else:
                resolve(waiter, self.snapshot)
        self._counts.turned(self._clock() - now_s)

    async def _wait(self) -> None:
        others = [self._targets.wake_s, self._applier.retry_s, self._answers.due_s]
        wake_s = min([self._look.next_s, *(at_s for at_s in others if at_s is not None)])
        try:
            async with asyncio.timeout(max(0.0, wake_s - self._clock())):
                await self._bell.wait()
        except TimeoutError:
            pass  # a deadline of our own: the probe, a retry, a drain

    # Values into the world.

    def _fold(self, values: Collection[Value], now_s: float) -> None:
        found = [(value.check, value.health) for value in values if isinstance(value, ProbeChanged)]
        for value in values:
            match value:
                case Committed():
                    self._take(fold.committed(self._world, value))
                    if value.paused_until_s is not None:
                        self._paused_until_s = value.paused_until_s
                    self._answers.wait(value.waiters, now_s)
                case MembersSeen(members):
                    before = self._world.nodes
                    self._take(fold.members(self._world, members, now_s, self._targets.serving))
                    self.journal.nodes(before, self._world.nodes)
                    self._pending |= self.owned if self._awaiting_serf else frozenset()
                    self._awaiting_serf = False
                case PathsNoted(rows, problem):
                    keys = self._marks.noted(rows, problem, now_s)
                    self._world = replace(self._world, owned=self.owned | keys)
                    self._pending |= keys
                case Policy():
                    self._take(fold.policy(self._world, value))
                case SerfState(problem):
                    self.journal.serf(self._serf_problem, problem)
                    self._serf_problem = problem
                case HostSeen():
                    self.journal.host(self._world.host, value, self._world.withdrawn)
                    self._pending |= self.owned if self._world.host.vips != value.vips else frozenset()
                    self._take(fold.host(self._world, value, self._host_wanted or HostWanted(), self._targets.services))
        if checks := dict(found):
            self.journal.health(self._world.health, found, self._targets.places(checks))
            self._take(fold.health(self._world, checks, self._targets.watchers(checks)))

    def _take(self, folded: fold.Folded) -> None:
        self._world, touched = folded
        self._touched |= touched

    def _look_at_kernel(self, now_s: float, asked: bool) -> None:
        """Take in what somebody else changed; our own changes are known already."""
        seen = self._look.again(now_s, asked, self._targets.draining())
        if not seen:
            return
        news = look.news(self._world.table, seen)
        for key in look.drifted(self._world.table, news, self.owned):
            self._counts.drift += 1
            self.journal.drift(self._targets.name_of(key), key, look.told(news[key]))
        self._take(fold.kernel(self._world, news))
        self._pending |= self.owned.intersection(news)
        self._targets.look_at_foreign(self._world)

    # What follows from it.

    def _work(self, stamps: list[float], now_s: float, until_s: float | None = None) -> None:
        """Bring the target up to date, apply the difference, tell the others, publish."""
        until_s = now_s + TURN_BUDGET_S if until_s is None else until_s
        self._touched |= self._targets.due(now_s)
        self._targets.withdraw(self._world.withdrawn)
        self._build(now_s, until_s)
        self._follow_paths(now_s)
        left = self._apply(stamps, now_s, until_s)
        if now_s >= self._paused_until_s:
            self._timeouts.set(self._world.intent.timeouts)
            self._tell_host()
        self._tell_checks()
        self._tell_drained(now_s)
        self._keep_memory()
        self._publish(now_s)
        self._answers.give(self.snapshot, not left and self._world.host.settled, now_s)
        self.journal.turned()

    def _build(self, now_s: float, until_s: float) -> None:
        """The target of what was touched, a few services at a time as long as there is time."""
        services = self._world.intent.services
        while self._touched:
            names = _some(self._touched, lambda name: len(services[name].destinations) if name in services else 0)
            self._pending |= self._targets.update(self._world, names, now_s)
            self._touched.difference_update(names)
            if self._clock() > until_s:
                break

    def _follow_paths(self, now_s: float) -> None:
        """Have marks for the paths that are wanted now, and think again where a check through the VIP became possible."""
        chosen, over = self._marks.follow(self._targets.host.paths, self._world, now_s, self._awaiting_serf)
        if chosen:
            self._told.paths(chosen)
        self._pending |= over
        self._world, changed = marks.with_impossible(self._world, self._marks)
        if changed:
            self._touched |= self._targets.led_to(changed)
            self._bell.set()

    @property
    def _services(self) -> Mapping[ServiceKey, TargetService]:
        """All that should be in the kernel, the hidden services of path checks with the rest."""
        own, paths = self._targets.services, self._marks.services
        return ChainMap(own, paths) if paths else own

    def _apply(self, stamps: list[float], now_s: float, until_s: float) -> bool:
        """Apply what the plan asks for, a few services at a time; whether something is left that will not wait."""
        if now_s < self._paused_until_s:
            return bool(self._touched)
        self._pending |= self._applier.due(now_s)
        services = self._services
        while self._pending:
            keys = _some(self._pending, lambda key: len(s.verdicts) if (s := services.get(key)) else 0)
            self._pending.difference_update(keys)
            self._apply_to(keys, stamps, now_s, until_s)
            if self._clock() > until_s:
                break
        left = bool(self._pending or self._touched)
        if left:
            self._bell.set()
        return left

    def _apply_to(self, keys: Collection[ServiceKey], stamps: list[float], now_s: float, until_s: float) -> None:
        world = self._world
        bounds = plan.Bounds(world.owned, world.host.vips, self._targets.host.vips, self._awaiting_serf)
        ops = plan.diff(keys, self._services, world.table, bounds)
        done = self._applier.apply(ops, keys, until_s, now_s)
        if ops:
            owned = world.owned - done.lost if done.lost else world.owned
            self._world = replace(world, table=plan.after(world.table, done.changes), owned=owned)
            self._look.expect(done.touched)
            self._look.suspect(done.suspect)
            self._follow_up(done.touched)
            reaction_s = self._clock() - min(stamps) if stamps else None
            self._counts.applied(done.changes, done.refused, len(ops), reaction_s)
        self._pending |= done.left
        self._let_go(keys, done.lost)

    def _follow_up(self, keys: frozenset[ServiceKey]) -> None:
        """Where it matters what the kernel has, what is wanted may be another thing now: the next turn looks at it."""
        names = self._targets.unsettled(keys)
        unwanted = [key for key in keys if key not in self._targets.services]
        names |= targets.touched_by_keys(unwanted, self.intent.services.values())
        if names:
            self._touched |= names
            self._bell.set()

    def _let_go(self, keys: Iterable[ServiceKey], lost: frozenset[ServiceKey]) -> None:
        """Give up what is wanted no more and not in the kernel, and what turned out to be somebody else's."""
        world, wanted = self._world, self._services
        gone = {key for key in keys if key in world.owned and key not in wanted and key not in world.table}
        if gone or lost:
            self._world = replace(world, owned=world.owned - gone)
            self._touched |= targets.touched_by_keys(lost, self.intent.services.values())
            self._told.released(gone | lost)

    def _tell_checks(self) -> None:
        wanted = self._marks.askable(self._targets.checks, self._world)
        if wanted is not self._checks_wanted:
            self._checks_wanted = wanted
            health = {check: found for check, found in self._world.health.items() if check in self._checks_wanted}
            self._world = replace(self._world, health=health)
            self._checks.want(self._checks_wanted)

    def _tell_host(self) -> None:
        if self._targets.host != self._host_wanted:
            self._host_wanted = self._targets.host
            self._world = fold.told_host(self._world, self._host_wanted)
            self._host.want(self._host_wanted)

    def _tell_drained(self, now_s: float) -> None:
        """Have removed what has drained; told again when nothing came of it (the store could not be written)."""
        over = set(self._targets.drained())
        self._drained_told = {key: at_s for key, at_s in self._drained_told.items() if key in over}
        for key in over:
            if now_s - self._drained_told.get(key, -DRAIN_RETRY_S) >= DRAIN_RETRY_S:
                self._drained_told[key] = now_s
                self._told.drained(EndDrain(*key))

    def _keep_memory(self) -> None:
        if self._world.nodes is self._remembered:
            return
        self._remembered = self._world.nodes
        memory = membership.memory(self._world.nodes)
        if memory != self._memory:
            self._memory = memory
            self._told.memory(memory)

    def _publish(self, now_s: float) -> None:
        problems = [f"serf: {self._serf_problem}"] if self._serf_problem else []
        problems += [f"kernel: {self._look.problem}"] if self._look.problem else []
        problems += [f"timeouts: {self._timeouts.problem}"] if self._timeouts.problem else []
        held = "changes are paused" if now_s < self._paused_until_s else ""
        if held:
            problems.append(f"paused for {self._paused_until_s - now_s:.0f} s more: nothing is changed in the kernel")
        facts = {**self._facts, "serf_connected": not self._serf_problem, "checks": self._checks.figures}
        facts["path_checks"] = self._marks.shown(self._world)
        built, reasons = self._targets, self._applier.reasons()
        told = (tuple(problems), self._counts, facts, built.counting, held, self._marks.services, self._marks.range)
        known = views.Known(self._world, built.target, reasons, *told)
        self.snapshot = self._views.snapshot(known, self.snapshot.generation + 1, now_s)


def _some(names: Iterable[T], size: Callable[[T], int]) -> list[T]:
    """The first of these, until they have a few hundred destinations together: some milliseconds of work."""
    found, total = [], 0
    for name in names:
        found.append(name)
        total += size(name) + 1
        if total > AT_A_TIME:
            break
    return found
