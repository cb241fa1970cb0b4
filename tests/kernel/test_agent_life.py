"""fusis-agent as a process on bare servers: prepared, ready, down, drained, left, and everything as it was before."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.test_agent_methods import state
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer, RealServer
from tests.lab.netns import entered
from tests.lab.topology import VIP, Lab
from tests.lab.traffic import Traffic

METHODS = {"rs1": "route", "rs2": "gue", "rs3": "nat"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agents")


@pytest.fixture(scope="module")
def before(lab: Lab) -> dict[str, str]:
    """Each server as it is bare; with the strict reverse path filter of distributions."""
    for server in lab.servers:
        server.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    return {server.name: state(server) for server in lab.servers}


@pytest.fixture(scope="module")
def balancer(lab: Lab, home: Path) -> Iterator[Balancer]:
    with Balancer(lab.lb1, home / "lb1") as running:
        running.add_service()
        yield running


@pytest.fixture(scope="module")
def servers(lab: Lab, home: Path, balancer: Balancer, before: dict[str, str]) -> Iterator[dict[str, RealServer]]:
    """One server by each method, of one service, none of which knows the VIP."""
    found = {}
    for host in lab.servers:
        options = ["--mode", METHODS[host.name], *(["--route-back"] if METHODS[host.name] == "nat" else [])]
        found[host.name] = RealServer(host, home / host.name, balancer, "web", *options)
    try:
        for server in found.values():
            server.start()
        poll(lambda: balancer.weights("web") == {"rs1": 1, "rs2": 1, "rs3": 1}, 90, "three destinations")
        yield found
    finally:
        for server in found.values():
            server.stop()


def agent(server: RealServer, *words: str) -> dict[str, Any]:
    """What a command of fusis-agent on this server says."""
    argv = [sys.executable, "-m", "fusisd.agent", *words, "--json", "--state-dir", str(server.home / "state")]
    said = server.host.run(*argv, check=False)
    assert said, "it does not take orders yet"
    found: dict[str, Any] = json.loads(said)
    return found


def test_each_answers_by_its_method_and_nothing_is_masqueraded(balancer: Balancer, servers: dict[str, RealServer]) -> None:
    assert {ask(VIP, 80, "client") for _ in range(6)} == {"rs1", "rs2", "rs3"}
    table = balancer.host.run("ipvsadm", "-Ln")
    for word in ("Route", "Tunnel", "Masq"):
        assert word in table
    assert "MASQUERADE" not in balancer.host.run("iptables-legacy", "-t", "nat", "-S")
    assert balancer.status()["ok"]


def test_a_service_killed_is_down_by_its_own_word_and_comes_back(balancer: Balancer, servers: dict[str, RealServer]) -> None:
    server = servers["rs1"]
    server.backend.kill()
    poll(lambda: not balancer.weights("web").get("rs1"), what="no weight")
    poll(lambda: agent(server, "status")["services"][0]["state"] == "down", what="its own word")
    assert "refused" in agent(server, "status")["services"][0]["reason"]
    server.backend.start()
    poll(lambda: balancer.weights("web").get("rs1") == 1, what="its weight to come back")


def test_drain_weight_and_ready_reach_the_balancer(balancer: Balancer, servers: dict[str, RealServer]) -> None:
    server = servers["rs2"]
    agent(server, "weight", "8")
    poll(lambda: balancer.weights("web")["rs2"] == 8, what="its new weight")
    agent(server, "weight", "500%")
    poll(lambda: balancer.weights("web")["rs2"] == 5, what="its new weight, a share of the configured one")
    agent(server, "weight", "100%", "web")
    with Traffic() as traffic:
        poll(lambda: traffic.total > 10, what="traffic")
        agent(server, "drain")
        poll(lambda: "rs2" not in balancer.weights("web"), what="its drain")
        total = traffic.total
        poll(lambda: traffic.total > total + 20, what="traffic without it")
        agent(server, "ready")
        poll(lambda: balancer.weights("web").get("rs2") == 1, what="its return")
    assert traffic.lost == []


def test_kill_9_and_a_restart_of_the_agent_change_nothing(balancer: Balancer, servers: dict[str, RealServer]) -> None:
    server, ops = servers["rs2"], balancer.status()["ops"]
    made = state(server.host)
    server.crash()
    assert state(server.host) == made
    server.resume()
    poll(lambda: agent(server, "status")["services"][0]["state"] == "ready", 60, "it to be ready again")
    assert state(server.host) == made
    assert balancer.status()["ops"] == ops


def leave_under_load(balancer: Balancer, server: RealServer, before: dict[str, str]) -> None:
    """One of three leaves: no request is lost, and it is as it was."""
    name = server.host.name
    assert balancer.weights("web") == {"rs1": 1, "rs2": 1, "rs3": 1}
    with Traffic() as traffic:
        poll(lambda: traffic.total > 10, what="traffic")
        server.leave()
        poll(lambda: name not in balancer.weights("web"), what="it to be gone")
        total = traffic.total
        poll(lambda: traffic.total > total + 10, what="traffic without it")
    assert traffic.lost == []
    assert state(server.host) == before[name]


@pytest.mark.parametrize("name", ["rs1", "rs2"])  # by nat: tests/kernel/test_discovery.py
def test_leaving_under_load_loses_nothing_and_leaves_nothing(
    balancer: Balancer, servers: dict[str, RealServer], before: dict[str, str], name: str
) -> None:
    leave_under_load(balancer, servers[name], before)
    servers[name].resume()
    poll(lambda: balancer.weights("web") == {"rs1": 1, "rs2": 1, "rs3": 1}, 60, "three destinations again")


def landed(server: RealServer) -> socket.socket | None:
    """A client's new connection through the VIP, when it came to this server."""
    with entered("client"):
        connection = socket.create_connection((VIP, 80), 10)
    there = server.host.run("ss", "-Htn", "state", "established", "sport", "=", ":80").split()
    if any(word.endswith(f":{connection.getsockname()[1]}") for word in there):
        return connection
    connection.close()
    return None


