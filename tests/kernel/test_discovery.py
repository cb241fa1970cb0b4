"""Servers found by real Serf become destinations on real IPVS, and go by the rules."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer, RealServer
from tests.lab.topology import VIP, Lab
from tests.lab.traffic import Traffic


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("discovery")


@pytest.fixture(scope="module")
def balancer(lab: Lab, home: Path) -> Iterator[Balancer]:
    """fusisd with a managed Serf agent, and the service web."""
    with Balancer(lab.lb1, home / "lb1") as running:
        running.add_service()
        yield running


@pytest.fixture(scope="module")
def servers(lab: Lab, home: Path, balancer: Balancer) -> Iterator[list[RealServer]]:
    """Three servers that have joined."""
    started = [RealServer(host, home / host.name, balancer) for host in lab.servers]
    try:
        for server in started:
            server.start()
        poll(lambda: balancer.weights("web") == {"rs1": 1, "rs2": 1, "rs3": 1}, 90, "three destinations")
        yield started
    finally:
        for server in started:
            server.stop()


@pytest.fixture
def unchecked(balancer: Balancer) -> Iterator[None]:
    """The balancer does not check by itself: servers' tags and Serf's word decide."""
    balancer.client().send("PATCH", "/v1/services/web", {"check": {"kind": "none"}})
    yield
    balancer.client().send("PATCH", "/v1/services/web", {"check": None})


def nodes(balancer: Balancer) -> dict[str, str]:
    return {node["name"]: node["status"] for node in balancer.status()["nodes"]}


def test_joined_servers_answer_for_the_vip(balancer: Balancer, servers: list[RealServer]) -> None:
    poll(lambda: balancer.status()["ok"], what="nothing to complain about")
    assert {ask(VIP, 80, "client") for _ in range(6)} == {"rs1", "rs2", "rs3"}


def test_our_own_serf_agent_s_restart_changes_nothing(balancer: Balancer, servers: list[RealServer]) -> None:
    before = balancer.status()["ops"]
    pid_file = balancer.state_dir / "serf" / "agent.pid"
    old = int(pid_file.read_text())
    with Traffic() as traffic:
        os.kill(old, signal.SIGKILL)
        poll(lambda: int(pid_file.read_text()) != old, 60, "the Serf agent to be started again")
        poll(lambda: balancer.status()["serf_connected"], 60, "fusisd to follow it again")
        poll(lambda: all(status == "alive" for status in nodes(balancer).values()), 90, "everybody to be seen again")
        poll(lambda: traffic.total > 100, what="traffic")
    assert traffic.lost == []
    assert balancer.status()["ops"] == before


def test_kill_9_of_fusisd_with_servers_found_by_serf_moves_nothing(balancer: Balancer, servers: list[RealServer]) -> None:
    table = balancer.host.run("ipvsadm", "-Sn")
    with Traffic() as traffic:
        poll(lambda: traffic.total > 20, what="traffic")
        balancer.kill()
        balancer.start()
        poll(lambda: set(nodes(balancer).values()) == {"alive"}, 60, "Serf's list")
        total = traffic.total
        poll(lambda: traffic.total > total + 50, what="traffic after the restart")
    assert traffic.lost == []
    assert balancer.host.run("ipvsadm", "-Sn") == table
    assert balancer.status()["ops"] == 0


def test_a_dead_backend_is_out_though_its_node_is_alive(balancer: Balancer, servers: list[RealServer]) -> None:
    server = servers[0]
    server.backend.kill()
    poll(lambda: balancer.weights("web")["rs1"] == 0, what="weight 0")
    assert nodes(balancer)["rs1"] == "alive"
    assert {ask(VIP, 80, "client") for _ in range(6)} == {"rs2", "rs3"}
    server.backend.start()
    poll(lambda: balancer.weights("web")["rs1"] == 1, what="its weight to come back")


def test_a_server_whose_cable_is_pulled_is_out_and_comes_back(balancer: Balancer, servers: list[RealServer]) -> None:
    host = servers[0].host
    host.run("ip", "link", "set", "eth0", "down")
    try:
        poll(lambda: not balancer.weights("web")["rs1"], what="no new connections to it")
        assert {ask(VIP, 80, "client") for _ in range(6)} == {"rs2", "rs3"}
    finally:
        host.run("ip", "link", "set", "eth0", "up")
    poll(lambda: balancer.weights("web")["rs1"] == 1, 60, "its weight to come back")


def test_by_its_agent_s_word_alone_a_dead_backend_is_out_and_nothing_is_lost_from_then_on(
    unchecked: None, balancer: Balancer, servers: list[RealServer]
) -> None:
    server = servers[0]
    with Traffic() as traffic:
        poll(lambda: traffic.total > 20, what="traffic")
        server.backend.kill()
        poll(lambda: balancer.weights("web")["rs1"] == 0, what="weight 0")
        out_s, total = time.monotonic(), traffic.total
        poll(lambda: traffic.total > total + 30, what="traffic without it")
        assert nodes(balancer)["rs1"] == "alive"
        server.backend.start()
        poll(lambda: traffic.last["rs1"] > out_s, what="an answer by it again")
    assert [lost for lost in traffic.lost if lost[0] > out_s] == []


def test_by_serf_s_word_alone_a_server_without_power_is_out_and_comes_back(
    unchecked: None, lab: Lab, balancer: Balancer, servers: list[RealServer]
) -> None:
    server = servers[0]
    lab.cable(server.host, "down")
    server.kill()
    try:
        poll(lambda: nodes(balancer)["rs1"] == "failed", 90, "Serf to notice")
        poll(lambda: server.host.address not in balancer.host.run("ipvsadm", "-Sn"), what="it to be out")
        assert {ask(VIP, 80, "client") for _ in range(6)} == {"rs2", "rs3"}
    finally:
        lab.cable(server.host, "up")
    server.start()
    poll(lambda: balancer.weights("web").get("rs1") == 1, 90, "its return")
    assert "rs1" in {ask(VIP, 80, "client") for _ in range(6)}


def test_a_leaving_server_loses_no_request_and_rejoins(balancer: Balancer, servers: list[RealServer]) -> None:
    server = servers[2]
    with Traffic() as traffic:
        poll(lambda: traffic.total > 20, what="traffic")
        server.leave()
        poll(lambda: nodes(balancer)["rs3"] == "left", 60, "Serf to say left")
        poll(lambda: "rs3" not in balancer.weights("web"), what="no new connections to it")
        total = traffic.total
        poll(lambda: traffic.total > total + 50, what="traffic without it")
    assert traffic.lost == []
    server.backend.kill()
    server.start()
    poll(lambda: balancer.weights("web")["rs3"] == 1, 90, "its return")


def test_a_server_deleted_by_an_operator_stays_out_until_it_is_posted(balancer: Balancer, servers: list[RealServer]) -> None:
    balancer.delete("/services/web/destinations/rs2")
    assert set(balancer.weights("web")) == {"rs1", "rs3"}
    poll(lambda: servers[1].host.address not in balancer.host.run("ipvsadm", "-Sn"), what="its drain to end")
    address = servers[1].host.address
    balancer.post("/services/web/destinations", {"Name": "rs2", "Host": address, "Port": 80, "Mode": "nat"})
    assert balancer.weights("web")["rs2"] == 1


def test_the_join_command_is_a_whole_line(balancer: Balancer, servers: list[RealServer]) -> None:
    import sys

    words = [sys.executable, "-m", "fusisd.ctl", "--socket", str(balancer.socket)]
    line = balancer.host.run(*words, "join-command", "--service", "web", "--state-dir", str(balancer.state_dir))
    key = (balancer.state_dir / "serf" / "key").read_text().strip()
    assert key in line
    assert f"fusis-agent --balancer {balancer.host.address} --key-file" in line
    assert "--service web --port 80 --mode nat" in line
    assert key not in balancer.log.read_text()
    shown = balancer.host.run(*words, "status", check=False)
    assert "rs1" in shown
    assert "rs1" in balancer.host.run(*words, "services")
