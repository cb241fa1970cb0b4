"""The native API on real IPVS: every kind of service and destination, changed in place, drained, adopted and released."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.backends import backends
from tests.lab.campaign import Connection
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer
from tests.lab.netns import entered
from tests.lab.topology import VIP, Lab
from tests.lab.traffic import Traffic


@pytest.fixture
def balancer(lab: Lab, tmp_path: Path) -> Iterator[Balancer]:
    """A fusisd on lb1 without Serf, on a clean machine afterwards."""
    with Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off") as running:
        yield running
    lab.lb1.run("ipvsadm", "-C")
    lab.lb1.run("ip", "address", "flush", "dev", "eth0", "to", "10.1.0.96/27")


def say(balancer: Balancer, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    """A request over the Unix socket; the document of the answer."""
    connection: http.client.HTTPConnection = Connection(balancer.socket)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == status, f"{method} {path}: {answer.status} {text.decode()}"
    return json.loads(text)


def saved(lab: Lab) -> list[str]:
    return sorted(lab.lb1.run("ipvsadm", "-Sn").splitlines())


SERVICES = [
    ({"key": "udp/10.1.0.101:53", "scheduler": "wlc", "flags": ["one_packet"]}, "-A -u 10.1.0.101:53 -s wlc -o"),
    ({"key": "sctp/10.1.0.101:9", "scheduler": "sed"}, "-A --sctp-service 10.1.0.101:9 -s sed"),
    ({"key": "fwmark/7", "scheduler": "lblc"}, "-A -f 7 -s lblc"),
    (
        {"key": "tcp/10.1.0.102:0", "scheduler": "lc", "persistence_s": 300, "netmask": 24},
        "-A -t 10.1.0.102:0 -s lc -p 300 -M 255.255.255.0",
    ),
    ({"key": "tcp/10.1.0.103:80", "scheduler": "mh"}, "-A -t 10.1.0.103:80 -s mh -b mh-fallback"),
    ({"key": "tcp/[fd00:1::103]:80", "scheduler": "rr"}, "-A -t [fd00:1::103]:80 -s rr"),
]


def test_every_kind_of_service_reaches_the_kernel(lab: Lab, balancer: Balancer) -> None:
    for number, (document, _) in enumerate(SERVICES):
        say(balancer, "PUT", f"/v1/services/s{number}", document, 201)
    assert saved(lab) == sorted(line for _, line in SERVICES)
    assert all(row["status"]["applied"] for row in say(balancer, "GET", "/v1/services").values())


def test_a_scheduler_that_this_kernel_has_not_is_refused_at_the_door(lab: Lab, balancer: Balancer) -> None:
    problem = say(balancer, "PUT", "/v1/services/x", {"key": f"tcp/{VIP}:80", "scheduler": "twos"}, 422)
    assert problem["field"] == "scheduler"
    assert saved(lab) == []


def test_settings_change_in_place_and_thresholds_and_tunnels_arrive(lab: Lab, balancer: Balancer) -> None:
    say(balancer, "PUT", "/v1/services/web", {"key": f"tcp/{VIP}:80", "scheduler": "rr"}, 201)
    tunnel = {"address": "10.1.0.11", "port": 80, "method": "tunnel", "tunnel": {"type": "gue", "port": 6080}}
    say(balancer, "PUT", "/v1/services/web/destinations/rs1", tunnel, 201)
    nat = {"address": "10.1.0.12", "port": 8080, "method": "nat", "upper_threshold": 100, "lower_threshold": 80}
    say(balancer, "PUT", "/v1/services/web/destinations/rs2", nat, 201)
    line = f"-a -t {VIP}:80 -r 10.1.0.11:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum"
    assert line in saved(lab)
    assert " 100 " in " ".join(lab.lb1.run("ipvsadm", "-Ln", "--thresholds").split()) + " "
    before = balancer.status()["ops"]
    say(balancer, "PATCH", "/v1/services/web", {"scheduler": "wrr", "persistence_s": 60})
    say(balancer, "PATCH", "/v1/services/web/destinations/rs1", {"weight": 7})
    assert f"-A -t {VIP}:80 -s wrr -p 60" in saved(lab)
    assert balancer.status()["ops"] == before + 2, "two changes in place, nothing deleted"
    log = balancer.log.read_text()
    assert "delete" not in log[log.index("persistent 60") :]


def test_adopting_and_releasing_touches_nothing(lab: Lab, balancer: Balancer) -> None:
    lab.lb1.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    lab.lb1.run("ipvsadm", "-A", "-t", f"{VIP}:80", "-s", "rr")
    lab.lb1.run("ipvsadm", "-a", "-t", f"{VIP}:80", "-r", "10.1.0.11:80", "-g", "-w", "3")
    before = saved(lab), lab.lb1.run("ip", "-brief", "address", "show", "dev", "eth0")
    problem = say(balancer, "PUT", "/v1/services/web", {"key": f"tcp/{VIP}:80"}, 409)
    assert "adopt" in problem["detail"]
    assert [row["key"] for row in say(balancer, "GET", "/v1/foreign")] == [f"tcp/{VIP}:80"]
    adopted = say(balancer, "POST", "/v1/adopt", {"name": "web", "key": f"tcp/{VIP}:80"}, 201)
    assert adopted["destinations"]["10.1.0.11:80"]["weight"] == 3
    assert (saved(lab), lab.lb1.run("ip", "-brief", "address", "show", "dev", "eth0")) == before
    say(balancer, "PATCH", "/v1/services/web/destinations/10.1.0.11:80", {"weight": 4})
    assert f"-a -t {VIP}:80 -r 10.1.0.11:80 -g -w 4" in saved(lab)
    now = saved(lab), before[1]
    say(balancer, "POST", "/v1/services/web/release")
    balancer.stop()
    assert (saved(lab), lab.lb1.run("ip", "-brief", "address", "show", "dev", "eth0")) == now


def test_a_released_service_by_nat_goes_on_serving(lab: Lab, balancer: Balancer) -> None:
    with backends(lab.servers):
        web(balancer, lab)
        with Traffic() as traffic:
            poll(lambda: traffic.total > 20, what="traffic")
            say(balancer, "POST", "/v1/services/web/release")
            total = traffic.total
            poll(lambda: traffic.total > total + 60, what="traffic without an owner")
            balancer.kill()
            balancer.start()
            total = traffic.total
            poll(lambda: traffic.total > total + 60, what="traffic after a restart")
        assert traffic.lost == []
        assert say(balancer, "GET", "/v1/services") == {}
    lab.lb1.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")


def test_a_vip_is_allocated_and_one_that_somebody_has_is_refused(lab: Lab, balancer: Balancer) -> None:
    lab.lb2.run("ip", "address", "add", "10.1.0.105/32", "dev", "eth0")
    try:
        problem = say(balancer, "PUT", "/v1/services/x", {"key": "tcp/10.1.0.105:80"}, 409)
        assert lab.mac(lab.lb2) in problem["detail"]
        assert say(balancer, "POST", "/v1/services", {"name": "a", "key": "tcp/0.0.0.0:80"}, 503)["detail"]
        say(balancer, "PUT", "/v1/settings", {"ranges": ["10.1.0.104/30"]})
        made = say(balancer, "POST", "/v1/services", {"name": "a", "key": "tcp/0.0.0.0:80"}, 201)
        assert made["key"] == "tcp/10.1.0.106:80", "not the network's own, and not the one that lb2 has"
        assert say(balancer, "PUT", "/v1/services/a", {"key": "tcp/0.0.0.0:80"})["key"] == made["key"], "the same again"
        say(balancer, "POST", "/v1/services", {"name": "b", "key": "tcp/0.0.0.0:80"}, 503)
        say(balancer, "DELETE", "/v1/services/a?now=1")
        assert say(balancer, "POST", "/v1/services", {"name": "b", "key": "tcp/0.0.0.0:80"}, 201)["key"] == made["key"]
    finally:
        lab.lb2.run("ip", "address", "delete", "10.1.0.105/32", "dev", "eth0")


def test_a_pause_stops_repairs_and_ends(lab: Lab, balancer: Balancer) -> None:
    say(balancer, "PUT", "/v1/services/web", {"key": f"tcp/{VIP}:80", "scheduler": "rr"}, 201)
    say(balancer, "POST", "/v1/pause", {"seconds": 600})
    lab.lb1.run("ipvsadm", "-D", "-t", f"{VIP}:80")
    poll(lambda: balancer.status()["drift"] >= 1, what="the drift to be seen")
    assert any("paused" in problem for problem in balancer.status()["problems"])
    assert saved(lab) == []
    say(balancer, "POST", "/v1/pause", {"seconds": 0})
    poll(lambda: saved(lab) == [f"-A -t {VIP}:80 -s rr"], what="the repair")


def test_a_drain_of_one_of_three_loses_no_request_and_can_be_cancelled(lab: Lab, balancer: Balancer) -> None:
    with backends(lab.servers):
        web(balancer, lab)
        with Traffic() as traffic:
            poll(lambda: traffic.total > 20, what="traffic")
            say(balancer, "DELETE", "/v1/services/web/destinations/rs1")
            (drain,) = say(balancer, "GET", "/v1/drains")
            assert (drain["destination"], drain["state"]) == ("rs1", "draining")
            assert 0 < drain["drain_left_s"] <= 60
            assert "rs1" not in balancer.weights("web")
            say(balancer, "DELETE", "/v1/services/web/destinations/rs1/drain")
            poll(lambda: balancer.weights("web")["rs1"] == 1, what="its return")
            say(balancer, "DELETE", "/v1/services/web/destinations/rs1")
            poll(lambda: say(balancer, "GET", "/v1/drains") == [], what="the drain's end")
            total = traffic.total
            poll(lambda: traffic.total > total + 50, what="traffic without it")
        assert traffic.lost == []
        assert "10.1.0.11" not in " ".join(saved(lab))


def test_a_drain_survives_a_restart_and_ends_at_its_deadline(lab: Lab, balancer: Balancer) -> None:
    server = lab.servers[0]
    holds = "import socket as s; l = s.create_server(('', 81)); kept = []\nwhile 1: kept.append(l.accept())"
    process = server.popen(sys.executable, "-c", holds)
    try:
        say(balancer, "PUT", "/v1/services/held", {"key": f"tcp/{VIP}:81", "scheduler": "rr"}, 201)
        row = {"address": server.address, "port": 81, "method": "nat"}
        say(balancer, "PUT", "/v1/services/held/destinations/rs1", row, 201)
        held = poll(held_connection, what="a connection")
        poll(lambda: active(lab) == 1, what="the connection to count as active")
        say(balancer, "DELETE", "/v1/services/held?drain_s=15", status=202)
        balancer.kill()
        balancer.start()
        assert say(balancer, "GET", "/v1/services/held")["status"]["draining"] is True
        assert balancer.client().get("/services") == []
        assert VIP in lab.lb1.run("ip", "-brief", "address", "show", "dev", "eth0"), "its connections need it"
        poll(lambda: saved(lab) == [], 60, "the deadline")
        held.close()
    finally:
        process.kill()
        process.wait(10)


def web(balancer: Balancer, lab: Lab) -> None:
    say(balancer, "PUT", "/v1/services/web", {"key": f"tcp/{VIP}:80", "scheduler": "rr"}, 201)
    for host in lab.servers:
        row = {"address": host.address, "port": 80, "method": "nat"}
        say(balancer, "PUT", f"/v1/services/web/destinations/{host.name}", row, 201)
    poll(lambda: ask(VIP, 80, "client"), what="an answer")


def active(lab: Lab) -> int:
    """Connections that count as active."""
    rows = [line.split() for line in lab.lb1.run("ipvsadm", "-Ln").splitlines() if line.startswith("  -> ")]
    return sum(int(row[-2]) for row in rows if row[-2].isdigit())


def held_connection() -> socket.socket:
    """One from the client that says nothing."""
    with entered("client"):
        sock = socket.socket()
    sock.settimeout(5)
    sock.connect((VIP, 81))
    return sock
