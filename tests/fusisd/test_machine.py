"""Any sequence of commands, member lists, probe results, connections, meddling hands, crashes and jumps of the clock leaves
the invariants true: a stateful property test of the whole core on a fake kernel.

`Machine` speaks to the kernel through pyipvs alone, so tests/kernel/test_machine.py runs the very same on the real one.
What was once found is kept in `FOUND` as the steps that led there, and replayed on both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import INVARIANT_MARKER, RuleBasedStateMachine, initialize, invariant, rule

import pyipvs
from fusisd import notes, plan, state, target, targets, views
from fusisd.commands import (
    AddDestination,
    AddService,
    Adopt,
    CancelDrain,
    Command,
    DeleteDestination,
    DeleteService,
    Pause,
    Release,
    SetGlobals,
    UpdateDestination,
    UpdateService,
    Withdraw,
)
from fusisd.counts import Counts
from fusisd.door import Door
from fusisd.drains import Drain, DrainKey
from fusisd.errors import Refused
from fusisd.inbox import Beginning, Committed, MembersSeen, ProbeChanged, Value
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.model import (
    Announce,
    CheckSpec,
    CheckState,
    CheckTarget,
    Destination,
    Health,
    HostSeen,
    HostWanted,
    Intent,
    Service,
    Tier,
)
from fusisd.notes import Notes
from pyipvs import IPVS, ServiceKey, TableProbe
from pyipvs.testing import FakeKernel
from tests.fusisd.world import ROUTE, Daemon, Host, at, down, member

NAMES = ["web", "dns"]
KEYS = [ServiceKey.parse(text) for text in ("tcp/10.0.0.1:80", "udp/10.0.0.1:80", "tcp/10.0.0.2:80")]
FOREIGN = ServiceKey.parse("tcp/10.9.9.9:80")
SETTLING = 6  # turns, a second and a bit apart
SLOW_S = 0.02  # how far each look at the clock moves it when a turn is slow: two fill the turn's budget
LONGEST_S = 120.0
PAUSE_S = 60.0
NO_TIME_LEFT_S = 10.0  # a drain's deadline and what settling takes

numbers = st.integers(1, 4)
which = st.integers(0, 99)
keys = st.sampled_from([*KEYS, FOREIGN])
services = st.builds(
    Service,
    st.sampled_from(NAMES),
    keys,
    st.sampled_from(["rr", "wlc", "sh"]),
    check=st.sampled_from([None, CheckSpec()]),
    announce=st.sampled_from(Announce),
)
destinations = st.builds(
    lambda number, weight, tier, check: Destination(
        f"d{number}", f"10.0.0.{10 + number}", 80, weight, ROUTE, tier=tier, check=check
    ),
    numbers,
    st.integers(0, 3),
    st.sampled_from(Tier),
    st.sampled_from([None, CheckSpec()]),
)
drains_s = st.sampled_from([None, 5.0, 60.0])
names = st.sampled_from(NAMES)
commands = st.one_of(
    st.builds(AddService, services),
    st.builds(UpdateService, services),
    st.builds(DeleteService, names, drains_s),
    st.builds(AddDestination, names, destinations),
    st.builds(UpdateDestination, names, destinations),
    st.builds(DeleteDestination, names, numbers.map(lambda n: f"d{n}"), drains_s),
    st.builds(DeleteDestination, names, numbers.map(lambda n: f"rs{n}"), drains_s),
    st.builds(CancelDrain, names, st.none() | numbers.map(lambda n: f"d{n}")),
    st.builds(Adopt, names, keys),
    st.builds(Release, names),
    st.builds(Withdraw, st.booleans()),
    st.builds(SetGlobals, st.builds(pyipvs.Timeouts, *[st.sampled_from([0, 100, 200])] * 3)),
)
tags = st.sampled_from(["s:web", "s:dns"]).map(lambda tag: {"role": "agent", tag: "80/route/2"}) | st.just({"role": "agent"})
lists = st.lists(
    st.builds(member, numbers, st.sampled_from(["alive", "leaving", "left", "failed"]), tags),
    max_size=4,
    unique_by=lambda one: one.name,
)


class Interface(Host):
    """The host, which outlives fusisd: what stands on it, and that a VIP comes last."""

    def __init__(self, ipvs: IPVS) -> None:
        super().__init__()
        self.standing: frozenset[str] = frozenset()
        self.ready: Callable[[str], bool] = lambda address: True
        self._ipvs = ipvs

    def want(self, wanted: HostWanted) -> None:
        served = {entry.service.key.address for entry in self._ipvs.services()}
        for address in wanted.standing - self.standing:
            assert address in served, f"{address} is announced before its service is in the kernel"
            assert self.ready(address), f"{address} is announced before its service's destinations are in the kernel"
        super().want(wanted)

    def seen(self) -> HostSeen:
        self.standing = self.wanted.standing
        return super().seen()


class Witness(IpvsKernel):
    """The kernel, and that a VIP goes first."""

    def __init__(self, ipvs: IPVS, probe: TableProbe | None, interface: Interface) -> None:
        super().__init__(ipvs, probe)
        self._interface = interface

    def apply(self, changes: Sequence[pyipvs.Change]) -> Sequence[pyipvs.Failure]:
        failures = super().apply(changes)
        gone = {change.key.address for change in changes if isinstance(change, pyipvs.DeleteService)}
        served = {entry.service.key.address for entry in self._ipvs.services()}
        assert not gone & self._interface.standing - served, "a service was deleted before its VIP"
        return failures


class Machine(RuleBasedStateMachine):
    """fusisd's core, with everything around it played by the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.ipvs, self.probe = self.opened()
        self.interface = Interface(self.ipvs)
        self.intent, self.drains = Intent(), dict[DrainKey, Drain]()
        self.noted: set[ServiceKey] = set()
        self.withdrawn, self.paused_until_s = False, 0.0
        self.others: dict[str, Any] = {}  # what is not ours, as it must stay
        self.daemon = self.begun(Beginning(serf_expected=False))

    def opened(self) -> tuple[IPVS, TableProbe | None]:
        """An empty table."""
        self.fake = FakeKernel()
        return IPVS(transport=self.fake), None

    def connections(self, key: str, destination: str, active: int) -> None:
        """Clients come or go."""
        self.fake.traffic(key, destination, active=active)

    def begun(self, beginning: Beginning) -> Daemon:
        daemon = Daemon(beginning, kernel=Witness(self.ipvs, self.probe, self.interface), host=self.interface)
        self.interface.ready = self.ready
        return daemon

    def ready(self, address: str) -> bool:
        """All that should be in the kernel below this address is."""
        wanted = self.daemon.control.target.services.items()
        table = self.ipvs.snapshot()
        return all(
            {row.key for row in table[key].destinations} >= service.destinations().keys()
            for key, service in wanted
            if key.address == address and key in table and not service.over
        )

    # What happens.

    @initialize(begun=st.sampled_from([True, True, True, False]))
    def somebody_else_balances_too(self, begun: bool = False) -> None:
        """And two servers serve already, mostly: what goes wrong seldom does so on an empty table."""
        self.ipvs.add_service(FOREIGN, scheduler="rr")
        self.ipvs.add_destination(FOREIGN, "10.9.9.1:80", method="route", weight=7)
        self.others = self.table()
        if begun:
            rows = (Destination(f"d{number}", f"10.0.0.{10 + number}", 80, 1, ROUTE) for number in (1, 2))
            self.submit(AddService(Service("web", KEYS[0], destinations={row.name: row for row in rows}, check=CheckSpec())))
            self.submit(AddService(Service("dns", KEYS[1], check=CheckSpec())))
            self.settle()
            self.checks_tell(dict.fromkeys(self.daemon.checks.wanted, Health(CheckState.UP)))
            self.settle()

    @rule(command=commands, slow=st.booleans())
    def an_operator_commands(self, command: Command, slow: bool) -> None:
        self.submit(command, slow)
        self.settle()

    @rule(members=lists)
    def serf_lists(self, members: list[Any]) -> None:
        self.observed(MembersSeen(tuple(members)))
        self.settle()

    @rule(which=which, up=st.booleans())
    def a_check_comes_to_a_conclusion(self, which: int, up: bool) -> None:
        found = Health(CheckState.UP if up else CheckState.DOWN, self.daemon.clock(), "" if up else "refused")
        if wanted := sorted(self.daemon.checks.wanted, key=str):
            self.observed(ProbeChanged(wanted[which % len(wanted)], found))
        self.settle()

    @rule(which=which, active=st.integers(0, 2))
    def clients_connect(self, which: int, active: int) -> None:
        ours = self.daemon.control.owned & self.ipvs.snapshot().keys()
        places = sorted((str(key), str(row.destination)) for key in ours for row in self.ipvs.destinations(key))
        if places:
            self.connections(*places[which % len(places)], active)
        self.settle()

    @rule(number=numbers, which=which, weight=st.integers(0, 9))
    def somebody_meddles(self, number: int, which: int, weight: int) -> None:
        """ipvsadm -e, -a or -D on what is ours."""
        if not (ours := sorted(self.daemon.control.owned, key=str)):
            return
        key = ours[which % len(ours)]
        meddled = pyipvs.Destination(f"10.0.0.{10 + number}", 80, weight, ROUTE)
        for verb in (self.ipvs.update_destination, self.ipvs.add_destination):
            try:
                verb(key, meddled)
                break
            except pyipvs.IPVSError:
                continue
        if weight == 9:
            with contextlib.suppress(pyipvs.ServiceNotFound):
                self.ipvs.delete_service(key)
        self.settle()

    @rule(command=commands, killed=st.booleans(), expires=st.booleans())
    def an_operator_pauses(self, command: Command, killed: bool, expires: bool) -> None:
        """Nothing is changed until the pause ends, by itself or by word; what was asked for meanwhile comes then."""
        self.submit(Pause(PAUSE_S))
        before, stands = self.table(), self.interface.standing
        self.submit(command)
        health = self.restart() if killed else {}
        self.checks_tell(health)
        assert (self.table(), self.interface.standing) == (before, stands)
        if expires:
            self.daemon.clock.now_s += PAUSE_S
        else:
            self.submit(Pause(0.0))
        self.settle()

    @rule(seconds=st.sampled_from([1.0, 10.0, 40.0, LONGEST_S]))
    def time_passes(self, seconds: float) -> None:
        self.daemon.clock.now_s += seconds
        self.settle()

    @rule()
    def fusisd_is_killed_and_started_again(self) -> None:
        before, health = self.table(), self.restart()
        assert self.table() == before, "a restart moves nothing"
        self.checks_tell(health)
        self.settle()

    @rule(command=commands, applied=st.booleans())
    def fusisd_is_killed_in_the_midst(self, command: Command, applied: bool) -> None:
        """After a change was stored, before it was applied or when a part of it was."""
        self.submit(command, slow=True, applied=applied)
        self.checks_tell(self.restart())
        self.settle()

    def observed(self, value: Value) -> None:
        """What is told counts at once, and not only when the kernel is looked at the next time."""
        self.daemon.turn(value)
        self.the_target_kept_is_the_target_built()

    # What door, committer, stores and checks would make of it.

    def submit(self, command: Command, slow: bool = False, applied: bool = True) -> None:
        control, taken, before = self.daemon.control, Notes(), self.intent
        try:
            command = Door(control, self.interface).check(command, before)
            after = state.apply(before, command)
        except Refused:
            return
        notes.take(taken, command, before, control.target, self.daemon.clock())
        notes.drains_after(self.drains, taken, command, after, self.daemon.clock())
        notes.keep_wanted(taken, after)
        changed = targets.touched_by_intent(before, after)
        claimed = frozenset(service.key for name, service in after.services.items() if name in changed)
        self.withdrawn = self.withdrawn if taken.withdrawn is None else taken.withdrawn
        self.paused_until_s = self.paused_until_s if taken.paused_until_s is None else taken.paused_until_s
        self.intent = state.replace(after, revision=before.revision + 1)
        self.noted = (self.noted | claimed) - taken.let_go
        if isinstance(command, Adopt):
            del self.others[str(command.key)]
        if isinstance(command, Release) and (row := self.table().get(str(before.services[command.name].key))):
            self.others[str(before.services[command.name].key)] = row
        if applied:
            let_go = frozenset(taken.let_go)
            self.daemon.control.enter(
                Committed(
                    self.intent, claimed, (), let_go, dict(self.drains), taken.paused_until_s, withdrawn=taken.withdrawn
                )
            )
            self.daemon.clock.step_s = SLOW_S if slow else 0.0
            self.daemon.control.turn()
            self.daemon.clock.step_s = 0.0

    def settle(self) -> None:
        for _ in range(SETTLING):
            self.daemon.clock.now_s += 1.1
            self.daemon.turn()
            self.note_released()
            ended = list(self.daemon.drained)
            self.daemon.drained.clear()
            for command in ended:
                self.submit(command)

    def note_released(self) -> None:
        wanted = {service.key for service in self.intent.services.values()}
        self.noted -= set(self.daemon.released) - wanted
        self.daemon.released.clear()

    def restart(self) -> dict[Any, Health]:
        """A new daemon from what the stores hold; what the checks would say."""
        self.note_released()
        old = self.daemon
        memory = old.memories[-1] if old.memories else frozenset()
        noted, standing = frozenset(self.noted), self.interface.standing
        stored = Beginning(
            self.intent, noted, tuple(memory), True, dict(self.drains), vips=standing, paths=dict(old.paths),
            paused_until_s=self.paused_until_s, withdrawn=self.withdrawn,
        )  # fmt: skip
        self.daemon = self.begun(stored)
        self.daemon.clock.now_s = old.clock.now_s
        self.daemon.memories.extend(old.memories)
        return dict(old.control._world.health)

    def checks_tell(self, health: dict[Any, Health]) -> None:
        wanted = self.daemon.checks.wanted
        self.daemon.turn(*(ProbeChanged(check, found) for check, found in health.items() if check in wanted))

    def table(self) -> dict[str, Any]:
        """The kernel's configuration."""
        table = self.ipvs.snapshot()
        return {
            str(key): (entry.service, sorted((str(row), row.weight) for row in entry.destinations))
            for key, entry in table.items()
        }

    # What must be true whenever it has settled.

    @invariant()
    def what_is_not_ours_is_as_it_was(self) -> None:
        table = self.table()
        assert {key: table.get(key) for key in self.others} == self.others

    @invariant()
    def the_kernel_s_timeouts_are_those_asked_for(self) -> None:
        pairs = zip(astuple(self.intent.timeouts), astuple(self.ipvs.timeouts()), strict=True)
        assert all(wanted in (0, there) for wanted, there in pairs)

    @invariant()
    def every_service_has_one_owner(self) -> None:
        """Ours is what is wanted and nothing else, and everything else is somebody else's."""
        ours = {service.key for service in self.intent.services.values()}
        assert self.daemon.control.owned == ours | self.daemon.paths.keys()
        assert self.noted == ours
        hidden = self.daemon.paths.keys()
        assert self.table().keys() == {str(key) for key in ours | hidden} | self.others.keys()

    @invariant()
    def the_target_kept_is_the_target_built(self) -> None:
        control = self.daemon.control
        built = target.build(control._world, self.daemon.clock())
        assert control.target == built
        wakes = {service.name: service.wake_s for service in built.services.values() if service.wake_s is not None}
        for at_s in (self.daemon.clock(), self.daemon.clock() + LONGEST_S):
            assert control._targets.due(at_s) == {name for name, wake_s in wakes.items() if wake_s <= at_s}

    @invariant()
    def a_balancer_that_is_withdrawn_has_no_vip(self) -> None:
        assert self.daemon.control.target.host.withdrawn is self.withdrawn
        assert not (self.withdrawn and self.interface.standing)

    @invariant()
    def the_view_kept_is_what_a_fresh_look_shows(self) -> None:
        control, shown = self.daemon.control, self.daemon.control.snapshot
        counting = control._targets.counting
        held = "changes are paused" if shown.at_s < control._paused_until_s else ""
        reasons = control._applier.reasons()
        known = views.Known(control._world, control.target, reasons, (), Counts(), {}, counting, held)
        assert shown.services == views.Views().snapshot(known, shown.generation, shown.at_s).services

    @invariant()
    def applying_twice_changes_nothing(self) -> None:
        control = self.daemon.control
        table = {
            key: plan.KernelService(entry.service, {d.key: plan.KernelDestination(d) for d in entry.destinations})
            for key, entry in self.ipvs.snapshot().items()
        }
        bounds = plan.Bounds(control.owned, frozenset(), control.target.host.vips, control._awaiting_serf)
        assert plan.diff(control.owned, control._services, table, bounds) == ()

    @invariant()
    def each_path_that_is_wanted_has_one_hidden_service_and_none_is_left_over(self) -> None:
        control, noted = self.daemon.control, self.daemon.paths
        table = self.ipvs.snapshot()
        for key, path in noted.items():
            assert [(row.address, row.port, row.weight) for row in table[key].destinations] == [(path.address, 0, 1)]
        assert sorted(map(str, noted.values())) == sorted(set(map(str, noted.values()))), "one for each"
        wanted = control.target.host.paths
        assert wanted <= set(noted.values()) if control._awaiting_serf else wanted == set(noted.values())

    @invariant()
    def who_is_asked_through_the_vip_is_asked_himself(self) -> None:
        """A marked probe without its service in the kernel would reach any server."""
        asked = {check.path for check in self.daemon.checks.wanted if check.path is not None}
        assert asked <= set(self.daemon.paths.values())

    @invariant()
    def no_weight_for_a_failing_check_unless_nothing_passes(self) -> None:
        """As the kernel has it."""
        world = self.daemon.control._world
        for key, service in self.daemon.control.target.services.items():
            rows = {row.destination.key: row.destination.weight for row in self.ipvs.destinations(key)}
            candidates = [verdict.candidate for verdict in service.verdicts if verdict.candidate.check is not None]
            asked = [(c, target.heard(c, world).state) for c in candidates]
            passing = [c for c, found in asked if found is CheckState.UP and c.drain is None and not c.problem]
            serving = [c for c in passing if c.destination.weight]
            failing = [c for c, found in asked if found is CheckState.DOWN and rows.get(c.destination.key)]
            assert not (serving and failing)
            assert not failing or "last good" in service.warning

    @invariant()
    def no_vip_is_an_orphan(self) -> None:
        """Each stands for a service of ours that is in the kernel, and each that should stand always does."""
        present = {entry.service.key for entry in self.ipvs.services()}
        managed = [service for service in self.intent.services.values() if service.vip_managed and service.key in present]
        assert self.interface.standing <= {service.key.address for service in managed}
        always = {service.key.address for service in managed if service.announce is Announce.ALWAYS}
        assert self.withdrawn or self.interface.standing >= always

    @invariant()
    def every_drain_is_of_something_and_ends(self) -> None:
        now_s = self.daemon.clock()
        for (service, _), drain in self.drains.items():
            assert service in self.intent.services
            assert drain.since_s <= now_s
            assert now_s < drain.until_s + NO_TIME_LEFT_S or self.only_excluded(service)
        for key, built in self.daemon.control.target.services.items():
            rows = {row.destination.key: row for row in self.ipvs.destinations(key)}
            drains = [v.candidate for v in built.verdicts if v.candidate.drain is not None and not v.candidate.problem]
            for candidate in drains:
                if (row := rows.get(candidate.destination.key)) is not None:
                    assert row.active, "nothing is waited for"
                    assert not row.destination.weight, "what drains gets no new connections"
                    assert candidate.drain is None or now_s < candidate.drain.until_s + NO_TIME_LEFT_S

    def only_excluded(self, name: str) -> bool:
        """A note of what Serf brought stays as long as it is excluded; nothing of it is in the kernel."""
        service = self.intent.services[name]
        return service.drain_s is None and all(one.drain_s is None for one in service.destinations.values())


