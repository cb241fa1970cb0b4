"""The tags contract, docs/tags.md: round trips, limits, and what the balancer makes of each state."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd import membership, tags, target
from fusisd.errors import Invalid
from fusisd.judge import DRAIN_LIMIT_S, LINGER_S, Verdict
from fusisd.model import Intent, Offer, OfferState, Tier
from fusisd.target import World
from pyipvs import ForwardingMethod, Tunnel, TunnelType
from tests.fusisd.strategies import NAMES
from tests.fusisd.world import ALONE, UP, WEB_KEY, alone, member, web

TUNNELS = st.sampled_from([None, Tunnel(TunnelType.GRE)]) | st.integers(1, 65535).map(lambda p: Tunnel(TunnelType.GUE, p))


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    method = draw(st.sampled_from([ForwardingMethod.NAT, ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL]))
    return Offer(
        service=draw(NAMES),
        port=draw(st.integers(1, 65535)),
        method=method,
        weight=draw(st.integers(0, 65535)),
        checked=draw(st.booleans()),
        tunnel=draw(TUNNELS) if method is ForwardingMethod.TUNNEL else None,
        tier=draw(st.sampled_from(Tier)),
        state=draw(st.sampled_from(OfferState)),
        routes_back=draw(st.booleans()),
        address=draw(st.sampled_from([None, "10.0.0.9", "fd00::9"])),
    )


@given(offers())
def test_every_offer_survives_its_tag(offer: Offer) -> None:
    assert tags.decode(offer.service, tags.encode(offer)) == offer


@given(st.text(max_size=20))
def test_any_text_is_an_offer_or_is_refused(text: str) -> None:
    try:
        offer = tags.decode("web", text)
    except Invalid:
        return
    assert tags.decode("web", tags.encode(offer)) == offer


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("80", "80"),
        ("80/nat/1", "80"),
        ("80/route/1/", "80/route"),
        ("80/tunnel", "80/ipip"),
        ("80/gue", "80/gue"),
        ("80/gue:6080/7", "80/gue/7"),
        ("80/gue:6081//down", "80/gue:6081//down"),
        ("80///check=none/backup/shiny/drain", "80///drain/backup/check=none"),
        ("80/nat/0/back", "80//0/back"),
    ],
)
def test_what_is_usual_is_left_out(text: str, shortest: str) -> None:
    assert tags.encode(tags.decode("web", text)) == shortest


@pytest.mark.parametrize("text", ["80/gue:0", "80/gue:x", "80/gre:1", "80/nat:1", "80/gue:", "80/Route"])
def test_a_method_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        tags.decode("web", text)


@given(st.dictionaries(st.text(max_size=40), st.text(max_size=40), max_size=20))
def test_the_size_is_that_of_serf_s_encoding(given_tags: dict[str, str]) -> None:
    assert tags.size(given_tags) == 1 + len(msgpack.packb(given_tags, use_bin_type=False))


def test_as_many_services_as_fit_are_offered_and_one_more_is_refused() -> None:
    many = [Offer(f"service-{number:02}", 8000 + number, ForwardingMethod.ROUTE) for number in range(40)]
    fitting = max(count for count in range(40) if _fits(many[:count]))
    assert fitting >= 20
    offered, problems = tags.decode_all(tags.encode_all(many[:fitting]))
    assert (len(offered), problems) == (fitting, ())
    with pytest.raises(Invalid, match="512"):
        tags.encode_all(many[: fitting + 1])


def _fits(many: list[Offer]) -> bool:
    try:
        tags.encode_all(many)
    except Invalid:
        return False
    return True


def verdict(nodes: membership.Nodes, now_s: float) -> Verdict:
    service = web(check=ALONE)
    world = World(Intent({"web": service}), nodes, {alone(1): UP}, {}, frozenset({WEB_KEY}), offers=target.offered(nodes))
    (found,) = target.build(world, now_s).services[WEB_KEY].verdicts
    return found


@pytest.mark.parametrize(
    ("text", "state", "weight"),
    [
        ("80/route/3", "up", 3),
        ("80/route//drain", "drained", None),
        ("80/route//maint", "drained", None),
        ("80/route//down", "down", None),
    ],
)
def test_a_new_node_gets_connections_only_when_it_is_ready(text: str, state: str, weight: int | None) -> None:
    nodes = membership.update({}, [member(1, tags={"role": "agent", "s:web": text})], 0.0)
    found = verdict(nodes, 1.0)
    assert (found.state, found.weight) == (state, weight)


def test_a_state_is_counted_from_when_it_was_first_said_and_ready_ends_it() -> None:
    def seen(nodes: membership.Nodes, text: str, now_s: float) -> membership.Nodes:
        return membership.update(nodes, [member(1, tags={"role": "agent", "s:web": text})], now_s)

    nodes = seen({}, "80/route", 0.0)
    assert nodes["rs1"].withdrawn == {}
    nodes = seen(seen(nodes, "80/route//drain", 5.0), "80/route//drain", 6.0)
    assert nodes["rs1"].withdrawn == {"web": 5.0}
    nodes = seen(nodes, "80/route//down", 7.0)
    assert nodes["rs1"].withdrawn == {"web": 7.0}
    nodes = membership.recalled(membership.memory(nodes), 8.0)
    assert seen(nodes, "80/route//down", 9.0)["rs1"].withdrawn == {"web": 7.0}, "over our own restart"
    assert seen(nodes, "80/route", 9.0)["rs1"].withdrawn == {}
    assert LINGER_S < DRAIN_LIMIT_S


def test_tunnel_tier_and_a_way_back_reach_the_destination() -> None:
    nodes = membership.update({}, [member(1, tags={"role": "agent", "s:web": "80/gue:6081//backup"})], 0.0)
    destination = verdict(nodes, 1.0).candidate.destination
    assert (destination.tunnel, destination.tier) == (Tunnel(TunnelType.GUE, 6081), Tier.BACKUP)
    for text, rules in (("80", 1), ("80///back", 0)):
        nodes = membership.update({}, [member(1, tags={"role": "agent", "s:web": text})], 0.0)
        intent = Intent({"web": web()})
        world = World(intent, nodes, {alone(1): UP}, {}, frozenset({WEB_KEY}), offers=target.offered(nodes))
        assert len(target.build(world, 1.0).host.masquerades) == rules
