"""Path checks on real IPVS: who takes no packets for the VIP gets no client, though its own address answers."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusisd.agent import host as agent
from fusisd.agent import prepare
from fusisd.agent.config import ServiceConfig
from fusisd.agent.record import RecordFile
from pyipvs import ForwardingMethod, Tunnel, TunnelType
from tests.lab.backends import backends
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer
from tests.lab.netns import entered
from tests.lab.topology import VIP, VIP6, Host, Lab

Reply = Callable[[bytes], bytes]
CHECK = {"kind": "tcp", "interval_s": 0.3}
QUIET = ("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A network whose servers may have the VIP."""
    with Lab() as built:
        for host in built.servers:
            host.run(*QUIET)
        yield built


@pytest.fixture
def balancer(lab: Lab, tmp_path: Path) -> Iterator[Balancer]:
    """A fusisd on lb1; afterwards the balancer is clean, and no server has a VIP."""
    with Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off") as running:
        yield running
        running.stop()
        lab.lb1.run(*running.command(), "cleanup")
    for host in lab.servers:
        for device in ("lo", "tunl0"):
            host.run("ip", "address", "flush", "dev", device, "to", f"{VIP}/32", check=False)


def put_vip(host: Host, device: str = "lo") -> None:
    host.run("ip", "address", "add", f"{VIP}/32", "dev", device)


def balance(
    balancer: Balancer, lab: Lab, method: str, vip: str = VIP, protocol: str = "tcp", tunnel: Any = None, **more: Any
) -> None:
    body = {"name": "web", "address": vip, "port": 80, "protocol": protocol, "check": {**CHECK, **more}}
    rows = {h.name: h.address6 if ":" in vip else h.address for h in lab.servers}
    settings = {"port": 80, "method": method} | ({} if tunnel is None else {"tunnel": tunnel})
    destinations = {name: {"address": address, **settings} for name, address in rows.items()}
    balancer.post("/v1/services", {**body, "destinations": destinations})


def states(balancer: Balancer) -> dict[str, tuple[str, str]]:
    """Name to state and reason."""
    rows = balancer.client().get("/v1/services/web")["status"]["destinations"]
    return {name: (row["state"], row["reason"]) for name, row in rows.items()}


def are(balancer: Balancer, **wanted: str) -> dict[str, tuple[str, str]]:
    """Wait until they have these states."""

    def so() -> dict[str, tuple[str, str]]:
        found = states(balancer)
        assert {name: row[0] for name, row in found.items()} == wanted, found
        return found

    return poll(so, what=f"{wanted}")


def marked(host: Host) -> list[str]:
    """The hidden services, as ipvsadm saves them."""
    return sorted(line for line in host.run("ipvsadm", "-Sn").splitlines() if " -f " in line)

def test_by_route_a_server_without_the_vip_gets_no_client_until_it_has_it(lab: Lab, balancer: Balancer) -> None:
    rs1, rs2, rs3 = lab.servers
    put_vip(rs1)
    put_vip(rs3)
    with backends(lab.servers):
        assert ask(rs2.address, 80, "lb1") == "rs2", "its own address answers"
        balance(balancer, lab, "route")
        found = are(balancer, rs1="up", rs2="down", rs3="up")
        assert f"path check through the VIP {VIP}:80 by route" in found["rs2"][1]
        assert f"although {rs2.address}:80 itself answers: is the VIP on its loopback?" in found["rs2"][1]
        assert {ask(VIP, 80, "client") for _ in range(8)} == {"rs1", "rs3"}
        assert "(rs2 " not in balancer.log.read_text(), "no operation was made for it: it never was in the service"
        put_vip(rs2)
        are(balancer, rs1="up", rs2="up", rs3="up")
        assert {ask(VIP, 80, "client") for _ in range(9)} == {"rs1", "rs2", "rs3"}

def test_by_tunnel_a_server_whose_device_is_down_gets_no_client(lab: Lab, balancer: Balancer) -> None:
    rs1, rs2, _ = lab.servers
    for host in lab.servers:
        host.run("modprobe", "ipip", check=False)
        host.run("ip", "link", "set", "tunl0", "up")
        put_vip(host, "tunl0")
    rs2.run("ip", "link", "set", "tunl0", "down")
    put_vip(rs2)
    with backends(lab.servers):
        balance(balancer, lab, "tunnel")
        found = are(balancer, rs1="up", rs2="down", rs3="up")
        assert "by tunnel" in found["rs2"][1]
        assert "tunnel device" in found["rs2"][1]
        assert {ask(VIP, 80, "client") for _ in range(8)} == {"rs1", "rs3"}
        rs2.run("ip", "link", "set", "tunl0", "up")
        are(balancer, rs1="up", rs2="up", rs3="up")
        rs1.run("ip", "link", "set", "tunl0", "down")
        are(balancer, rs1="down", rs2="up", rs3="up")

