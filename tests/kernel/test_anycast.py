"""Two balancers with one VIP at the same time, told by bird to a router that shares clients out (docs/anycast.md)."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.lab.backends import backends
from tests.lab.expect import poll
from tests.lab.fusis import Balancer
from tests.lab.netns import entered
from tests.lab.topology import LB1, Host, Lab
from tests.lab.traffic import Traffic

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
ANYCAST, ANYCAST6, MOVING, STAYING = "192.0.2.10", "2001:db8::10", "192.0.2.11", "10.1.0.120"
LIMIT_S = 60.0


class Bird:
    """bird on a host, with the configuration that is shipped."""

    def __init__(self, host: Host, home: Path) -> None:
        self.host, self._home = host, home / f"bird-{host.name}"
        self._home.mkdir()
        name = "bird-router.conf" if host.name == "router" else "bird.conf"
        self._config, self._control = self._home / "conf", self._home / "control"
        text = (EXAMPLES / name).read_text()
        self._config.write_text(text if host.name == "router" else text.replace(LB1.address, host.address))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["bird", "-f", "-c", str(self._config), "-s", str(self._control), "-P", str(self._home / "pid")]
        self._process = self.host.popen(*words, log=self._home / "log")

    def stop(self) -> None:
        """SIGTERM: it says goodbye to its neighbour."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None


@pytest.fixture(scope="module")
def balancers(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Balancer, Balancer]]:
    """fusisd on both, with one service of each family, the VIPs on lo."""
    home = tmp_path_factory.mktemp("anycast")
    pair = [Balancer(host, home / host.name, "--serf", "off", "--vip-iface", "lo") for host in (lab.lb1, lab.lb2)]
    with pair[0], pair[1], backends(lab.servers):
        for one in pair:
            rows = {host.name: {"address": host.address, "port": 80, "method": "nat"} for host in lab.servers}
            web = {"key": f"tcp/{ANYCAST}:80", "check": {"kind": "tcp"}, "destinations": rows}
            one.client().send("PUT", "/v1/services/web", web)
            one.client().send("PUT", "/v1/services/six", {"key": f"tcp/[{ANYCAST6}]:80", "destinations": {}})
            all_serve(one, "web", rows)
        yield pair[0], pair[1]


@pytest.fixture(scope="module")
def birds(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bird]]:
    home = tmp_path_factory.mktemp("birds")
    lab.router.run("sysctl", "-qw", "net.ipv4.fib_multipath_hash_policy=1")
    found = {host.name: Bird(host, home) for host in (lab.router, lab.lb1, lab.lb2)}
    try:
        for bird in found.values():
            bird.start()
        yield found
    finally:
        for bird in found.values():
            bird.stop()


def all_serve(balancer: Balancer, service: str, rows: Collection[str]) -> None:
    poll(lambda: balancer.weights(service) == dict.fromkeys(rows, 1), LIMIT_S, f"the checks of {service}")


def ways(lab: Lab, vip: str = ANYCAST) -> set[str]:
    """The balancers that the router has a way to the VIP by."""
    text = lab.router.run("ip", *(["-6"] if ":" in vip else []), "route", "show", vip)
    return {host.name for host in (lab.lb1, lab.lb2) if f"via {host.address} " in text or f"via {host.address6} " in text}


def conns(balancer: Balancer, service: str = "web") -> int:
    """Connections that this balancer's IPVS has been given."""
    rows = balancer.client().get(f"/v1/services/{service}/statistics")
    return int(rows["statistics"]["connections"])


def test_both_serve_and_either_can_be_taken_out(
    lab: Lab, balancers: tuple[Balancer, Balancer], birds: dict[str, Bird]
) -> None:
    one, two = balancers
    poll(lambda: ways(lab) == {"lb1", "lb2"}, LIMIT_S, "both ways")
    poll(lambda: ways(lab, ANYCAST6) == {"lb1", "lb2"}, LIMIT_S, "both ways by IPv6")
    with Traffic(vip=ANYCAST, timeout_s=1.0) as traffic:
        traffic.goes_on(50, "the beginning")
        poll(lambda: conns(one) > 5 and conns(two) > 5, LIMIT_S, "both to be given some")
        one.client().send("POST", "/v1/withdraw")
        poll(lambda: ways(lab) == {"lb2"}, LIMIT_S, "one way")
        traffic.goes_on(50, "fusisctl withdraw on lb1")
        one.client().send("DELETE", "/v1/withdraw")
        poll(lambda: ways(lab) == {"lb1", "lb2"}, LIMIT_S, "both ways again")
        traffic.goes_on(50, "it is back")
        lost = list(traffic.lost)  # by nat what is open ends when the ways change; now they do not
        one.stop()
        traffic.goes_on(50, "fusisd has ended on lb1")
        assert ways(lab) == {"lb1", "lb2"}, "IPVS goes on, and so does its VIP"
        one.start()
        traffic.goes_on(50, "fusisd is started again")
        assert traffic.lost == lost
        birds["lb1"].stop()
        poll(lambda: ways(lab) == {"lb2"}, LIMIT_S, "one way")
        traffic.goes_on(50, "bird has ended on lb1")
        birds["lb1"].start()
        poll(lambda: ways(lab) == {"lb1", "lb2"}, LIMIT_S, "both ways again")
        pulled_s = time.monotonic()
        lab.cable(lab.lb2, "down")
        poll(lambda: ways(lab) == {"lb1"}, LIMIT_S, "one way")
        print(f"the cable is pulled: one way after {time.monotonic() - pulled_s:.2f} s")
        traffic.goes_on(50, "the cable is pulled")
        lab.cable(lab.lb2, "up")
        poll(lambda: ways(lab) == {"lb1", "lb2"}, LIMIT_S, "both ways again")
    for one in balancers:
        poll(lambda one=one: one.status()["ok"], LIMIT_S, "its checks to pass")  # type: ignore[misc]
        assert one.host.run("ip", "-o", "address", "show", "dev", "lo").count(f" {ANYCAST}/32 ") == 1


