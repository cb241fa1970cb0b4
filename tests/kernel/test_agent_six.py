"""An IPv6 service of servers that Serf shows by their IPv4 addresses: each claims its IPv6 address (`--at`) or is reached
by a tunnel in IPv4, is prepared by its agent alone, run as its unit runs it, and leaves under load without a loss."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_agent_methods import state
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer, RealServer
from tests.lab.topology import VIP6, Host, Lab
from tests.lab.traffic import Traffic

STEADY = {"rs2": "route", "rs3": "nat"}
ALL = {"rs1": 1, "rs2": 1, "rs3": 1}
MODES = ["nat", "route", "ipip", "gue:6090", "gre"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("six")


@pytest.fixture(scope="module")
def balancer(lab: Lab, home: Path) -> Iterator[Balancer]:
    with Balancer(lab.lb1, home / "lb1", "--allow-claims", "10.1.0.0/24") as running:
        running.add_service("web", VIP6)
        yield running


def made(host: Host, home: Path, balancer: Balancer, mode: str, as_unit: bool = False) -> RealServer:
    at = ["--at", host.address6] if mode in ("nat", "route") else []
    return RealServer(host, home, balancer, "web", "--mode", mode, *at, family=socket.AF_INET6, as_unit=as_unit)


@pytest.fixture(scope="module")
def bare(lab: Lab) -> str:
    return state(lab.servers[0])


@pytest.fixture(scope="module")
def steady(lab: Lab, home: Path, balancer: Balancer, bare: str) -> Iterator[None]:
    """The two that stay."""
    servers = [made(host, home / host.name, balancer, STEADY[host.name]) for host in lab.servers[1:]]
    try:
        for server in servers:
            server.start()
        poll(lambda: balancer.weights("web") == {"rs2": 1, "rs3": 1}, 90, "two destinations")
        yield
    finally:
        for server in servers:
            server.stop()


@pytest.mark.parametrize("mode", MODES)
def test_leaving_under_load_loses_nothing_and_leaves_nothing(
    lab: Lab, home: Path, balancer: Balancer, steady: None, bare: str, mode: str
) -> None:
    lab.servers[0].run("modprobe", "fou")  # the unit's ExecStartPre
    server = made(lab.servers[0], home / f"rs1-{mode}", balancer, mode, as_unit=True)
    server.start()
    try:
        poll(lambda: balancer.weights("web") == ALL, 60, "three destinations")
        poll(lambda: {ask(VIP6, 80, "client") for _ in range(6)} == ALL.keys(), what="all three to answer")
        rules = lab.lb1.run("ip6tables-legacy", "-t", "nat", "-S")
        assert "MASQUERADE" in rules, "one-armed: rs3's answers come back by the balancer"
        with Traffic(VIP6) as traffic:
            poll(lambda: traffic.answers["rs1"] > 3, what="traffic")
            server.leave()
            poll(lambda: balancer.weights("web") == {"rs2": 1, "rs3": 1}, what="it to be gone")
            total = traffic.total
            poll(lambda: traffic.total > total + 10, what="traffic without it")
        assert traffic.lost == []
        assert state(server.host) == bare
    finally:
        server.stop()
