"""A bare server, made ready by the agent's steps alone, answers through real IPVS by every method; then all is undone."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fusisd.agent import host, prepare
from fusisd.agent.config import ServiceConfig
from fusisd.agent.record import RecordFile
from fusisd.tags import parse_method
from pyipvs import IPVS, Tunnel
from tests.lab.backends import Backend
from tests.lab.expect import ask, poll
from tests.lab.fusis import AS_UNIT, NOBODY
from tests.lab.netns import entered
from tests.lab.topology import VIP, VIP6, Host, Lab

SWITCHES = ("arp_ignore", "arp_announce", "rp_filter")


class Case(NamedTuple):
    """A method, the family of the VIP and that of the way to the server."""

    method: str
    vip: str
    inside: int = 4
    device: str = ""


CASES = [
    Case("nat", VIP),
    Case("nat", VIP6, 6),
    Case("route", VIP),
    Case("route", VIP6, 6),
    Case("ipip", VIP, 4, "fusis-ipip"),
    Case("ipip", VIP6, 4, "fusis-sit"),
    Case("ipip", VIP6, 6, "fusis-ip6"),
    Case("gue", VIP, 4, "fusis-ipip"),
    Case("gre", VIP, 4, "fusis-gre"),
    Case("ipip", VIP, 6, "fusis-ip6"),
    Case("gue:6090", VIP6, 4, "fusis-sit"),
    Case("gue", VIP6, 6, "fusis-ip6"),
    Case("gue", VIP, 6, "fusis-ip6"),
    Case("gre", VIP6, 6, "fusis-gre6"),
    Case("gre", VIP6, 4, "fusis-gre"),
    Case("gre", VIP, 6, "fusis-gre6"),
]


@pytest.fixture(scope="module")
def balancer(lab: Lab) -> Iterator[Lab]:
    """lb1 as fusisd makes it; the servers as distributions make them: strict reverse path filter."""
    switches = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.send_redirects=0")
    lab.lb1.run("sysctl", "-qw", *switches)
    lab.lb1.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    lab.lb1.run("ip", "address", "add", f"{VIP6}/128", "dev", "eth0", "nodad", "preferred_lft", "0")
    for server in lab.servers:
        server.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
        poll(lambda server=server: "tentative" not in server.run("ip", "-6", "address"), what="link-local addresses")
    yield lab


def bring(server: Host, record: Path, wanted: Callable[[], tuple[prepare.Step, ...]]) -> tuple[str, ...]:
    """What the agent does, with a fresh process's knowledge: the record alone."""
    with entered(server.name):
        return host.Host(RecordFile(record, host.machine())).bring([wanted()]).problems


def state(server: Host) -> str:
    """All that the agent could have changed. (The devices gre0, tunl0 ... come with their module, and stay down.)"""
    words = ["ip -o address show scope global", "ip rule", "ip route show table all"]
    words += ["ip -6 rule", "ip -6 route show table all"]
    switches = [f"/proc/sys/net/ipv4/conf/{name}/{switch}" for name in ("all", "eth0") for switch in SWITCHES]
    words += [f"cat {' '.join(switches)}", "ip -brief link | grep fusis; true"]
    return server.run("sh", "-c", "; ".join(words))


def maxseg(address: str) -> int:
    """The client's largest segment on a connection to the VIP: the server's MSS is its bound."""
    with entered("client"):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with sock:
        sock.settimeout(3)
        sock.connect((address, 80))
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def serve(case: Case, address: str, counters: Callable[[IPVS, str], None]) -> None:
    """The service on lb1 with this one server; an answer from it to the client, and then `counters`."""
    method, tunnel = parse_method(case.method)
    vip, server = (f"[{text}]" if ":" in text else text for text in (case.vip, address))
    key, destination = f"tcp/{vip}:80", f"{server}:80"
    with IPVS(netns="lb1") as ipvs:
        ipvs.add_service(key, scheduler="rr")
        try:
            ipvs.add_destination(key, destination, method=method, tunnel=tunnel)
            assert poll(lambda: ask(case.vip, 80, "client"), what="an answer") == "rs1"
            counters(ipvs, key)
        finally:
            ipvs.delete_service(key)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{'6' if ':' in case.vip else '4'}-in-{case.inside}")
def test_a_bare_server_is_made_ready_answers_and_is_as_before(balancer: Lab, tmp_path: Path, case: Case) -> None:
    server, record, lb1 = balancer.servers[0], tmp_path / "host.json", balancer.lb1
    address, own = (server.address, lb1.address) if case.inside == 4 else (server.address6, lb1.address6)
    method, tunnel = parse_method(case.method)
    service = ServiceConfig("web", 80, method, tunnel, route_back=case.method == "nat")

    def wanted() -> tuple[prepare.Step, ...]:
        return prepare.steps([(service, prepare.Vip(case.vip, 80))], host.place(address, own))

    def counters(ipvs: IPVS, key: str) -> None:
        if case.device:
            mss = prepare.segment(tunnel or Tunnel(), case.vip, prepare.Place(address, "eth0", own))
            assert maxseg(case.vip) <= mss
            received = server.run("cat", f"/sys/class/net/{case.device}/statistics/rx_packets")
            assert int(received) > 0, "the packets came by the device"
        poll(lambda: ipvs.destinations(key)[0].stats.packets_in >= 4, what="packets to the server")
        (found,) = ipvs.destinations(key)
        assert found.destination.method == method
        assert (found.stats.packets_out > 0) == (case.method == "nat"), "only by nat do answers pass the balancer"

    before = state(server)
    backend = Backend(server, family=socket.AF_INET6 if ":" in case.vip else socket.AF_INET)
    backend.start()
    try:
        assert bring(server, record, wanted) == ()
        serve(case, address, counters)
        if case == CASES[-1]:
            made = state(server)
            assert made != before, "or this test has nothing to look at"
            assert bring(server, record, wanted) == (), "again changes nothing"
            assert state(server) == made
    finally:
        backend.stop()
        assert bring(server, record, lambda: ()) == ()
    assert state(server) == before


BRING = """
from pathlib import Path
from fusisd.agent import host, prepare
from fusisd.agent.config import ServiceConfig
from fusisd.agent.record import RecordFile
from pyipvs import ForwardingMethod
web = ServiceConfig("web", 80, ForwardingMethod.TUNNEL)
there = host.Host(RecordFile(Path({path!r}), host.machine()))
print(there.bring([prepare.steps([(web, prepare.Vip({vip!r}, 80))], host.place({address!r}, {balancer!r}))]).problems)
print(there.bring(()).problems)
"""


def test_the_unit_s_user_and_its_one_capability_are_enough(balancer: Lab, tmp_path: Path) -> None:
    """As docs/fusis-agent.service runs it: nobody in particular, CAP_NET_ADMIN alone."""
    unit = (Path(__file__).parents[2] / "docs/fusis-agent.service").read_text()
    assert "AmbientCapabilities=CAP_NET_ADMIN\n" in unit
    server, home = balancer.servers[1], tmp_path / "state"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    for parent in home.parents[:-2]:
        parent.chmod(0o755)
    before = state(server)
    code = BRING.format(path=str(home / "host.json"), vip=VIP, address=server.address, balancer=balancer.lb1.address)
    assert server.run(*AS_UNIT, sys.executable, "-c", code).split("\n")[:2] == ["()", "()"]
    assert state(server) == before
