"""Any sequence of commands, member lists, probe results, meddling hands, crashes and jumps of the clock leaves the
invariants true: a stateful property test of the whole core on a fake kernel.

`Machine` speaks to the kernel through pyipvs alone, so tests/kernel/test_machine.py runs the very same on the real one.
"""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import pyipvs
from fusisd import plan, state, target, views
from fusisd.commands import (
    AddDestination,
    AddService,
    CancelDrain,
    Command,
    DeleteDestination,
    DeleteService,
    UpdateDestination,
    UpdateService,
)
from fusisd.errors import Refused
from fusisd.inbox import Beginning, Committed, MembersSeen, ProbeChanged
from fusisd.judge import Drain, DrainKey
from fusisd.model import Announce, CheckSpec, CheckState, Destination, Health, Intent, Service, Tier
from fusisd.notes import Notes, drains_after
from pyipvs import IPVS, ServiceKey
from tests.fusisd.world import ROUTE, Daemon, member

NAMES = ["web", "dns"]
KEYS = [ServiceKey.parse(text) for text in ("tcp/10.0.0.1:80", "udp/10.0.0.1:80", "tcp/10.0.0.2:80")]
FOREIGN = ServiceKey.parse("tcp/10.9.9.9:80")
SETTLING = 6  # turns, a second and a bit apart
LONGEST_S = 120.0

numbers = st.integers(1, 4)
services = st.builds(
    Service,
    st.sampled_from(NAMES),
    st.sampled_from(KEYS),
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
)
tags = st.sampled_from(["s:web", "s:dns"]).map(lambda tag: {"role": "agent", tag: "80/route/2"}) | st.just({"role": "agent"})
lists = st.lists(
    st.builds(member, numbers, st.sampled_from(["alive", "leaving", "left", "failed"]), tags),
    max_size=4,
    unique_by=lambda one: one.name,
)