def test_a_service_that_cannot_serve_is_announced_by_the_other_balancer_alone(
    lab: Lab, balancers: tuple[Balancer, Balancer], birds: dict[str, Bird]
) -> None:
    one, _ = balancers
    poll(lambda: ways(lab) == {"lb1", "lb2"}, LIMIT_S, "both ways")
    one.client().send("PATCH", "/v1/services/web", {"announce": "when-usable"})
    for name in one.weights("web"):
        one.client().send("PATCH", f"/v1/services/web/destinations/{name}", {"weight": 0})
    poll(lambda: ways(lab) == {"lb2"}, LIMIT_S, "one way")
    for name in one.weights("web"):
        one.client().send("PATCH", f"/v1/services/web/destinations/{name}", {"weight": 1})
    poll(lambda: ways(lab) == {"lb1", "lb2"}, LIMIT_S, "both ways")


def test_by_route_and_mh_a_connection_goes_on_by_the_other_balancer(
    lab: Lab, balancers: tuple[Balancer, Balancer], birds: dict[str, Bird]
) -> None:
    """Both choose the same server for a client's address and port, and with sloppy_tcp take a connection that they have not
    seen the beginning of."""
    serving = []
    for server in lab.servers:
        server.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")
        server.run("ip", "address", "add", f"{MOVING}/32", "dev", "lo")
        serving.append(server.popen(sys.executable, "-m", "http.server", "8080"))
    for one in balancers:
        one.host.run("sysctl", "-qw", "net.ipv4.vs.sloppy_tcp=1")
        rows = {host.name: {"address": host.address, "port": 8080, "method": "route"} for host in lab.servers}
        service = {"key": f"tcp/{MOVING}:8080", "scheduler": "mh", "flags": ["sched2"], "destinations": rows}
        one.client().send("PUT", "/v1/services/moving", service)
        all_serve(one, "moving", rows)
    poll(lambda: ways(lab, MOVING) == {"lb1", "lb2"}, LIMIT_S, "both ways")
    with entered("client"):
        clients = [socket.create_connection((MOVING, 8080), 5.0) for _ in range(16)]
    try:
        poll(lambda: min(conns(one, "moving") for one in balancers) > 0, LIMIT_S, "both to be given some")
        balancers[0].client().send("POST", "/v1/withdraw")
        poll(lambda: ways(lab, MOVING) == {"lb2"}, LIMIT_S, "one way")
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1."), "an answer on a connection that was made by lb1"
    finally:
        for client in clients:
            client.close()
        for process in serving:
            process.kill()
            process.wait(30)
        balancers[0].client().send("DELETE", "/v1/withdraw")


def test_a_vip_moves_to_where_it_is_to_be_and_back(lab: Lab, tmp_path: Path) -> None:
    host = lab.servers[0]  # where no other fusisd is

    def where() -> set[str]:
        rows = host.run("ip", "-o", "address", "show", "to", f"{STAYING}/32").splitlines()
        return {row.split()[1] for row in rows}

    with Balancer(host, tmp_path / "first", "--serf", "off") as balancer:
        balancer.client().send("PUT", "/v1/services/staying", {"key": f"tcp/{STAYING}:80", "destinations": {}})
        poll(lambda: where() == {"eth0"}, LIMIT_S, "the VIP")
        balancer.stop()
        balancer.spawn("--vip-iface", "lo")
        poll(lambda: where() == {"lo"}, LIMIT_S, "it to move")
        balancer.stop()
        balancer.start()
        poll(lambda: where() == {"eth0"}, LIMIT_S, "it to move back")
        balancer.client().send("DELETE", "/v1/services/staying?now=1")
        poll(lambda: where() == set(), LIMIT_S, "it to go")