@pytest.mark.parametrize("tunnel", [Tunnel(TunnelType.GUE, 6080), Tunnel(TunnelType.GRE)], ids=["gue", "gre"])
def test_a_server_that_takes_no_packets_of_the_tunnel_s_kind_gets_no_client(
    lab: Lab, balancer: Balancer, tmp_path: Path, tunnel: Tunnel
) -> None:
    rs1, rs2, rs3 = lab.servers
    with backends(lab.servers), contextlib.ExitStack() as stack:
        for server in (rs1, rs3):
            stack.enter_context(prepared(server, lab.lb1, tmp_path / f"{server.name}.json", tunnel))
        stack.enter_context(prepared(rs2, lab.lb1, tmp_path / "rs2.json", Tunnel()))
        said = {"type": str(tunnel.type), **({"port": tunnel.port} if tunnel.port else {})}
        balance(balancer, lab, "tunnel", tunnel=said)
        found = are(balancer, rs1="up", rs2="down", rs3="up")
        assert "by tunnel" in found["rs2"][1]
        assert {ask(VIP, 80, "client") for _ in range(8)} == {"rs1", "rs3"}


@contextlib.contextmanager
def prepared(server: Host, balancer: Host, record: Path, tunnel: Tunnel) -> Iterator[None]:
    """A server as the agent makes it for this tunnel; afterwards it is as before."""
    service = ServiceConfig("web", 80, ForwardingMethod.TUNNEL, tunnel)
    with entered(server.name):
        there = agent.Host(RecordFile(record, agent.machine()))
        steps = prepare.steps([(service, prepare.Vip(VIP, 80))], agent.place(server.address, balancer.address))
        assert there.bring([steps]).problems == ()
    try:
        yield
    finally:
        with entered(server.name):
            assert there.bring(()).problems == ()


def echoed(asked: bytes) -> bytes:
    return asked


def resolved(asked: bytes) -> bytes:
    """The query, answered with an A record (RFC 1035): QR and RA set, and a pointer to the question's name."""
    record = struct.pack(">HHHIH4B", 0xC00C, 1, 1, 60, 4, 192, 0, 2, 1)
    return asked[:2] + struct.pack(">5H", 0x8180, 1, 1, 0, 0) + asked[12:] + record


@pytest.mark.parametrize(
    ("reply", "check"),
    [(echoed, {"kind": "udp", "send": "70696e67", "expect": "70696e67"}), (resolved, {"kind": "dns", "name": "a.example."})],
    ids=["udp", "dns"],
)
def test_by_udp_the_answer_to_the_check_must_come_through_the_vip(
    lab: Lab, balancer: Balancer, reply: Reply, check: dict[str, Any]
) -> None:
    rs1, rs2, rs3 = lab.servers
    put_vip(rs1)
    put_vip(rs3)
    with contextlib.ExitStack() as stack:
        for server, addresses in ((rs1, (rs1.address, VIP)), (rs2, (rs2.address,)), (rs3, (rs3.address, VIP))):
            for address in addresses:
                stack.enter_context(answering(server, address, reply))
        balance(balancer, lab, "route", protocol="udp", **check)
        found = are(balancer, rs1="up", rs2="down", rs3="up")
        assert f"path check through the VIP {VIP}:80 by route" in found["rs2"][1]
        put_vip(rs2)
        stack.enter_context(answering(rs2, VIP, reply))
        are(balancer, rs1="up", rs2="up", rs3="up")


@contextlib.contextmanager
def answering(host: Host, address: str, reply: Reply) -> Iterator[None]:
    """Answers what comes to this address (an answer has the address that was asked) by UDP, port 80."""
    with entered(host.name):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 80))

    def answer() -> None:
        with contextlib.suppress(OSError):
            while (datagram := sock.recvfrom(2048))[0]:
                sock.sendto(reply(datagram[0]), datagram[1])

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        sock.sendto(b"", (address, 80))  # to itself: the end
        thread.join(5)
        sock.close()


def test_ipv6_needs_no_switch(lab: Lab, balancer: Balancer) -> None:
    rs1, _, rs3 = lab.servers
    for host in (rs1, rs3):
        host.run("ip", "address", "add", f"{VIP6}/128", "dev", "lo", "nodad")
    with backends(lab.servers, family=socket.AF_INET6):
        balance(balancer, lab, "route", VIP6)
        found = are(balancer, rs1="up", rs2="down", rs3="up")
        assert f"through the VIP [{VIP6}]:80" in found["rs2"][1]

