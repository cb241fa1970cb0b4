"""The native API on real IPVS: every kind of service, changes in place, adopt and release, allocation, pause, drains."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusisd.ctl.__main__ import main as fusisctl
from fusisd.ctl.client import CtlError
from pyipvs import IPVS
from tests.lab.backends import backends
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer
from tests.lab.netns import entered
from tests.lab.topology import VIP, Host, Lab
from tests.lab.traffic import Traffic

WEB = {"name": "web", "protocol": "tcp", "address": VIP, "port": 80}
KEY = f"tcp/{VIP}:80"
ONE, INSIDE = "/v1/services/web", "/v1/services/web/destinations"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The network, with real servers that are ready for method route: the VIP on lo, where they answer no ARP for it."""
    with Lab() as built:
        for server in built.servers:
            server.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")
            server.run("ip", "address", "add", f"{VIP}/32", "dev", "lo")
        yield built


@pytest.fixture
def balancer(lab: Lab, tmp_path: Path) -> Iterator[Balancer]:
    """A fusisd on lb1 without Serf, on a clean machine afterwards."""
    with Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off") as running:
        yield running
    lab.lb1.run("ipvsadm", "-C")
    for host in (lab.lb1, lab.lb2):
        host.run("ip", "address", "flush", "dev", "eth0", "to", "10.1.0.96/27")


def send(balancer: Balancer, method: str, path: str, document: object = None) -> Any:
    return balancer.client().send(method, path, document)


def table(lab: Lab) -> list[str]:
    return sorted(lab.lb1.run("ipvsadm", "-Sn").splitlines())


def addresses(lab: Lab) -> str:
    return lab.lb1.run("ip", "-oneline", "address", "show")


def routed(lab: Lab) -> dict[str, Any]:
    """The real servers as destinations by route."""
    return {host.name: {"address": host.address, "port": 80, "method": "route"} for host in lab.servers}


def add_web(balancer: Balancer, lab: Lab) -> None:
    send(balancer, "POST", "/v1/services", {**WEB, "destinations": routed(lab)})


def test_every_kind_of_service_and_destination_is_in_the_kernel_as_it_was_asked_for(lab: Lab, balancer: Balancer) -> None:
    one, two, three = (host.address for host in lab.servers)
    send(balancer, "POST", "/v1/services", {"name": "mark", "fwmark": 7, "scheduler": "wlc", "persistence_s": 60})
    send(balancer, "POST", "/v1/services/mark/destinations", {"name": "a", "address": one, "port": 0, "method": "route"})
    dns = {"name": "dns", "protocol": "udp", "address": VIP, "port": 53, "scheduler": "rr", "flags": ["one_packet"]}
    send(balancer, "POST", "/v1/services", {**dns, "destinations": {"a": {"address": one, "port": 53, "weight": 3}}})
    gue = {"address": two, "port": 80, "method": "tunnel", "tunnel": {"type": "gue", "port": 6080}}
    full = {"address": three, "port": 80, "upper_threshold": 10, "lower_threshold": 5}
    send(balancer, "POST", "/v1/services", {**WEB, "scheduler": "mh", "destinations": {"gue": gue, "full": full}})
    sctp = {"name": "sctp", "protocol": "sctp", "address": "fd00:1::103", "port": 3868, "persistence_s": 9, "netmask": 64}
    send(balancer, "POST", "/v1/services", sctp)
    assert table(lab) == sorted(
        [
            "-A -f 7 -s wlc -p 60",
            f"-a -f 7 -r {one}:0 -g -w 1",
            f"-A -u {VIP}:53 -s rr -o",
            f"-a -u {VIP}:53 -r {one}:53 -g -w 3",
            f"-A -t {VIP}:80 -s mh -b mh-fallback",
            f"-a -t {VIP}:80 -r {two}:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum",
            f"-a -t {VIP}:80 -r {three}:80 -g -w 1",
            "-A --sctp-service [fd00:1::103]:3868 -s rr -p 9 -M 64",
        ]
    )
    assert thresholds(lab)[three] == (10, 5), "which ipvsadm -S leaves out"
    services = send(balancer, "GET", "/v1/services")["services"]
    assert {row["name"]: row["status"]["applied"] for row in services} == dict.fromkeys(("mark", "dns", "web", "sctp"), True)