class Machine(RuleBasedStateMachine):
    """fusisd's core, with everything around it played by the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.intent, self.drains = Intent(), dict[DrainKey, Drain]()
        self.daemon = self.made(Beginning())

    def made(self, beginning: Beginning) -> Daemon:
        """A daemon on the kernel of this machine; an earlier one's is kept."""
        return Daemon(beginning, self.daemon.fake if hasattr(self, "daemon") else None)

    @property
    def ipvs(self) -> IPVS:
        return self.daemon.ipvs

    @initialize()
    def somebody_else_balances_too(self) -> None:
        self.ipvs.add_service(FOREIGN, scheduler="rr")
        self.ipvs.add_destination(FOREIGN, "10.9.9.1:80", method="route", weight=7)

    @rule(command=commands)
    def an_operator_commands(self, command: Command) -> None:
        self.submit(command)
        self.settle()

    @rule(members=lists)
    def serf_lists(self, members: list[Any]) -> None:
        self.daemon.turn(MembersSeen(tuple(members)))
        self.settle()

    @rule(number=numbers, up=st.booleans())
    def a_check_comes_to_a_conclusion(self, number: int, up: bool) -> None:
        found = Health(CheckState.UP if up else CheckState.DOWN, self.daemon.clock(), "" if up else "refused")
        mine = [check for check in self.daemon.checks.wanted if check.address == f"10.0.0.{10 + number}"]
        self.daemon.turn(*(ProbeChanged(check, found) for check in mine))
        self.settle()

    @rule(number=numbers, key=st.sampled_from(KEYS), weight=st.integers(0, 9))
    def somebody_meddles(self, number: int, key: ServiceKey, weight: int) -> None:
        """ipvsadm -e, -a or -D on what is ours."""
        if key not in self.daemon.control.owned:
            return
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

    @rule(seconds=st.sampled_from([1.0, 10.0, 40.0, LONGEST_S]))
    def time_passes(self, seconds: float) -> None:
        self.daemon.clock.now_s += seconds
        self.settle()

    @rule()
    def fusisd_is_killed_and_started_again(self) -> None:
        before = self.table()
        memory = self.daemon.memories[-1] if self.daemon.memories else frozenset()
        clock, health = self.daemon.clock, dict(self.daemon.control._world.health)
        owned, ended = self.daemon.control.owned, self.daemon.drained
        beginning = Beginning(self.intent, owned, tuple(memory), True, dict(self.drains))
        daemon = self.made(beginning)
        daemon.clock.now_s = clock.now_s
        daemon.drained.extend(ended)
        daemon.memories.extend(self.daemon.memories)
        self.daemon = daemon
        assert self.table() == before, "a restart moves nothing"
        daemon.turn(*(ProbeChanged(check, found) for check, found in health.items()))
        self.settle()

    def submit(self, command: Command) -> None:
        """What door, committer and store would make of it."""
        try:
            after = state.apply(self.intent, command)
        except Refused:
            return
        claimed = {service.key for service in after.services.values()}
        if claimed & {FOREIGN}:
            return
        drains_after(self.drains, Notes(), command, after, self.daemon.clock())
        self.intent = state.replace(after, revision=self.intent.revision + 1)
        self.daemon.turn(Committed(self.intent, frozenset(claimed), drains=dict(self.drains)))

    def settle(self) -> None:
        for _ in range(SETTLING):
            self.daemon.clock.now_s += 1.1
            self.daemon.turn()
            ended = list(self.daemon.drained)
            self.daemon.drained.clear()
            for command in ended:
                self.submit(command)

    def table(self) -> dict[str, Any]:
        """The kernel's configuration."""
        table = self.ipvs.snapshot()
        return {str(key): (entry.service, sorted(map(str, entry.destinations))) for key, entry in table.items()}

    @invariant()
    def what_is_not_ours_is_as_it_was(self) -> None:
        try:
            (row,) = self.ipvs.destinations(FOREIGN)
        except pyipvs.ServiceNotFound:
            return  # before the first rule
        assert (str(row.destination), row.destination.weight) == ("10.9.9.1:80", 7)

    @invariant()
    def the_target_kept_is_the_target_built(self) -> None:
        control = self.daemon.control
        built = target.build(control._world, self.daemon.clock())
        assert control.target == built

    @invariant()
    def the_view_kept_is_what_a_fresh_look_shows(self) -> None:
        control, shown = self.daemon.control, self.daemon.control.snapshot
        waking = control._targets.waking
        known = views.Known(control._world, control.target, control._applier.reasons(), (), views.Counts(), {}, waking)
        assert shown.services == views.Views().snapshot(known, shown.generation, shown.at_s).services

    @invariant()
    def applying_twice_changes_nothing(self) -> None:
        control = self.daemon.control
        table = {
            key: plan.KernelService(entry.service, {d.key: plan.KernelDestination(d) for d in entry.destinations})
            for key, entry in self.ipvs.snapshot().items()
        }
        bounds = plan.Bounds(control.owned, frozenset(), control.target.host.vips, control._awaiting_serf)
        assert plan.diff(control.owned, control.target.services, table, bounds) == ()

    @invariant()
    def nothing_is_ours_that_nobody_wants(self) -> None:
        assert self.daemon.control.owned == {service.key for service in self.intent.services.values()}

    @invariant()
    def no_weight_for_a_failing_check_unless_nothing_passes(self) -> None:
        control = self.daemon.control
        for service in control.target.services.values():
            for verdict in service.verdicts:
                check = verdict.candidate.check
                health = control._world.health.get(check, Health()) if check is not None else Health()
                if verdict.weight and health.state is CheckState.DOWN:
                    assert "last good" in service.warning

    @invariant()
    def a_vip_stands_only_for_a_service_that_is_in_the_kernel(self) -> None:
        present = {service.service.key.address for service in self.ipvs.services()}
        assert self.daemon.host.wanted.vips <= present

    @invariant()
    def every_drain_is_of_something_and_ends(self) -> None:
        now_s = self.daemon.clock()
        for (service, _), drain in self.drains.items():
            assert service in self.intent.services
            assert now_s < drain.until_s + 10 or self.only_excluded(service)

    def only_excluded(self, name: str) -> bool:
        """A note of what Serf brought stays as long as it is excluded; nothing of it is in the kernel."""
        service = self.intent.services[name]
        return service.drain_s is None and all(one.drain_s is None for one in service.destinations.values())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
