"""Withdraw on real IPVS, with traffic: the VIPs leave and come back, table and connections stay, whoever dies meanwhile."""

from __future__ import annotations

import json
import socket

import pytest

from fusisd.ctl.__main__ import main as fusisctl
from pyipvs import IPVS
from tests.kernel.test_v1 import (  # noqa: F401
    INSIDE,
    KEY,
    ONE,
    add_web,
    addresses,
    balancer,
    lab,
    patient_servers,
    send,
    table,
)
from tests.lab.expect import poll
from tests.lab.fusis import Balancer
from tests.lab.netns import entered
from tests.lab.topology import VIP, Lab
from tests.lab.traffic import Traffic

# ruff: noqa: F811


def begun() -> socket.socket:
    """A connection through the VIP whose request is not complete."""
    with entered("client"):
        sock = socket.socket()
    sock.settimeout(60.0)
    sock.connect((VIP, 80))
    sock.sendall(b"GET / HTTP/1.1\r\n")
    return sock


def resent(sock: socket.socket) -> int:
    """How often what was sent last has been sent again: tcpi_retransmits of <linux/tcp.h>."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[2]


def active(lab: Lab) -> int:
    with IPVS(netns=lab.lb1.name) as ipvs:
        return sum(row.active for row in ipvs.destinations(KEY))


def test_the_vip_leaves_for_as_long_as_it_is_asked_and_an_open_connection_goes_on_afterwards(
    lab: Lab, balancer: Balancer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--socket", str(balancer.socket)]
    add_web(balancer, lab)
    before = table(lab)
    with patient_servers(lab.servers), Traffic() as traffic:
        poll(lambda: traffic.total > 20, what="traffic before")
        assert traffic.lost == []
        with begun() as sock:
            poll(lambda: active(lab) >= 1, what="the connection in the table")
            assert fusisctl([*words, "withdraw"]) == 0
            assert f"{VIP}/32" not in addresses(lab)
            assert table(lab) == before, "with every weight"
            poll(lambda: traffic.lost, what="no way in any more")
            status = balancer.status()
            assert (status["ok"], status["withdrawn"]) == (False, True)
            assert any("withdrawn" in problem for problem in status["problems"])
            balancer.kill()
            balancer.start()
            turns = balancer.status()["turns"]
            poll(lambda: balancer.status()["turns"] > turns + 3, what="turns")
            assert f"{VIP}/32" not in addresses(lab), "a restart does not end it"
            assert (table(lab), active(lab) >= 1) == (before, True)
            send(balancer, "PATCH", f"{INSIDE}/{lab.servers[0].name}", {"weight": 3})
            assert f"-a -t {VIP}:80 -r {lab.servers[0].address}:80 -g -w 3" in table(lab), "changes go on"
            sock.sendall(b"Host: x\r\n")
            poll(lambda: resent(sock) >= 2, what="packets that nobody acknowledges: IPVS sees none without the VIP")
            assert fusisctl([*words, "withdraw", "--undo"]) == 0
            assert f"{VIP}/32" in addresses(lab)
            sock.sendall(b"\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")
        answered = sum(traffic.answers.values())
        poll(lambda: sum(traffic.answers.values()) > answered + 20, what="traffic again")
    poll(lambda: balancer.status()["ok"], what="no problem")
    assert fusisctl([*words, "events", "--json"]) == 0
    page = json.loads("{" + capsys.readouterr().out.partition("\n{")[2])
    causes = [(event["text"], event["cause"]) for event in page["events"] if event["kind"] == "vip"]
    assert causes == [(f"{VIP} is on the interface", "a service has it")], "of this run; the other's ended with it"
    who = [event["who"] for event in page["events"] if event["text"].startswith("Withdraw withdrawn=False")]
    assert who == ["unix"]


def test_an_address_that_is_another_s_affair_stays_and_every_connection_flows(lab: Lab, balancer: Balancer) -> None:
    lab.lb1.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    add_web(balancer, lab)
    with patient_servers(lab.servers), Traffic() as traffic:
        poll(lambda: traffic.total > 20, what="traffic before")
        with begun() as sock:
            send(balancer, "POST", "/v1/withdraw")
            total = traffic.total
            poll(lambda: traffic.total > total + 20, what="traffic meanwhile")
            sock.sendall(b"Host: x\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")
        vip = send(balancer, "GET", f"{ONE}/why")["vip"]
        assert (vip["on_host"], vip["withdrawn"]) == ("external", True)
        assert f"{VIP}/32" in addresses(lab)
        assert traffic.lost == []