def answer_udp(host: Host) -> None:
    """Answer each datagram to the VIP's port 53 with the host's name, for ever."""
    with entered(host.name):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((VIP, 53))
    while True:
        _, client = sock.recvfrom(2048)
        sock.sendto(host.name.encode(), client)


def asked_by_udp() -> str:
    with entered("client"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(3.0)
        sock.sendto(b"?", (VIP, 53))
        return sock.recv(2048).decode()


def test_datagrams_and_marked_packets_are_balanced(lab: Lab, balancer: Balancer) -> None:
    names = {host.name for host in lab.servers}
    for host in lab.servers:
        threading.Thread(target=answer_udp, args=(host,), daemon=True).start()
    everywhere = {host.name: {"address": host.address, "port": 53} for host in lab.servers}
    dns = {"name": "dns", "protocol": "udp", "address": VIP, "port": 53, "flags": ["one_packet"]}
    send(balancer, "POST", "/v1/services", {**dns, "destinations": everywhere})
    poll(asked_by_udp, what="an answer by UDP")
    assert {asked_by_udp() for _ in range(6)} == names
    rule = ("PREROUTING", "-d", VIP, "-p", "tcp", "--dport", "81:82", "-j", "MARK", "--set-mark", "7")
    lab.lb1.run("iptables-legacy", "-t", "mangle", "-A", *rule)
    try:
        marked = {host.name: {"address": host.address, "port": 0} for host in lab.servers}
        send(balancer, "POST", "/v1/services", {"name": "mark", "fwmark": 7, "destinations": marked})
        with backends(lab.servers, port=81), backends(lab.servers, port=82):
            assert {ask(VIP, port, "client") for port in (81, 82) * 6} == names
    finally:
        lab.lb1.run("iptables-legacy", "-t", "mangle", "-D", *rule)


def test_what_can_change_in_place_is_changed_in_place_under_traffic(lab: Lab, balancer: Balancer) -> None:
    """A service or destination that was deleted and made again would have begun to count at 0."""
    with backends(lab.servers), IPVS(netns=lab.lb1.name) as ipvs:
        add_web(balancer, lab)
        with Traffic() as traffic:
            poll(lambda: traffic.total > 30, what="traffic before")
            counts = [entry_counts(ipvs)]
            for patch in (
                {"scheduler": "wrr"},
                {"flags": ["sched1"], "scheduler": "sh"},
                {"scheduler": "wlc", "flags": [], "persistence_s": 30, "netmask": 24},
                {"persistence_s": None, "netmask": None, "destinations": {"rs1": {"weight": 5, "upper_threshold": 900}}},
                {"destinations": {"rs2": {"weight": 3}, "rs3": {"weight": 2}}},
            ):
                send(balancer, "PATCH", ONE, patch)
                before = traffic.total
                poll(lambda before=before: traffic.total > before + 15, what=f"traffic after {patch}")
                counts.append(entry_counts(ipvs))
        assert traffic.lost == []
    for earlier, later in zip(counts, counts[1:], strict=False):
        assert {name for name in earlier if later.get(name, 0) < earlier[name]} == set()
    assert table(lab)[0] == f"-A -t {VIP}:80 -s wlc"
    assert f"-a -t {VIP}:80 -r {lab.servers[0].address}:80 -g -w 5" in table(lab)
    assert thresholds(lab)[lab.servers[0].address] == (900, 0)


def thresholds(lab: Lab) -> dict[str, tuple[int, int]]:
    """Upper and lower one by address."""
    with IPVS(netns=lab.lb1.name) as ipvs:
        rows = [row.destination for row in ipvs.destinations(KEY)]
    return {row.address: (row.upper_threshold, row.lower_threshold) for row in rows}


def entry_counts(ipvs: IPVS) -> dict[str, int]:
    """Connections counted since it was made, of the service and of each destination."""
    rows = {row.destination.address: row.stats.connections for row in ipvs.destinations(KEY)}
    return {"service": ipvs.service(KEY).stats.connections, **rows}


def test_adopt_and_release_move_the_border_and_no_packet(lab: Lab, balancer: Balancer) -> None:
    lab.lb1.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    lab.lb1.run("ipvsadm", "-A", "-t", f"{VIP}:80", "-s", "wrr")
    for weight, host in enumerate(lab.servers, 1):
        lab.lb1.run("ipvsadm", "-a", "-t", f"{VIP}:80", "-r", f"{host.address}:80", "-g", "-w", str(weight))
    before = table(lab), addresses(lab)
    with backends(lab.servers), Traffic() as traffic:
        poll(lambda: traffic.total > 20, what="traffic before")
        with pytest.raises(CtlError, match="adopt"):
            send(balancer, "POST", "/v1/services", WEB)
        assert [row["key"] for row in send(balancer, "GET", "/v1/foreign")["foreign"]] == [KEY]
        adopted = send(balancer, "POST", "/v1/adopt", {"name": "web", "key": KEY})
        assert (adopted["vip"], len(adopted["destinations"])) == ("external", 3)
        assert (table(lab), addresses(lab)) == before
        lab.lb1.run("ipvsadm", "-d", "-t", f"{VIP}:80", "-r", f"{lab.servers[0].address}:80")
        poll(lambda: table(lab) == before[0], what="it to be ours: repaired")
        total = traffic.total
        poll(lambda: traffic.total > total + 20, what="traffic while it is ours")
        assert send(balancer, "POST", f"{ONE}/release", {}) == {"name": "web", "key": KEY}
        assert (table(lab), addresses(lab)) == before
        total = traffic.total
        poll(lambda: traffic.total > total + 20, what="traffic after the release")
        assert [row["key"] for row in send(balancer, "GET", "/v1/foreign")["foreign"]] == [KEY]
        lab.lb1.run("ipvsadm", "-e", "-t", f"{VIP}:80", "-r", f"{lab.servers[0].address}:80", "-g", "-w", "7")
        turns = balancer.status()["turns"]
        poll(lambda: balancer.status()["turns"] > turns + 3, what="turns")
        assert f"-a -t {VIP}:80 -r {lab.servers[0].address}:80 -g -w 7" in table(lab), "not ours any more"
    assert traffic.lost == []


def test_release_of_a_service_of_our_own_leaves_vip_and_table(lab: Lab, balancer: Balancer) -> None:
    with backends(lab.servers):
        add_web(balancer, lab)
        poll(lambda: ask(VIP, 80, "client"), what="an answer")
        before = table(lab), addresses(lab)
        with Traffic() as traffic:
            send(balancer, "POST", f"{ONE}/release", {})
            poll(lambda: traffic.total > 20, what="traffic after")
            assert (table(lab), addresses(lab)) == before
            balancer.stop()
            balancer.start()
            assert (table(lab), addresses(lab)) == before, "nor does the next start take anything away"
        assert traffic.lost == []


def test_a_vip_is_allocated_where_nobody_answers(lab: Lab, balancer: Balancer) -> None:
    lab.lb2.run("ip", "address", "add", "10.1.0.97/32", "dev", "eth0")
    send(balancer, "PUT", "/v1/settings", {"ranges": ["10.1.0.96/29", "fd00:1::100/120"]})
    made = send(balancer, "POST", "/v1/services", {"name": "web", "protocol": "tcp", "port": 80})
    assert made["address"] == "10.1.0.98"
    assert "10.1.0.98/32" in addresses(lab)
    assert send(balancer, "POST", "/v1/services", {"name": "web", "protocol": "tcp", "port": 80}) == made
    six = send(balancer, "POST", "/v1/services", {"name": "six", "protocol": "tcp", "port": 80, "family": "ipv6"})
    assert six["address"].startswith("fd00:1::1")
    assert f"{six['address']}/128" in addresses(lab)
    with pytest.raises(CtlError, match=f"10.1.0.97 is in use: {lab.mac(lab.lb2)}"):
        send(balancer, "POST", "/v1/services", {"name": "b", "protocol": "tcp", "address": "10.1.0.97", "port": 80})
    balancer.kill()
    balancer.start()
    assert send(balancer, "GET", ONE)["address"] == "10.1.0.98", "stable over restarts"
    for name in ("web", "six"):
        send(balancer, "DELETE", f"/v1/services/{name}?now=1")
    assert "10.1.0.98/32" not in addresses(lab)
    assert six["address"] not in addresses(lab)


def test_a_pause_stops_repairs_until_it_ends(lab: Lab, balancer: Balancer) -> None:
    add_web(balancer, lab)
    before = table(lab)
    send(balancer, "POST", "/v1/pause", {"seconds": 300})
    lab.lb1.run("ipvsadm", "-d", "-t", f"{VIP}:80", "-r", f"{lab.servers[0].address}:80")
    poll(lambda: balancer.status()["drift"] >= 1, what="the drift to be noticed")
    turns = balancer.status()["turns"]
    poll(lambda: balancer.status()["turns"] > turns + 3, what="turns")
    assert len(table(lab)) == len(before) - 1, "noticed, and left"
    assert any("paused" in problem for problem in balancer.status()["problems"])
    send(balancer, "POST", "/v1/pause", {"seconds": 0})
    poll(lambda: table(lab) == before, what="the repair")
    poll(lambda: balancer.status()["ok"], what="no problem")
    send(balancer, "POST", "/v1/pause", {"seconds": 1.0})
    lab.lb1.run("ipvsadm", "-d", "-t", f"{VIP}:80", "-r", f"{lab.servers[0].address}:80")
    poll(lambda: table(lab) == before, what="the repair when the pause expires by itself")


class Patient(socketserver.StreamRequestHandler):
    """Answers a GET with the server's name when the request is complete, however long that takes."""

    timeout = 120
    server: PatientServer

    def handle(self) -> None:
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        name = self.server.name.encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(name), name))


