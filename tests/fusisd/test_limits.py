"""The door: each limit of IPVS is known before a change is accepted, and what is accepted can be carried out.

The limits are the kernel's (net/netfilter/ipvs/ip_vs_ctl.c: ip_vs_genl_set_cmd, ip_vs_add_service, ip_vs_new_dest) and
what it takes and then drops packets for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fusisd import judge, membership, state
from fusisd.admission import PRIVATE, Policy
from fusisd.commands import Adopt
from fusisd.errors import Conflict
from fusisd.model import Intent, Service
from fusisd.serf.values import Member
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from pyipvs import IPVS, ForwardingMethod, ServiceKey
from pyipvs.testing import FakeKernel
from tests.fusisd.limits import Asked, asked, carry_out, taken
from tests.fusisd.web_helpers import TOKEN, MemoryCore, call
from tests.fusisd.world import TUNNEL, at, web

BASE = {"protocol": "tcp", "address": "10.9.0.1", "port": 80}
MARK = {"protocol": None, "address": None, "port": None}
SERVICES: list[tuple[dict[str, Any], str]] = [
    ({"scheduler": "none"}, "scheduler"),
    ({"scheduler": ""}, "scheduler"),
    ({"scheduler": "x" * 16}, "scheduler"),
    ({"port": 0}, "persistence_s"),
    ({"port": 65536}, "port"),
    ({"protocol": "icmp"}, "protocol"),
    ({"persistence_s": 2147484}, "persistence_s"),  # INT_MAX / HZ, with the greatest HZ that there is
    ({"persistence_s": -1}, "persistence_s"),
    ({"persistence_engine": "x" * 17, "persistence_s": 1}, "persistence_engine"),
    ({"persistence_engine": "sip", "persistence_s": 1}, "persistence_engine"),
    ({"netmask": 0}, "netmask"),
    ({"netmask": 33}, "netmask"),
    ({"address": "fd00::1", "netmask": 129}, "netmask"),
    ({"address": "224.0.0.1"}, "address"),
    ({"address": "255.255.255.255"}, "address"),
    ({"address": "0.0.0.0"}, "address"),
    ({"address": "ff02::1"}, "address"),
    ({"address": "fe80::1"}, "address"),
    ({"address": "127.0.0.1"}, "address"),
    ({"address": "::1"}, "address"),
    ({**MARK, "fwmark": 0}, "fwmark"),
    ({**MARK, "fwmark": 2**32}, "fwmark"),
    ({"flags": ["one_packet"]}, "flags"),
    ({"flags": ["hashed"]}, "flags[0]"),
]
DESTINATIONS: list[tuple[dict[str, Any], str]] = [
    ({"weight": -1}, "weight"),
    ({"weight": 65536}, "weight"),
    ({"upper_threshold": 1, "lower_threshold": 2}, "lower_threshold"),
    ({"lower_threshold": 1}, "lower_threshold"),
    ({"upper_threshold": 2**32}, "upper_threshold"),
    ({"address": "224.0.0.1"}, "address"),
    ({"address": "255.255.255.255"}, "address"),
    ({"address": "0.0.0.0"}, "address"),
    ({"address": "fe80::1"}, "address"),
    ({"address": "fd00::9", "method": "nat"}, "address"),
    ({"address": "fd00::9", "method": "route"}, "address"),
    ({"method": "local"}, "method"),
    ({"method": "bypass"}, "method"),
    ({"method": "route", "port": 81}, "port"),
    ({"method": "tunnel", "port": 81}, "port"),
    ({"method": "tunnel", "tunnel": {"type": "gue"}}, "tunnel"),
    ({"method": "tunnel", "tunnel": {"type": "ipip", "port": 1}}, "tunnel"),
    ({"method": "tunnel", "tunnel": {"type": "gre", "flags": 2}}, "tunnel"),
    ({"method": "tunnel", "tunnel": {"type": "vxlan"}}, "tunnel.type"),
    ({"method": "route", "tunnel": {"type": "ipip"}}, "tunnel"),
]


@pytest.fixture
def app() -> Iterator[Any]:
    app = make_app(MemoryCore(), WritePolicy.for_token(TOKEN))
    assert call(app, "PUT", "/v1/services/web", BASE).status == 201
    yield app
    assert call(app, "PUT", "/v1/services/web", {**BASE, "scheduler": "wlc"}).status == 200, "changes go on"


@pytest.mark.parametrize(("odd", "field"), SERVICES, ids=str)
def test_a_service_that_ipvs_cannot_have_is_refused_with_its_field(app: Any, odd: dict[str, Any], field: str) -> None:
    answer = call(app, "PUT", "/v1/services/odd", {**BASE, "port": 81, **odd})
    assert (answer.status, answer.json["field"]) == (422, field)
    assert call(app, "GET", "/v1/services/odd").status == 404


@pytest.mark.parametrize(("odd", "field"), DESTINATIONS, ids=str)
def test_a_destination_that_ipvs_cannot_have_is_refused_with_its_field(app: Any, odd: dict[str, Any], field: str) -> None:
    place = "/v1/services/web/destinations/odd"
    answer = call(app, "PUT", place, {"address": "10.8.0.1", "port": 80, **odd})
    assert (answer.status, answer.json["field"]) == (422, field)
    assert call(app, "GET", place).status == 404


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(asked())
def test_what_the_door_takes_can_be_carried_out(pair: Asked) -> None:
    made = taken(*pair)
    if made is not None:
        carry_out(IPVS(transport=FakeKernel()), *made)


PORTS = st.sampled_from(["", "0", "80", "81", "65536"])
WAYS = st.sampled_from(["", "nat", "route", "tunnel", "ipip", "gre", "gue", "gue:0", "gue:7", "local"])
OPTIONS = st.sampled_from(["", "drain", "back", "backup", "check=none", "at=10.8.0.9", "at=fd00::9", "at=fe80::9", "at=::1"])
TAGS = st.tuples(PORTS, WAYS, st.sampled_from(["", "0", "7", "65535", "65536"]), OPTIONS, OPTIONS).map("/".join)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(asked(), TAGS, st.sampled_from(["10.8.0.1", "fd00::8", "127.0.0.1", "fe80::8", "0.0.0.0", "::"]))
def test_what_a_server_offers_is_named_as_wrong_or_can_be_carried_out(pair: Asked, tag: str, address: str) -> None:
    """No word of a server's may end a turn: it reaches no door."""
    made = taken(*pair)
    assume(made is not None)
    service, _ = made
    told = Member("rs1", address, 7946, "alive", {"role": "agent", f"s:{service.name}": tag})
    for node in membership.update({}, [told], 0.0, Policy(allow_claims=PRIVATE)).values():
        offered = [node] if service.name in node.offers else []
        assert offered or node.problems
        for candidate, _ in judge.candidates(replace(service, destinations={}), offered, {}):
            if not candidate.problem:
                carry_out(IPVS(transport=FakeKernel()), service, candidate.destination)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (web(destinations={"d1": at(1, method=ForwardingMethod.LOCAL)}), "method"),
        (web(destinations={"d1": at(1, port=81)}), "cannot change the port"),
        (web(destinations={"d1": replace(at(1), address="fe80::1")}), "link-local"),
        (web(key="tcp/10.0.0.1:0"), "persistence_s"),
        (web(persistence_s=2**31 - 1), "persistence_s"),
        (web(scheduler="one two"), "scheduler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_not_be_made_again_is_not_adopted(odd: Service, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        state.apply(Intent(), Adopt("web", odd.key, odd))


def test_what_no_operator_may_ask_for_but_ipvs_can_have_is_adopted() -> None:
    key = ServiceKey.parse("tcp/[fd00::1]:80")
    heavy = web(key=str(key), scheduler="none", destinations={"d1": at(1, weight=2**31 - 1, method=TUNNEL)})
    assert state.apply(Intent(), Adopt("web", key, heavy)).services["web"].destinations == heavy.destinations
