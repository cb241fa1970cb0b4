"""Who may join: what a node may offer, and what happens to what it may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd import fold, membership
from fusisd.admission import PRIVATE, Policy, admit, beyond, network
from fusisd.errors import Invalid, StartupError
from fusisd.membership import Nodes
from fusisd.model import NodeStatus, Offer, OfferState
from fusisd.ports import Remembered
from fusisd.serf.values import Member
from fusisd.target import World
from tests.fusisd.world import member

ANYWHERE = (network("0.0.0.0/0"), network("::/0"))


def at(address: str, name: str = "rs1", status: str = "alive", **services: str) -> Member:
    tags = {"role": "agent", **{f"s:{service}": text for service, text in (services or {"web": "80"}).items()}}
    return Member(name, address, 7946, status, tags)


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.9", "fd00::1"]
)
def test_private_networks_may_join_unless_told_otherwise(address: str) -> None:
    node = membership.update({}, [at(address)], 0.0)["rs1"]
    assert set(node.offers) == {"web"}
    assert node.problems == ()


@pytest.mark.parametrize("address", ["8.8.8.8", "2600::1", "::ffff:8.8.8.8", "127.0.0.1", "169.254.1.1", "::1"])
def test_a_node_from_elsewhere_is_refused_with_its_reason_and_the_option(address: str) -> None:
    node = membership.update({}, [at(address)], 0.0)["rs1"]
    assert node.offers == {}
    (problem,) = node.problems
    assert "--serf-allow" in problem
    assert membership.update({}, [at(address)], 0.0, Policy(ANYWHERE))["rs1"].problems == ()


def test_an_ipv4_address_in_ipv6_clothes_is_the_ipv4_address() -> None:
    assert set(admit(Policy(), "rs1", "::ffff:10.0.0.1", {"web": Offer("web", 80)}).offers) == {"web"}


def test_allowed_networks_replace_the_private_ones() -> None:
    policy = Policy((network("10.1.0.0/16"),))
    nodes = membership.update({}, [at("10.1.0.1", "in"), at("10.2.0.1", "out")], 0.0, policy)
    assert (set(nodes["in"].offers), set(nodes["out"].offers)) == ({"web"}, set())


def test_a_node_offers_its_own_address_only_unless_its_network_may_claim_others() -> None:
    claim = at("10.0.0.1", web="80///at=10.0.0.9", dns="53")
    node = membership.update({}, [claim], 0.0)["rs1"]
    assert set(node.offers) == {"dns"}, "its other services are served"
    (problem,) = node.problems
    assert "10.0.0.9" in problem
    assert "--allow-claims" in problem
    trusted = Policy(allow_claims=(network("10.0.0.0/30"),))
    assert membership.update({}, [claim], 0.0, trusted)["rs1"].offers["web"].address == "10.0.0.9"
    other = membership.update({}, [at("10.0.0.5", web="80///at=10.0.0.9")], 0.0, trusted)["rs1"]
    assert other.offers == {}, "the network of who claims counts, not that of what is claimed"


def test_what_is_claimed_must_be_in_a_network_that_may_join() -> None:
    trusted = Policy(allow_claims=PRIVATE)
    node = membership.update({}, [at("10.0.0.1", web="80///at=8.8.8.8")], 0.0, trusted)["rs1"]
    assert node.offers == {}
    assert "8.8.8.8" in node.problems[0]


def test_its_own_address_may_be_said() -> None:
    assert set(membership.update({}, [at("10.0.0.1", web="80///at=10.0.0.1")], 0.0)["rs1"].offers) == {"web"}


def test_of_more_services_than_a_node_may_have_those_stay_that_stood() -> None:
    policy = Policy(services=2)
    nodes = membership.update({}, [at("10.0.0.1", m="80", z="81")], 0.0, policy)
    nodes = membership.update(nodes, [at("10.0.0.1", a="79", m="80", z="81")], 1.0, policy)
    assert set(nodes["rs1"].offers) == {"m", "z"}
    assert "'a'" in nodes["rs1"].problems[0]
    nodes = membership.update(nodes, [at("10.0.0.1", a="79", m="80")], 2.0, policy)
    assert nodes["rs1"].problems == ()
    assert nodes["rs1"].withdrawn == {"z": 2.0}


def test_of_more_destinations_than_a_service_may_have_those_stay_that_stood() -> None:
    policy = Policy(destinations=2)
    nodes = membership.update({}, [member(2), member(3)], 0.0, policy)
    nodes = membership.update(nodes, [member(1), member(2), member(3)], 1.0, policy)
    assert [name for name, node in nodes.items() if node.offers] == ["rs2", "rs3"]
    assert "--serf-destinations" in nodes["rs1"].problems[0]


def test_a_place_that_is_given_up_is_taken_at_once() -> None:
    policy = Policy(destinations=1)
    nodes = membership.update({}, [member(1), member(2)], 0.0, policy)
    assert [name for name, node in nodes.items() if node.offers] == ["rs1"]
    nodes = membership.update(nodes, [member(1, "left"), member(2)], 1.0, policy)
    assert nodes["rs2"].offers
    assert nodes["rs2"].problems == ()
    nodes = membership.update(nodes, [member(1), member(2)], 2.0, policy)
    assert nodes["rs2"].withdrawn == {}
    assert nodes["rs1"].problems, "who comes back asks anew"


def test_who_is_listed_no_more_keeps_its_place_only_while_it_serves() -> None:
    policy = Policy(destinations=1)
    nodes = membership.update({}, [member(1)], 0.0, policy)
    reaped = membership.update(nodes, [member(2)], 1.0, policy, lambda: {"rs1"})
    assert reaped["rs2"].problems
    reaped = membership.update(nodes, [member(2)], 1.0, policy)
    assert reaped["rs2"].offers
    back = membership.update(reaped, [member(1), member(2)], 2.0, policy)
    assert back["rs1"].problems, "it comes anew"
    assert back["rs2"].offers


def test_nobody_offers_anything_at_the_balancer_s_own_address() -> None:
    policy = Policy(own=frozenset({"10.0.0.11"}), allow_claims=PRIVATE)
    clothed = at("::ffff:10.0.0.11", "clothed")
    nodes = membership.update({}, [member(1), clothed, at("10.0.0.12", "claims", web="80///at=10.0.0.11")], 0.0, policy)
    for node in nodes.values():
        assert not node.offers
        assert "the balancer's own" in node.problems[0]


def test_a_name_that_no_command_could_say_is_refused() -> None:
    node = membership.update({}, [at("10.0.0.1", "rack1/host3")], 0.0)["rack1/host3"]
    assert not node.offers
    assert "--name" in node.problems[0]


def test_what_is_refused_and_served_drains() -> None:
    """As when fusisd was started anew with narrower networks."""
    nodes = membership.recalled([Remembered("rs1", "10.0.0.11", Offer("web", 80))], 0.0)
    narrow = Policy((network("10.9.0.0/16"),))
    nodes = membership.update(nodes, [member(1)], 5.0, narrow)
    assert nodes["rs1"].withdrawn == {"web": 5.0}
    assert nodes["rs1"].offers["web"].state is OfferState.READY
    assert membership.update(nodes, [member(1)], 6.0, narrow)["rs1"].withdrawn == {"web": 5.0}
    gone = membership.update(nodes, [member(1)], 5.0 + membership.WITHDRAWN_KEPT_S, narrow)["rs1"]
    assert (gone.offers, gone.withdrawn) == ({}, {})


def test_a_node_that_left_is_no_problem_any_more() -> None:
    nodes = membership.update({}, [at("8.8.8.8")], 0.0)
    assert membership.update(nodes, [at("8.8.8.8", status="left")], 1.0)["rs1"].problems == ()


@pytest.mark.parametrize("text", ["10.0.0.1/8", "x", "", "10.0.0.0/33"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="no network"):
        network(text)


def test_the_command_line_makes_the_policy() -> None:
    from fusisd.config import parse

    words = ["--iface", "eth0", "--serf-allow", "10.1.0.0/16", "--serf-allow", "fd01::/64", "--allow-claims", "10.1.9.0/24"]
    policy = parse([*words, "--serf-services", "3", "--serf-destinations", "4"]).policy
    assert policy == Policy((network("10.1.0.0/16"), network("fd01::/64")), (network("10.1.9.0/24"),), 3, 4)
    assert parse(["--iface", "eth0"]).policy == Policy()
    with pytest.raises(StartupError, match="10.1.0.1/16"):
        parse(["--iface", "eth0", "--serf-allow", "10.1.0.1/16"])


ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.1.0.1", "8.8.8.8", "fd00::1", "2600::1"])
OFFERS = st.lists(st.tuples(st.sampled_from("abcde"), st.none() | ADDRESSES), max_size=5).map(
    lambda rows: {service: Offer(service, 80, address=address) for service, address in rows}
)
NETWORKS = st.lists(
    st.sampled_from([network("10.0.0.0/24"), network("10.0.0.0/8"), network("fd00::/8"), *ANYWHERE]), max_size=2
)
POLICIES = st.builds(Policy, NETWORKS.map(tuple), NETWORKS.map(tuple), st.integers(0, 3), st.integers(0, 3))


@given(POLICIES, ADDRESSES, OFFERS, st.sets(st.sampled_from("abcde")))
def test_nobody_gets_more_than_the_policy_says(
    policy: Policy, address: str, offers: dict[str, Offer], held: set[str]
) -> None:
    found, problems = admit(policy, "rs1", address, offers, held)
    assert found.items() <= offers.items()
    assert len(found) <= policy.services
    assert bool(problems) == (found != offers), "what is refused is said, and only that"
    for offer in found.values():
        claims = offer.address not in (None, address)
        assert admit(Policy(policy.allow), "rs1", address, {"x": Offer("x", 1)}).offers
        assert not claims or admit(Policy(policy.allow_claims), "rs1", address, {"x": Offer("x", 1)}).offers
    assert admit(policy, "rs1", address, found, held).offers == found, "what was admitted is admitted again"


@given(st.integers(0, 4), st.sets(st.sampled_from("abcdefg")), st.sets(st.sampled_from("abcdefg")))
def test_who_holds_a_place_keeps_it(limit: int, names: set[str], held: set[str]) -> None:
    out = beyond(limit, names, held)
    assert len(names) - len(out) == min(limit, len(names))
    assert not set(out) & held or not (names - set(out)) - held


LISTS = st.lists(
    st.dictionaries(
        st.integers(1, 5), st.tuples(st.sampled_from(["alive", "left", "failed"]), st.sampled_from(["80", "80///drain", ""]))
    ),
    min_size=1,
    max_size=6,
)


@given(LISTS, st.integers(0, 3))
def test_over_any_lives_a_service_has_no_more_than_its_places_and_none_of_them_is_pushed_out(
    lists: list[dict[int, tuple[str, str]]], limit: int
) -> None:
    nodes: Nodes = {}
    policy = Policy(destinations=limit)
    serving: set[str] = set()
    for now_s, shown in enumerate(lists):
        tags = {number: {"role": "agent", **({"s:web": text} if text else {})} for number, (_, text) in shown.items()}
        members = [member(number, status, tags[number]) for number, (status, _) in shown.items()]
        busy = frozenset(serving)  # its destinations get connections, whether Serf lists it or not
        nodes = membership.update(nodes, members, float(now_s), policy, busy.copy)
        before, serving = serving, {name for name, node in nodes.items() if "web" in membership.places(node, busy)}
        assert len(serving) <= limit
        asks = {f"rs{number}" for number, (status, text) in shown.items() if text and status != "left"}
        assert before & (asks | (nodes.keys() - {f"rs{number}" for number in shown})) <= serving
        assert len(serving) == limit or asks <= serving, "nobody is refused while there is a place"
        assert all(node.problems for name, node in nodes.items() if name in asks - serving)


def test_a_refused_node_is_alive_for_all_that() -> None:
    assert membership.update({}, [at("8.8.8.8")], 0.0)["rs1"].status is NodeStatus.ALIVE


def test_a_list_that_changes_nothing_is_not_read_again() -> None:
    seen = [at("10.1.0.1", "in")]
    world, _ = fold.members(World(), seen, 0.0)
    world, _ = fold.policy(world, Policy())
    again, touched = fold.members(world, seen, 1.0)
    assert not touched
    assert again.nodes["in"].told is not None
    assert fold.members(again, seen, 2.0)[0] is again


def test_another_policy_counts_from_the_next_list_on() -> None:
    seen = [at("10.1.0.1", "in"), at("10.2.0.1", "out")]
    world, _ = fold.members(World(policy=Policy((network("10.1.0.0/16"),))), seen, 0.0)
    assert [name for name, node in world.nodes.items() if node.offers] == ["in"]
    world, touched = fold.policy(world, Policy((network("10.0.0.0/8"),)))
    assert not touched
    world, touched = fold.members(world, seen, 1.0)
    assert ([name for name, node in world.nodes.items() if node.offers], touched) == (["in", "out"], {"web"})