@contextlib.contextmanager
def long_request(server: RealServer) -> Iterator[socket.socket]:
    """A client's connection through the VIP to this server, with a request of which the end is missing."""
    connection = poll(lambda: landed(server), what="a connection to it")
    with connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        yield connection


def test_sigterm_waits_for_a_long_request_and_undoes_what_was_made_only_then(
    balancer: Balancer, servers: dict[str, RealServer], before: dict[str, str]
) -> None:
    server, name = servers["rs1"], "rs1"
    with long_request(server) as connection:
        server.begin_to_leave()
        poll(lambda: name not in balancer.weights("web"), what="its drain")  # its backend has time for one request at a time
        with Traffic() as traffic:

            def others_serve() -> bool:
                connection.sendall(b"x")  # or the backend would give up
                return traffic.total > 20

            poll(others_serve, what="traffic to the others")
        assert traffic.lost == []
        assert server.runs
        assert state(server.host) != before[name], "what the request needs is still there"
        assert agent(server, "status")["services"][0]["state"] == "leaving"
        connection.sendall(b"\r\n\r\n")
        assert connection.recv(1000).endswith(name.encode())
    server.left()
    assert state(server.host) == before[name]
    server.resume()
    poll(lambda: balancer.weights("web") == {"rs1": 1, "rs2": 1, "rs3": 1}, 60, "three destinations again")


@pytest.mark.parametrize("mode", ["nat", "ipip", "gre"])  # nat without a way back: the balancer masquerades
def test_leaving_by_other_methods_loses_nothing_either(
    home: Path, balancer: Balancer, servers: dict[str, RealServer], before: dict[str, str], mode: str
) -> None:
    if balancer.weights("web").get("rs1"):
        servers["rs1"].leave()
    server = RealServer(servers["rs1"].host, home / f"rs1-{mode}", balancer, "web", "--mode", mode)
    server.resume()  # the backend is there
    try:
        poll(lambda: balancer.weights("web") == {"rs1": 1, "rs2": 1, "rs3": 1}, 60, "three destinations")
        masquerades = "MASQUERADE" in balancer.host.run("iptables-legacy", "-t", "nat", "-S")
        assert masquerades == (mode == "nat")
        leave_under_load(balancer, server, before)
    finally:
        server.stop()


def test_a_server_that_was_killed_is_undone_by_hand(servers: dict[str, RealServer], before: dict[str, str]) -> None:
    server = servers["rs3"]
    server.crash()
    assert state(server.host) != before["rs3"]
    assert agent(server, "undo")["left"] == []
    assert state(server.host) == before["rs3"]
