"""fusis-agent's pure parts: configuration, states, steps, shares; and the record and the orders on real files."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd.agent import config, host, learn, orders, prepare, probe
from fusisd.agent.config import Config, ServiceConfig
from fusisd.agent.prepare import Made, Place, Switch, Vip
from fusisd.agent.record import RecordFile, Undo
from fusisd.agent.standing import Standings, shared
from fusisd.agent.states import CHECKED, SAID, TABLE, Event, State, after
from fusisd.errors import Invalid, StartupError
from fusisd.model import OfferState, Tier
from fusisd.tags import decode, encode, parse_method
from pyipvs import ForwardingMethod, Tunnel, TunnelType

FLAGS = ["--balancer", "10.1.0.2", "--key-file", "/k", "--name", "rs1"]


def read(*words: str) -> Config:
    parser = argparse.ArgumentParser()
    config.add_options(parser)
    return config.read(parser.parse_args([*FLAGS, *words]))


def from_file(path: Path, text: str, *words: str) -> Config:
    path.write_text(text)
    return read("--config", str(path), *words)


# Configuration.


def test_a_file_with_two_services_and_the_line_before_it(tmp_path: Path) -> None:
    text = """
        balancer = ["10.9.9.9"]
        drain = 5
        [service.web]
        port = 80
        method = "gue:6081"
        check = "http:8080:/health"
        [service.dns]
        port = 53
        weight = 3
        route_back = true
        backup = true
    """
    found = from_file(tmp_path / "agent.toml", text, "--service", "mail", "--port", "25", "--mode", "route")
    assert found.balancers == ("10.1.0.2",), "the command line counts before the file"
    assert found.drain_s == 5
    assert set(found.services) == {"web", "dns", "mail"}
    web, dns = found.services["web"], found.services["dns"]
    assert (web.method, web.tunnel) == (ForwardingMethod.TUNNEL, Tunnel(TunnelType.GUE, 6081))
    assert web.check == probe.Check("http", "/health", 8080)
    assert (dns.weight, dns.tier, dns.route_back) == (3, Tier.BACKUP, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[service.web]\nport = 0", "service.web.port"),
        ("[service.web]", "service.web.port is missing"),
        ("[service.web]\nport = 80\nmetod = 'nat'", "agent.toml: service.web.metod is not known"),
        ("[service.web]\nport = 80\nmethod = 'dr'", "service.web.method"),
        ("[service.web]\nport = 80\ncheck = 'ping'", "service.web.check"),
        ("[service.'a/b']\nport = 80", "a/b"),
        ("[service.web]\nport = 80\nmethod = 'route'\nroute_back = true", "route_back is for method nat"),
        ("[service.web]\nport = 80\nat = 'here'", "service.web.at"),
        ("[service.web]\nport = 80\nat = '10.2.0.1'\nmethod = 'gue'", "own address"),
        ("[service.web]\nport = 80\nat = '10.2.0.1'\nroute_back = true", "own address"),
        ("balancers = ['10.0.0.1']", "balancers is not known"),
        ("service = 1", "services are tables"),
        ("port = ", "agent.toml"),
        ("rpc_port = 1" + "0" * 5000, "agent.toml"),
        ("balancer = " + "[" * 3000, "agent.toml: nested too deeply"),
        ("drain = 2026-01-01", "agent.toml: drain is a date"),
        ('key_file = "a\\u0000b"', "key_file must be text without control"),
        ('iface = ""', "iface must be text"),
        ("", "there is no service"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        from_file(tmp_path / "agent.toml", text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--service", "web"], "--port is missing"),
        (["--service", "web", "--port", "80", "--mode", "x"], "--mode"),
        (["--service", "web", "--port", "80", "--vip", "x"], "--vip"),
        (["--service", "web", "--port", "80", "--at", "x"], "--at"),
        (["--service", "web", "--port", "80", "--route-back", "--balancer", "10.0.0.1,10.0.0.2"], "one balancer"),
    ],
)
def test_a_wrong_line_is_refused_with_the_option(words: list[str], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        read(*words)


def test_a_service_at_another_address_is_claimed_by_its_tag_and_checked_there(tmp_path: Path) -> None:
    web = read("--service", "web", "--port", "80", "--at", "FD00::7").services["web"]
    offer = decode("web", encode(web.offer(OfferState.READY, 1)))
    assert offer.address == "fd00::7"
    named = from_file(tmp_path / "agent.toml", "[service.web]\nport = 80\nat = 'fd00::7'").services["web"]
    assert named == web
    assert prepare.checked_at(web, None, "10.1.0.11") == "fd00::7"
    assert prepare.checked_at(replace(web, at=None), None, "10.1.0.11") == "10.1.0.11"
    routed = replace(web, method=ForwardingMethod.ROUTE)
    assert prepare.checked_at(routed, Vip("10.1.0.100", 80), "10.1.0.11") == "10.1.0.100"


def test_more_services_than_serf_carries_are_refused_at_the_start(tmp_path: Path) -> None:
    text = "".join(f"[service.service-number-{number}]\nport = 80\n" for number in range(30))
    with pytest.raises(Invalid, match="512"):
        from_file(tmp_path / "agent.toml", text)


def test_a_reload_may_change_services_but_not_the_node() -> None:
    before = read("--service", "web", "--port", "80")
    assert before.same_node(read("--service", "mail", "--port", "25", "--drain", "1"))
    assert not before.same_node(read("--service", "web", "--port", "80", "--bind-port", "7947"))


# States.


@given(st.lists(st.sampled_from(Event)))
def test_whatever_happens_an_order_holds_and_leaving_is_final(events: list[Event]) -> None:
    state = State.STARTING
    for event in events:
        before, state = state, after(state, event)
        if before is State.LEAVING:
            assert state is State.LEAVING
        elif before in (State.DRAIN, State.MAINT):
            assert state is before or event in (Event.RESUME, Event.DRAIN, Event.MAINT, Event.LEAVE)
        if state is State.READY and before is not State.READY:
            assert event is Event.PASSED and before in CHECKED


def test_every_state_has_its_row_and_its_word_and_only_ready_says_ready() -> None:
    assert set(TABLE) == set(SAID) == set(State)
    assert [state for state in State if SAID[state] is OfferState.READY] == [State.READY]


def standings(*services: ServiceConfig) -> Standings:
    rows = Standings(lambda: 0.0)
    for service in services:
        rows.put(service)
    return rows


def test_a_new_server_offers_nothing_and_a_restarted_one_goes_on_offering() -> None:
    rows = standings(ServiceConfig("web", 80), ServiceConfig("dns", 53))
    assert rows.tags({}) == {"role": "agent"}
    assert rows.tags({"s:web": "80", "s:old": "1"}) == {"role": "agent", "s:web": "80"}
    rows.happened("web", Event.PREPARED)
    rows.happened("web", Event.FAILED, "connection refused")
    assert rows.tags({"s:web": "80"}) == {"role": "agent", "s:web": "80///down"}
    rows.happened("web", Event.PASSED)
    rows.share("web", "0%")
    assert rows.tags({}) == {"role": "agent", "s:web": "80//0"}
    rows.happened("web", Event.LEAVE)
    assert rows.tags({}) == {"role": "agent", "s:web": "80//0/drain"}


@pytest.mark.parametrize(
    ("share", "weight"), [("", 10), ("50%", 5), ("1%", 1), ("0%", 0), ("200%", 20), ("7", 7), ("0", 0)]
)
def test_a_share_is_of_the_configured_weight(share: str, weight: int) -> None:
    assert shared(10, share) == weight


def test_a_share_of_more_than_there_is_is_the_most_that_there_is() -> None:
    assert shared(10000, "1000%") == 65535


def test_where_tags_have_no_room_who_leaves_says_nothing() -> None:
    names = [f"{word}{'x' * 14}{number:02}" for word in ("old", "new") for number in range(12)]
    rows = standings(*(ServiceConfig(name, 1000 + number) for number, name in enumerate(names)))
    for name in names:
        rows.happened(name, Event.PREPARED)
        rows.happened(name, Event.LEAVE if name.startswith("old") else Event.PASSED)
    assert rows.tags({}).keys() == {"role", *(f"s:{name}" for name in names if name.startswith("new"))}


@pytest.mark.parametrize("share", ["x", "-1", "5%%", "%", "1001%", "70000", "１"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(Invalid):
        shared(10, share)


# Steps.

ROUTES: tuple[dict[str, Any], ...] = (
    {"dst": "default", "gateway": "10.1.0.1", "dev": "eth0"},
    {"dst": "10.1.0.0/24", "dev": "eth0"},
    {"dst": "10.2.0.0/24", "dev": "fusis-ipip"},
    {"dst": "10.3.0.0/24", "nexthops": []},
)
PLACE = Place("10.1.0.11", "eth0", "10.1.0.2", 1500, {4: ROUTES})


def steps(method: str, vip: str = "10.1.0.100", place: Place = PLACE, **settings: Any) -> list[str]:
    forwarding, tunnel = parse_method(method)
    found = prepare.steps([(ServiceConfig("web", 80, forwarding, tunnel, **settings), Vip(vip, 80))], place)
    return [step.identity if isinstance(step, Made) else step.name for step in found]


def test_nat_needs_nothing_unless_its_answers_are_to_come_back() -> None:
    assert steps("nat") == []
    assert steps("nat", route_back=True) == [
        "route 4 default via 10.1.0.2 dev eth0 table 7947",
        "rule 4 from 10.1.0.11 ipproto tcp sport 80 lookup 7947",
    ]


def test_nobody_may_hear_of_the_vip_before_it_is_there() -> None:
    found = steps("route")
    assert found == ["net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce", "address 10.1.0.100 lo"]
    assert steps("route", "fd00::1") == ["address fd00::1 lo"], "IPv6 has no ARP"


def test_a_tunnel_s_address_comes_last_and_its_answers_have_a_smaller_mss() -> None:
    found = steps("gue")
    assert found[-1] == "address 10.1.0.100 fusis-ipip"
    assert found.index("net/ipv4/conf/fusis-ipip/rp_filter") < found.index("up fusis-ipip")
    assert [step for step in found if step.startswith("route")] == [
        "route 4 default via 10.1.0.1 dev eth0 advmss 1428 table 7946",  # 1500 - 20 IP - 8 UDP - 4 GUE - 40
        "route 4 10.1.0.0/24 dev eth0 advmss 1428 table 7946",
    ]


def test_of_two_default_routes_both_are_copied_with_their_metrics() -> None:
    other = {"dst": "default", "gateway": "10.78.0.1", "dev": "eth1", "metric": 200, "flags": ["onlink"]}
    place = replace(PLACE, routes={4: ({**ROUTES[0], "metric": 100, "flags": []}, other)})
    assert [step for step in steps("gre", place=place) if step.startswith("route")] == [
        "route 4 default via 10.1.0.1 dev eth0 metric 100 advmss 1436 table 7946",
        "route 4 default via 10.78.0.1 dev eth1 onlink metric 200 advmss 1436 table 7946",
    ]


def test_two_services_of_one_vip_share_what_both_need() -> None:
    services = [ServiceConfig(name, port, ForwardingMethod.ROUTE) for name, port in (("web", 80), ("tls", 443))]
    found = prepare.steps([(service, Vip("10.1.0.100", service.port)) for service in services], PLACE)
    assert len(found) == len(set(found)) == 3


# The record, the orders, what is learnt.


def test_the_record_outlives_us_and_not_the_boot(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "host.json", "boot1 5")
    file.record.made["address x lo"] = Undo(4, "address delete x dev lo")
    file.record.switches["net/a"] = ("0", "1")
    file.record.vips, file.record.orders = {"web": "tcp 10.0.0.1 80"}, {"web": {"do": "drain"}}
    file.write()
    again = RecordFile(tmp_path / "host.json", "boot1 5").record
    assert again == file.record
    other = RecordFile(tmp_path / "host.json", "boot2 5").record
    assert (other.made, other.switches, other.vips, other.orders) == ({}, {}, again.vips, again.orders)


@pytest.mark.parametrize("kept", ["", "tcp 10.0.0.1", "tcp 10.0.0.1 x", "nosuch 10.0.0.1 80", "tcp x 80"])
def test_a_vip_that_is_not_as_it_is_kept_is_refused(kept: str) -> None:
    with pytest.raises(Invalid):
        learn.recalled(kept)


@pytest.mark.parametrize("text", ["", "[]", '{"made": 1}', '{"made": {"a": {"family": 5}}}', '{"nosuch": 1}', "\xff"])
def test_a_damaged_record_stops_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text, "latin-1")
    with pytest.raises(StartupError, match="host.json"):
        RecordFile(tmp_path / "host.json", "boot 1")


def test_an_order_comes_and_its_answer_goes(tmp_path: Path) -> None:
    path = tmp_path / "orders.sock"

    def carry(order: dict[str, Any]) -> dict[str, Any]:
        if order.get("do") != "status":
            raise Invalid("no such order")
        return {"services": []}

    async def both() -> tuple[dict[str, Any], str]:
        serving = asyncio.create_task(orders.serve(path, carry))
        while not path.exists():
            await asyncio.sleep(0.01)
        try:
            answer = await asyncio.to_thread(orders.ask, path, {"do": "status"})
            with pytest.raises(Invalid) as refused:
                await asyncio.to_thread(orders.ask, path, {"do": "dance"})
            return answer, str(refused.value)
        finally:
            serving.cancel()

    assert asyncio.run(both()) == ({"services": []}, "no such order")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(orders.NotRunning, match="is it running"):
        orders.ask(tmp_path / "nosuch", {})


def answered(status: str, body: object) -> tuple[str, str]:
    """(the VIP that is learnt from this answer, why none is)."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\n\r\n{json.dumps(body)}".encode())
        await writer.drain()
        writer.close()

    async def learnt() -> tuple[str, str]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            try:
                vip = await learn.vip_of("web", ["127.0.0.1"], port, frozenset({"10.1.0.11"}))
            except learn.NotLearnt as error:
                return "", str(error)
            assert learn.recalled(learn.written(vip)) == vip
            return learn.written(vip), ""

    return asyncio.run(learnt())


