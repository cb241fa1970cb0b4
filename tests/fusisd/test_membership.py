"""From Serf's list to nodes, case by case; test_membership_recorded.py replays what real agents listed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusisd import membership, tags
from fusisd.model import NodeStatus, Offer
from pyipvs import ForwardingMethod
from tests.fusisd.world import member


def test_agents_become_nodes_and_others_are_not_looked_at() -> None:
    nodes = membership.update({}, [member(1), member(2, tags={"role": "balancer"})], 0.0)
    assert set(nodes) == {"rs1"}
    assert nodes["rs1"].offers == {"web": Offer("web", 80, ForwardingMethod.ROUTE)}


def test_a_node_missing_from_the_list_stays_as_it_was_and_is_flagged() -> None:
    nodes = membership.update({}, [member(1), member(2)], 0.0)
    nodes = membership.update(nodes, [member(2)], 1.0)
    assert nodes["rs1"].status is NodeStatus.ALIVE
    assert nodes["rs1"].missing
    assert not membership.update(nodes, [member(1)], 2.0)["rs1"].missing


def test_a_node_that_left_is_forgotten_when_serf_reaps_it_and_its_drain_is_long_over() -> None:
    nodes = membership.update({}, [member(1)], 0.0)
    nodes = membership.update(nodes, [member(1, "left")], 1.0)
    assert nodes["rs1"].status is NodeStatus.LEFT
    cut_off = membership.update(nodes, [], 2.0)  # our own agent restarted: the list is empty for a while
    assert (cut_off["rs1"].status, cut_off["rs1"].since_s) == (NodeStatus.LEFT, 1.0)
    assert membership.update(cut_off, [], 2.0 + membership.WITHDRAWN_KEPT_S) == {}


def test_leaving_and_then_left_is_one_drain() -> None:
    nodes = membership.update({}, [member(1)], 0.0)
    nodes = membership.update(nodes, [member(1, "leaving")], 1.0)
    assert membership.update(nodes, [member(1, "left")], 5.0)["rs1"].since_s == 1.0


def test_since_moves_only_when_the_status_does() -> None:
    nodes = membership.update({}, [member(1)], 0.0)
    nodes = membership.update(nodes, [member(1)], 5.0)
    assert nodes["rs1"].since_s == 0.0
    assert membership.update(nodes, [member(1, "failed")], 6.0)["rs1"].since_s == 6.0


def test_a_dropped_tag_is_a_withdrawal_and_its_return_takes_it_back() -> None:
    nodes = membership.update({}, [member(1)], 0.0)
    nodes = membership.update(nodes, [member(1, tags={"role": "agent"})], 3.0)
    assert nodes["rs1"].withdrawn == {"web": 3.0}
    assert "web" in nodes["rs1"].offers
    nodes = membership.update(nodes, [member(1, tags={"role": "agent"})], 4.0)
    assert nodes["rs1"].withdrawn == {"web": 3.0}
    assert membership.update(nodes, [member(1)], 5.0)["rs1"].withdrawn == {}


@pytest.mark.parametrize(
    ("text", "offer"),
    [
        ("80", Offer("web", 80, ForwardingMethod.NAT, 1)),
        ("443/tunnel", Offer("web", 443, ForwardingMethod.TUNNEL, 1)),
        ("80/route/0", Offer("web", 80, ForwardingMethod.ROUTE, 0)),
        ("80/nat/3/check=none", Offer("web", 80, ForwardingMethod.NAT, 3, checked=False)),
        ("80/nat/3/shiny=yes", Offer("web", 80, ForwardingMethod.NAT, 3)),
    ],
)
def test_a_service_tag_is_read(text: str, offer: Offer) -> None:
    assert tags.decode_all({"role": "agent", "s:web": text}) == ({"web": offer}, ())


@pytest.mark.parametrize("text", ["", "x", "0", "65536", "80/dr", "80/nat/x", "80/nat/-1", "80/nat/70000", " 80", "８０"])
def test_a_bad_tag_is_named_and_the_node_s_other_services_are_served(text: str) -> None:
    offers, problems = tags.decode_all({"role": "agent", "s:bad": text, "s:web": "80"})
    assert set(offers) == {"web"}
    (problem,) = problems
    assert "s:bad" in problem


@pytest.mark.parametrize("name", ["ü", "a b", "x\"} 1\nup", "no\udcffutf8", "\x00", "%2F", "", "n" * 200])
def test_a_node_with_an_odd_name_is_a_node_like_any_other(name: str) -> None:
    nodes = membership.update({}, [replace(member(1), name=name), member(2)], 0.0)
    assert nodes[name].offers.keys() == {"web"}
    assert membership.recalled(membership.memory(nodes), 1.0)[name].offers == nodes[name].offers
    assert membership.update(nodes, [replace(member(1, "left"), name=name)], 1.0)[name].status is NodeStatus.LEFT


def test_odd_tags_and_statuses_never_raise() -> None:
    odd = [member(1, "hibernating"), member(2, tags={"role": "agent", "s:a b": "80", "s:\udcff": "\udcfe"})]
    nodes = membership.update({}, odd, 0.0)
    assert "hibernating" in " ".join(nodes["rs1"].problems)
    assert nodes["rs2"].offers == {}


def test_memory_is_recalled_as_remembered_and_a_list_settles_it() -> None:
    nodes = membership.update({}, [member(1), member(2, "left")], 0.0)
    memory = membership.memory(nodes)
    recalled = membership.recalled(memory, 9.0)
    assert {node.status for node in recalled.values()} == {NodeStatus.REMEMBERED}
    assert (recalled["rs1"].withdrawn, recalled["rs2"].withdrawn) == ({}, {"web": 0.0}), "what had left drains on"
    assert membership.update(recalled, [member(2, "left")], 10.0)["rs2"].since_s == 0.0
    assert set(membership.recalled(memory, membership.WITHDRAWN_KEPT_S + 1)) == {"rs1"}
    assert recalled["rs1"].offers == nodes["rs1"].offers
    assert membership.update(recalled, [member(1)], 10.0)["rs1"].status is NodeStatus.ALIVE
