"""The rules of when a destination serves: the table in target.py's docstring, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusisd import membership, target
from fusisd.drains import QUIET_S
from fusisd.model import CheckState, CheckTarget, Health, Intent, Masquerade
from fusisd.ports import KernelDestination, KernelService
from fusisd.serf.values import Member
from fusisd.target import Target, World
from pyipvs import Destination, Protocol, Service, ServiceKey
from tests.fusisd.world import ALONE, NAT, ROUTE, UP, VIP, WEB_KEY, alone, at, down, member, web

UNKNOWN = Health(CheckState.UNKNOWN)


def kernel_with(weights: dict[int, int], key: ServiceKey = WEB_KEY) -> dict[ServiceKey, KernelService]:
    rows = [Destination(f"10.0.0.{10 + number}", 80, weight, ROUTE) for number, weight in weights.items()]
    return {key: KernelService(Service(key, "rr"), {row.key: KernelDestination(row) for row in rows})}


def build(members=(), health=None, present=None, now_s=0.0, intent=None, nodes=None, key=WEB_KEY) -> Target:  # type: ignore[no-untyped-def]
    nodes = membership.update(nodes or {}, members, 0.0)
    intent = intent or Intent({"web": web(key=str(key), check=ALONE)})
    table = kernel_with(present, key) if present is not None else {}
    owned = frozenset(service.key for service in intent.services.values())
    world = World(intent, nodes, health or {}, table, owned, offers=target.offered(nodes))
    return target.build(world, now_s)


def weights(built: Target, key: ServiceKey = WEB_KEY) -> dict[str, int | None]:
    return {v.candidate.destination.name: v.weight for v in built.services[key].verdicts}


def states(built: Target) -> dict[str, str]:
    return {v.candidate.destination.name: v.state for v in built.services[WEB_KEY].verdicts}


def test_a_new_server_waits_for_its_first_pass() -> None:
    built = build([member(1)])
    assert weights(built) == {"rs1": None}
    assert built.checks == {alone(1)}
    assert weights(build([member(1)], {alone(1): UP})) == {"rs1": 1}


def test_after_our_restart_the_kernel_s_weights_stand_until_the_first_result() -> None:
    assert weights(build([member(1)], {alone(1): UNKNOWN}, {1: 7})) == {"rs1": 7}


def twice(name: str, status: str = "alive", tags: dict[str, str] | None = None) -> Member:
    """Server 1 under another name."""
    return replace(member(1, status, tags), name=name)


@pytest.mark.parametrize("old", [twice("a-old", "left"), twice("a-old", "failed"),
                                 twice("a-old", tags={"role": "agent", "s:web": "80/route/1/drain"}),
                                 twice("a-old", tags={"role": "agent", "s:web": "80/route/1/down"})])  # fmt: skip
def test_a_server_that_comes_back_under_another_name_is_taken(old: Member) -> None:
    nodes = membership.update({}, [old], 0.0)
    built = build([old, member(1)], {alone(1): UP}, nodes=nodes)
    assert weights(built)["rs1"] == 1
    assert states(built)["a-old"] == "refused"


def test_nobody_takes_another_s_place_by_its_name_and_what_was_recalled_gives_way_to_who_is_there() -> None:
    nodes = membership.update({}, [member(1)], 0.0)
    nodes = membership.update(nodes, [twice("a-evil"), member(1)], 10.0)
    intent, offers = Intent({"web": web(check=ALONE)}), target.offered(nodes)
    world = World(intent, nodes, {alone(1): UP}, {}, frozenset({WEB_KEY}), offers=offers)
    built = target.build(world, 10.0)
    assert weights(built) == {"a-evil": None, "rs1": 1}
    (refused,) = [verdict for verdict in built.services[WEB_KEY].verdicts if verdict.state == "refused"]
    assert "is destination rs1 already" in refused.reason
    recalled = membership.recalled(membership.memory(nodes), 20.0)
    assert recalled.keys() == {"rs1"}
    again = membership.update(recalled, [twice("a-evil"), member(1)], 21.0)
    offers = target.offered(again)
    world = World(intent, again, {alone(1): UP}, {}, frozenset({WEB_KEY}), offers=offers)
    assert weights(target.build(world, 21.0)) == {"a-evil": None, "rs1": 1}, "our restart does not change that"


@pytest.mark.parametrize("state", ["drain", "maint", "down"])
def test_a_live_server_s_word_counts_more_than_a_dead_one_at_its_address(state: str) -> None:
    dead, tags = twice("z-dead", "failed"), {"role": "agent", "s:web": f"80/route/1/{state}"}
    nodes = membership.update({}, [twice("z-dead"), member(2)], 0.0)
    nodes = membership.update(nodes, [dead, member(1), member(2)], 10.0)
    nodes = membership.update(nodes, [dead, member(1, tags=tags), member(2)], 20.0)
    offers = target.offered(nodes)
    intent = Intent({"web": web(check=ALONE)})
    health = {alone(1): UP, alone(2): UP}
    world = World(intent, nodes, health, kernel_with({1: 1, 2: 1}), frozenset({WEB_KEY}), offers=offers)
    found = weights(target.build(world, 21.0))
    assert found["z-dead"] is None
    assert not found["rs1"]


def test_an_operator_s_drain_is_not_undone_by_a_dead_twin() -> None:
    nodes = membership.update({}, [twice("z-dead"), member(2)], 0.0)
    nodes = membership.update(nodes, [twice("z-dead", "failed"), member(1), member(2)], 10.0)
    offers = target.offered(nodes)
    intent = Intent({"web": replace(web(check=ALONE), excluded=frozenset({"rs1"}))})
    health = {alone(1): UP, alone(2): UP}
    world = World(intent, nodes, health, kernel_with({1: 1, 2: 1}), frozenset({WEB_KEY}), offers=offers)
    assert weights(target.build(world, 21.0))["z-dead"] is None


def test_the_vip_itself_is_no_server() -> None:
    built = build([replace(member(1), address=VIP)], {CheckTarget(VIP, 80, ALONE): UP})
    assert states(built) == {"rs1": "refused"}


def test_a_node_that_moved_is_served_at_its_new_address_and_its_old_one_goes() -> None:
    nodes = membership.update({}, [member(1), member(2)], 0.0)
    moved = replace(member(1), address="10.0.0.13")
    built = build([moved, member(2)], {alone(1): UP, alone(2): UP}, {1: 1, 2: 1}, nodes=nodes)
    assert weights(built) == {"rs1": None, "rs2": 1}, "checked anew"
    assert set(built.services[WEB_KEY].destinations()) == {("10.0.0.12", 80)}
    assert weights(build([moved, member(2)], {alone(3): UP, alone(2): UP}, {2: 1}, nodes=nodes)) == {"rs1": 1, "rs2": 1}
    leaving = membership.update(nodes, [member(1, "left"), member(2)], 1.0)
    built = build([moved, member(2)], {alone(3): UP, alone(2): UP}, {1: 0, 2: 1}, nodes=leaving)
    assert weights(built) == {"rs1": 1, "rs2": 1}, "the drain at the old address is not the new one's"


@pytest.mark.parametrize("status", ["left", "leaving"])
def test_a_leaving_server_gets_no_new_connections_and_goes_later(status: str) -> None:
    built = build([member(1, status), member(2)], {alone(1): UP, alone(2): UP}, {1: 1, 2: 1}, now_s=1.0)
    assert weights(built) == {"rs1": 0, "rs2": 1}
    assert built.services[WEB_KEY].wake_s == QUIET_S
    assert weights(build([member(1, status)], {alone(1): UP}, {1: 0}, now_s=QUIET_S)) == {"rs1": None}
    assert weights(build([member(1, status)], {alone(1): UP}, {}, now_s=1.0)) == {"rs1": None}


def test_a_dropped_tag_drains_like_leaving() -> None:
    before = membership.update({}, [member(1)], 0.0)
    dropped = [member(1, tags={"role": "agent"})]
    assert weights(build(dropped, {alone(1): UP}, {1: 1}, now_s=1.0, nodes=before)) == {"rs1": 0}
    assert states(build(dropped, {alone(1): UP}, {1: 1}, now_s=1.0, nodes=before)) == {"rs1": "draining"}


def test_failed_in_serf_with_a_passing_check_stays_and_is_flagged() -> None:
    built = build([member(1, "failed")], {alone(1): UP}, {1: 1})
    (verdict,) = built.services[WEB_KEY].verdicts
    assert (verdict.weight, verdict.state) == (1, "up")
    assert "Serf says failed" in verdict.reason


def test_failed_in_serf_without_a_check_goes() -> None:
    tags = {"role": "agent", "s:web": "80/route/1/check=none"}
    assert weights(build([member(1, tags=tags)])) == {"rs1": 1}
    assert weights(build([member(1, "failed", tags), member(2)], {alone(2): UP}, {1: 1, 2: 1})) == {"rs1": None, "rs2": 1}


def test_a_failing_check_takes_the_weight_at_once_and_the_destination_later() -> None:
    health = {alone(1): down(10.0), alone(2): UP}
    assert weights(build([member(1), member(2)], health, {1: 1, 2: 1}, now_s=10.0)) == {"rs1": 0, "rs2": 1}
    assert weights(build([member(1), member(2)], health, {1: 0, 2: 1}, now_s=40.0)) == {"rs1": None, "rs2": 1}


def test_failing_its_check_and_failed_in_serf_goes_at_once() -> None:
    health = {alone(1): down(), alone(2): UP}
    assert weights(build([member(1, "failed"), member(2)], health, {1: 1, 2: 1})) == {"rs1": None, "rs2": 1}


def test_udp_never_lingers_at_weight_0() -> None:
    key = ServiceKey.parse(f"udp/{VIP}:53")
    tags = {"role": "agent", "s:web": "53/route/1"}
    built = build([member(1, "left", tags)], present={1: 1}, key=key)
    assert weights(built, key) == {"rs1": None}
    assert built.checks == frozenset(), "a TCP connect says nothing about UDP"


def test_when_nothing_passes_the_last_good_ones_are_kept_and_it_is_said() -> None:
    health = {alone(1): down(), alone(2): down()}
    built = build([member(1), member(2)], health, {1: 0, 2: 5}, now_s=100.0)
    assert weights(built) == {"rs1": None, "rs2": 5}
    assert "last good" in built.services[WEB_KEY].warning
    built = build([member(1, "failed"), member(2, "failed")], health, {1: 1, 2: 1})
    assert weights(built) == {"rs1": 1, "rs2": 1}


def test_those_that_left_do_not_come_back_because_others_fail() -> None:
    built = build([member(1, "left"), member(2)], {alone(2): down()}, {1: 0, 2: 0}, now_s=1.0)
    assert weights(built) == {"rs1": 0, "rs2": 0}
    assert built.services[WEB_KEY].warning


def test_operators_destinations_serve_without_a_check_and_their_word_counts() -> None:
    intent = Intent({"web": web(destinations={"rs1": at(1, "rs1", weight=9)})})
    built = build([member(1)], intent=intent)
    assert weights(built) == {"rs1": 9}
    other_name = Intent({"web": web(destinations={"mine": at(1, "mine", weight=9)})})
    built = build([member(1)], intent=other_name)
    assert weights(built) == {"mine": 9, "rs1": None}
    assert states(built)["rs1"] == "refused"


def test_an_excluded_server_stays_out() -> None:
    built = build([member(1)], {alone(1): UP}, {1: 1}, intent=Intent({"web": web(excluded=frozenset({"rs1"}))}))
    assert weights(built) == {"rs1": None}
    assert built.checks == frozenset()


def test_an_offer_that_ipvs_cannot_forward_is_refused_with_its_reason() -> None:
    built = build([member(1, tags={"role": "agent", "s:web": "8080/route"})])
    (verdict,) = built.services[WEB_KEY].verdicts
    assert (verdict.weight, verdict.state) == (None, "refused")
    assert "port 80" in verdict.reason


def test_nat_waits_for_its_masquerade_rule() -> None:
    intent = Intent({"web": web(destinations={"d1": at(1, port=8080, method=NAT)})})
    row = Masquerade(Protocol.TCP, VIP, 80, "10.0.0.11", 8080)
    world = World(intent, owned=frozenset({WEB_KEY}))
    built = target.build(world, 0.0)
    assert built.host.masquerades == {row}
    assert weights(built) == {"d1": None}
    ready = replace(world, host=target.HostSeen(masquerades=frozenset({row})))
    assert weights(target.build(ready, 0.0)) == {"d1": 1}
    cannot = replace(world, host=target.HostSeen(failures={"nat": "no iptables"}))
    assert weights(target.build(cannot, 0.0)) == {"d1": 1}


def test_a_service_that_is_somebody_else_s_is_a_conflict_and_wants_nothing() -> None:
    built = target.build(World(Intent({"web": web()})), 0.0)
    assert (built.conflicts, built.services, built.host.vips) == ({"web"}, {}, frozenset())


def test_after_our_restart_the_kernel_s_weights_stand_until_serf_s_word_where_nothing_is_probed() -> None:
    key = ServiceKey.parse(f"udp/{VIP}:80")
    nodes = membership.recalled(membership.memory(membership.update({}, [member(1), member(2, "failed")], 0.0)), 0.0)
    intent = Intent({"web": web(key=str(key))})
    table = kernel_with({1: 7}, key)
    world = World(intent, nodes, table=table, owned=frozenset({key}), offers=target.offered(nodes))
    assert weights(target.build(world, 0.0), key) == {"rs1": 7, "rs2": None}, "the failed one must not come back"