class PatientServer(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, host: Host) -> None:
        self.name = host.name
        with entered(host.name):
            super().__init__(("0.0.0.0", 80), Patient)


@contextmanager
def patient_servers(hosts: list[Host]) -> Iterator[None]:
    """A server on each host that other requests do not hold up."""
    servers = [PatientServer(host) for host in hosts]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def held(lab: Lab, name: str) -> tuple[socket.socket, str]:
    """A connection through the VIP, its request not complete yet, that the server of this name has."""
    server = next(host for host in lab.servers if host.name == name)
    for _ in range(20):
        with entered("client"):
            sock = socket.create_connection((VIP, 80), 10)
        sock.sendall(b"GET / HTTP/1.1\r\n")
        port = sock.getsockname()[1]
        if f"{lab.client.address}:{port}" in server.run("ss", "-tnH", "state", "established"):
            return sock, name
        sock.close()
    raise AssertionError(f"no connection came to {name}")


def test_a_drain_under_traffic_shows_its_progress_and_loses_nothing(
    lab: Lab, balancer: Balancer, capsys: pytest.CaptureFixture[str]
) -> None:
    with patient_servers(lab.servers):
        add_web(balancer, lab)
        poll(lambda: ask(VIP, 80, "client"), what="an answer")
        with Traffic() as traffic:
            poll(lambda: len(traffic.answers) == 3, what="all three to answer")
            sock, _ = held(lab, "rs1")
            drained = send(balancer, "DELETE", f"{INSIDE}/rs1?drain_s=120")
            assert drained["status"]["state"] == "draining"
            poll(lambda: drains(balancer)["active"] == 1, what="the held connection alone to be active")
            row = drains(balancer)
            assert 0 < row["left_s"] <= 120
            answered = traffic.answers["rs1"]
            total = traffic.total
            poll(lambda: traffic.total > total + 40, what="traffic during the drain")
            assert traffic.answers["rs1"] == answered, "no new connection goes there"
            assert drains(balancer)["left_s"] < row["left_s"]
            sock.sendall(b"Host: x\r\n\r\n")
            assert sock.recv(4096).endswith(b"rs1"), "the connection lives on"
            sock.close()
            poll(lambda: send(balancer, "GET", "/v1/drains")["drains"] == [], what="the drain to end, before its deadline")
            assert f"{lab.servers[0].address}:80" not in "".join(table(lab))
            words = ["--socket", str(balancer.socket)]
            assert fusisctl([*words, "drain", "web/rs2", "--wait", "--limit", "30"]) == 0
            assert "web/rs2 is gone" in capsys.readouterr().out
            send(balancer, "PUT", f"{INSIDE}/rs1", routed(lab)["rs1"])
            poll(lambda: traffic.answers["rs1"] > answered, what="rs1 to serve again")
        assert traffic.lost == []