INVARIANTS = [name for name, found in vars(Machine).items() if hasattr(found, INVARIANT_MARKER)]
Step = Callable[[Machine], None]
FOUND: dict[str, list[Step]] = {
    "a server without a check that Serf called failed came back with our restart, until the first list": [
        lambda machine: machine.submit(AddService(Service("web", KEYS[1]))),
        lambda machine: machine.serf_lists([member(1, "failed")]),
        lambda machine: machine.fusisd_is_killed_and_started_again(),
    ],
    "killed before a delete was applied, the next fusisd deleted the service before its VIP": [
        lambda machine: machine.submit(AddService(Service("web", KEYS[0]))),
        lambda machine: machine.fusisd_is_killed_in_the_midst(DeleteService("web", None), False),
    ],
    "a destination of Serf's that drained was deleted with another deadline, which counted only when something else came": [
        lambda machine: machine.submit(AddService(Service("web", KEYS[0]))),
        lambda machine: machine.serf_lists([member(1)]),
        lambda machine: machine.checks_tell(dict.fromkeys(machine.daemon.checks.wanted, Health(CheckState.UP))),
        lambda machine: machine.connections(str(KEYS[0]), "10.0.0.11:80", 1),
        lambda machine: machine.submit(DeleteDestination("web", "rs1", 60.0)),
        lambda machine: machine.submit(DeleteDestination("web", "rs1", 5.0)),
        lambda machine: machine.the_target_kept_is_the_target_built(),
    ],
    "what had drained was told of a check that another service has, too, by a whole build alone": [
        lambda machine: machine.submit(AddService(Service("web", KEYS[0], destinations={"d4": at(4)}, check=CheckSpec()))),
        lambda machine: machine.submit(AddService(Service("dns", KEYS[2]))),
        lambda machine: machine.serf_lists([member(4, "leaving", {"role": "agent", "s:dns": "80/route/2"})]),
        lambda machine: machine.observed(ProbeChanged(CheckTarget("10.0.0.14", 80), down())),
    ],
}


def replayed(machine: Machine, steps: list[Step]) -> None:
    """One sequence of `FOUND`, with all invariants after each step."""
    try:
        machine.somebody_else_balances_too()
        for step in steps:
            step(machine)
            machine.settle()
            for name in INVARIANTS:
                getattr(machine, name)()
    finally:
        machine.teardown()


@pytest.mark.parametrize("steps", FOUND.values(), ids=FOUND)
def test_what_was_once_found_stays_repaired(steps: list[Step]) -> None:
    replayed(Machine(), steps)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