def test_the_hidden_services_outlive_us_are_found_again_and_removed_by_cleanup(lab: Lab, balancer: Balancer) -> None:
    for host in lab.servers:
        put_vip(host)
    with backends(lab.servers):
        balance(balancer, lab, "route")
        are(balancer, rs1="up", rs2="up", rs3="up")
        before = lab.lb1.run("ipvsadm", "-Sn")
        assert len(marked(lab.lb1)) == 6, "a service and a destination for each server"
        assert [row["Name"] for row in balancer.client().get("/services")] == ["web"]
        assert balancer.client().get("/v1/foreign")["foreign"] == []
        assert balancer.status()["path_checks"] == {"services": 3, "not_checked": {}}
        balancer.kill()
        balancer.start()
        are(balancer, rs1="up", rs2="up", rs3="up")
        assert lab.lb1.run("ipvsadm", "-Sn") == before
        assert balancer.status()["ops"] == 0
        mark = marked(lab.lb1)[0].split()[2]
        lab.lb1.run("ipvsadm", "-D", "-f", mark)
        poll(lambda: lab.lb1.run("ipvsadm", "-Sn") == before, what="the hidden service to be put back")
        balancer.stop()
        done = lab.lb1.run(*balancer.command(), "cleanup")
        assert "of a path check" in done
        assert lab.lb1.run("ipvsadm", "-Sn") == ""

def switches(host: Host) -> list[str]:
    names = [f"net.ipv4.conf.eth0.{name}" for name in ("accept_local", "rp_filter")]
    return host.run("sysctl", "-n", *names).split()

def test_the_answer_is_let_in_only_where_it_comes_and_cleanup_shuts_the_door(lab: Lab, balancer: Balancer) -> None:
    lab.lb1.run("sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=1")
    for host in lab.servers:
        put_vip(host)
    with backends(lab.servers):
        balance(balancer, lab, "route", path_check=False)
        are(balancer, rs1="up", rs2="up", rs3="up")
        assert switches(lab.lb1) == ["0", "1"], "nobody is asked through the VIP"
        assert marked(lab.lb1) == []
        balancer.delete("/services/web?now=1")
        balance(balancer, lab, "route")
        are(balancer, rs1="up", rs2="up", rs3="up")
        assert switches(lab.lb1) == ["1", "2"]
        assert lab.lb1.run("sysctl", "-n", "net.ipv4.conf.all.accept_local").strip() == "0"
        balancer.delete("/services/web?now=1")
        poll(lambda: marked(lab.lb1) == [], what="the hidden services to go with what needed them")
        balancer.stop()
        lab.lb1.run(*balancer.command(), "cleanup")
        assert switches(lab.lb1) == ["0", "1"]

@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_after_the_store_was_lost_the_status_names_the_commands_that_delete_them(
    lab: Lab, balancer: Balancer, lost: str
) -> None:
    for host in lab.servers:
        put_vip(host)
    with backends(lab.servers):
        balance(balancer, lab, "route")
        are(balancer, rs1="up", rs2="up", rs3="up")
        balancer.kill()
        before = lab.lb1.run("ipvsadm", "-Sn")
        for path in balancer.state_dir.glob("fusisd.db*"):
            path.unlink()
        if lost == "gone":
            balancer.start()
        else:
            (balancer.state_dir / "fusisd.db").write_bytes(b"no database, and long enough to be taken for one" * 99)
            balancer.spawn()
            poll(lambda: "--recover-store" in balancer.log.read_text(), what="the start to be refused")
            balancer.stop()
            assert lab.lb1.run("ipvsadm", "-Sn") == before
            balancer.start("--recover-store")
            assert (balancer.state_dir / "fusisd.db.damaged-1").exists()
        (warning,) = balancer.status()["warnings"]
        assert warning.startswith("3 services have a firewall mark of those for path checks")
        assert lab.lb1.run("ipvsadm", "-Sn") == before, "none of it is ours any more"
        lab.lb1.run("sh", "-c", warning.partition("made them, ")[2])
        poll(lambda: balancer.status()["warnings"] == [], what="the warning to go")
        assert marked(lab.lb1) == []
    lab.lb1.run("ipvsadm", "-D", "-t", f"{VIP}:80")  # and what else was ours, for the next test
    lab.lb1.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
    lab.lb1.run("sysctl", "-qw", "net.ipv4.conf.eth0.accept_local=0")


def test_where_no_answer_can_come_in_nobody_is_asked_and_that_is_said(lab: Lab, tmp_path: Path) -> None:
    with Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off", "--no-sysctl") as balancer, backends(lab.servers):
        lab.lb1.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        balance(balancer, lab, "route")
        are(balancer, rs1="up", rs2="up", rs3="up")
        (warning,) = balancer.status()["warnings"]
        assert "path checks of 3 servers are not made" in warning
        assert "net.ipv4.conf.eth0.accept_local is 0" in warning