WEB = {"protocol": "udp", "address": "10.1.0.100", "port": 80}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        ("404 Not Found", {}, "no service web yet"),
        ("500 Oops", {}, "500 Oops"),
        ("200 OK", {"fwmark": 7}, "must be given"),
        ("200 OK", {**WEB, "address": "10.1.0.11"}, "not believed"),
        ("200 OK", {**WEB, "address": "224.0.0.1"}, "unicast"),
        ("200 OK", {**WEB, "port": "x"}, "port"),
        ("200 OK", [], "must be given"),
    ],
)
def test_what_is_no_vip_is_not_learnt_and_the_reason_is_said(status: str, body: object, said: str) -> None:
    vip, why = answered(status, body)
    assert vip == ""
    assert said in why


def test_the_vip_is_learnt_from_the_balancer() -> None:
    assert answered("200 OK", WEB) == ("udp 10.1.0.100 80", "")


@pytest.mark.parametrize(
    ("answer", "failure"), [(b"HTTP/1.1 204 No\r\n", ""), (b"HTTP/1.1 503 No\r\n", "503"), (b"", "closes")]
)
def test_the_local_check_by_http(answer: bytes, failure: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def asked() -> str:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await probe.failure(probe.Check("http", "/"), "127.0.0.1", server.sockets[0].getsockname()[1])

    said = asyncio.run(asked())
    assert (failure in said) if failure else said == ""


def test_the_local_check_of_a_port_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        said = asyncio.run(probe.failure(probe.Check(), "127.0.0.1", taken.getsockname()[1]))
    assert "refused" in said


def test_a_switch_is_wanted_at_least_so_high() -> None:
    assert host._holds("2", Switch("x", 1, ""))
    assert not host._holds("0", Switch("x", 1, ""))