def drains(balancer: Balancer) -> dict[str, Any]:
    (row,) = send(balancer, "GET", "/v1/drains")["drains"]
    found: dict[str, Any] = row
    return found


def test_a_drain_survives_a_restart_and_can_be_taken_back(lab: Lab, balancer: Balancer) -> None:
    with patient_servers(lab.servers):
        add_web(balancer, lab)
        poll(lambda: ask(VIP, 80, "client"), what="an answer")
        sock, _ = held(lab, "rs2")
        with sock:
            send(balancer, "DELETE", f"{INSIDE}/rs2?drain_s=300")
            poll(lambda: drains(balancer)["active"] == 1, what="the drain")
            left_s = drains(balancer)["left_s"]
            balancer.kill()
            balancer.start()
            row = drains(balancer)
            assert (row["destination"], row["left_s"] < left_s) == ("rs2", True)
            assert send(balancer, "DELETE", f"{INSIDE}/rs2/drain")["status"]["state"] == "up"
            assert f"-a -t {VIP}:80 -r {lab.servers[1].address}:80 -g -w 1" in table(lab)
            sock.sendall(b"Host: x\r\n\r\n")
            assert sock.recv(4096).endswith(b"rs2")


def test_an_export_makes_the_same_table_on_another_balancer(lab: Lab, balancer: Balancer, tmp_path: Path) -> None:
    add_web(balancer, lab)
    send(balancer, "PUT", "/v1/settings", {"timeouts": {"tcp_s": 777}})
    before = table(lab)
    file = tmp_path / "lb.json"
    words = ["--socket", str(balancer.socket)]
    assert fusisctl([*words, "export", str(file)]) == 0
    send(balancer, "DELETE", f"{ONE}?now=1")
    assert table(lab) == []
    assert fusisctl([*words, "import", str(file)]) == 0
    assert table(lab) == before
    assert "777" in lab.lb1.run("ipvsadm", "-L", "--timeout")
    broken = json.loads(file.read_text())
    broken["services"]["new"] = {"key": "tcp/10.1.0.105:x"}
    file.write_text(json.dumps(broken))
    assert fusisctl([*words, "import", str(file)]) == 1
    assert table(lab) == before


TABLE = f"""
[services.web]
key = "{KEY}"
scheduler = "wrr"
destinations.rs1 = {{ address = "RS1", port = 80, weight = 2 }}
destinations.rs2 = {{ address = "RS2", port = 80 }}

[services.any]
protocol = "udp"
address = "10.1.0.105"
port = 53
"""


def test_a_table_in_toml_is_planned_and_made_at_once(
    lab: Lab, balancer: Balancer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lb.toml"
    rs1, rs2 = (server.address for server in lab.servers[:2])
    words = ["--socket", str(balancer.socket)]

    def ctl(*more: str) -> str:
        capsys.readouterr()
        assert fusisctl([*words, *more]) == 0
        return capsys.readouterr().out

    file.write_text('managed_by = "lb"\n' + TABLE.replace("RS1", rs1).replace("RS2", rs2))
    planned = json.loads(ctl("plan", "-f", str(file), "--json"))["steps"]
    assert table(lab) == []
    ctl("apply", "-f", str(file))
    poll(lambda: len(table(lab)) == 4, what="both destinations to be in the kernel")
    made = table(lab)
    assert f"-a -t {VIP}:80 -r {rs1}:80 -g -w 2" in made
    done = [event["text"] for event in send(balancer, "GET", "/v1/events")["events"] if event["kind"] in ("op", "vip")]
    shown = [step["what"] for step in planned if not step["what"].startswith("add address")]
    assert sorted(text for text in done if "interface" not in text and "fwmark" not in text) == sorted(shown)
    assert [text for text in addresses(lab).splitlines() if "10.1.0.105" in text]
    assert ctl("apply", "-f", str(file)) == "nothing to do\n"
    before = send(balancer, "GET", "/v1/status")["ops"]
    file.write_text(file.read_text().replace("services.web", "services.www").replace(".rs1 =", ".one ="))
    ctl("apply", "-f", str(file))
    assert (table(lab), send(balancer, "GET", "/v1/status")["ops"]) == (made, before), "only names are others"
    file.write_text('managed_by = "lb"\nservices = {}')
    assert "service www" in ctl("apply", "-f", str(file))
    poll(lambda: table(lab) == [], what="all of it to drain")
