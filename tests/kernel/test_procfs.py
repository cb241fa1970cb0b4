"""The files of the real kernel: connections that a client made, counters, sysctls, and the table's probe."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyipvs import IPVS, IPVSError, ModuleMissing, PermissionDenied, Protocol, network_namespace
from pyipvs.procfs import Connection, TableProbe, connections, cpu_statistics, set_sysctl, sysctl, sysctls
from tests.lab.backends import backends
from tests.lab.expect import ask, poll
from tests.lab.netns import entered
from tests.lab.topology import VIP, VIP6, Host, Lab
from tests.lab.traffic import Traffic

WEB, WEB6 = f"tcp/{VIP}:80", f"tcp/[{VIP6}]:80"


@pytest.mark.guest_only  # it unloads kernel modules, so it comes before the balancer that would use them
def test_a_probe_says_so_when_the_module_was_unloaded(netns: Host) -> None:
    with entered(netns.name):
        probe = TableProbe()
    with probe:
        assert probe.digest()
        loaded = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
        subprocess.run(["modprobe", "-r", *(name for name in loaded if name.startswith("ip_vs"))], check=True, timeout=60)
        try:
            with pytest.raises(ModuleMissing):
                probe.digest()
            for attempt in (sysctls, connections, cpu_statistics, TableProbe):
                with pytest.raises(ModuleMissing):
                    attempt()
        finally:
            subprocess.run(["modprobe", "ip_vs"], check=True, timeout=60)


@pytest.fixture(scope="module")
def nat() -> Iterator[Lab]:
    """A lab whose lb1 balances the VIPs over rs1 by NAT."""
    with Lab(servers=1, routes="nat") as lab, backends(lab.servers, family=socket.AF_INET6), IPVS(netns="lb1") as ipvs:
        lab.lb1.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        lab.lb1.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
        lab.lb1.run("ip", "address", "add", f"{VIP6}/128", "dev", "eth0", "nodad")
        (server,) = lab.servers
        for key, address in ((WEB, f"{server.address}:80"), (WEB6, f"[{server.address6}]:80")):
            ipvs.add_service(key, scheduler="rr")
            ipvs.add_destination(key, address)
        for vip in (VIP, VIP6):
            poll(lambda vip=vip: ask(vip, 80, "client"), what=f"an answer of {vip}")  # type: ignore[misc]
        yield lab


@contextlib.contextmanager
def connected(vip: str) -> Iterator[int]:
    """An idle connection of the client to the VIP; its port. Tried again: what is tested is what /proc tells of it."""

    def made() -> socket.socket:
        with entered("client"):
            sock = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET)
        sock.settimeout(5)
        try:
            sock.connect((vip, 80))
        except OSError:
            sock.close()
            raise
        return sock

    with poll(made, 60, "a connection") as sock:
        yield sock.getsockname()[1]


def seen(port: int, host: str = "lb1", synced: bool = False) -> Connection | None:
    """What a balancer knows of the client's connection from that port."""
    with entered(host):
        rows = connections(synced=synced)
    return next((row for row in rows if row.client_port == port), None)


@pytest.mark.parametrize(("vip", "client", "server"), [
    (VIP, "10.9.0.2", "10.1.0.11"), (VIP6, "fd00:9::2", "fd00:1::11"),
])  # fmt: skip
def test_a_client_s_connection(nat: Lab, vip: str, client: str, server: str) -> None:
    with connected(vip) as port:
        row = poll(lambda: (one := seen(port)) and one.state == "ESTABLISHED" and one, what="the connection")
        assert isinstance(row, Connection)
        assert row == Connection(Protocol.TCP, client, port, vip, 80, server, 80, "ESTABLISHED", row.expires_s)
        assert 800 < row.expires_s <= 900
        synced = seen(port, synced=True)
        assert synced is not None
        assert (synced.origin, synced.destination_address) == ("local", server)



def test_files_of_another_namespace_are_read_in_a_block(ipvs: IPVS, netns: Host) -> None:
    assert ipvs.services() == []  # so that the module is loaded
    with network_namespace(netns.name):
        set_sysctl("conn_reuse_mode", 0)
    with network_namespace(Path("/run/netns", netns.name)):
        assert sysctl("conn_reuse_mode") == 0
    assert sysctl("conn_reuse_mode") == 1


def test_many_connections_are_all_there(nat: Lab) -> None:
    with contextlib.ExitStack() as stack:  # several pages of the kernel's text
        ports = {stack.enter_context(connected(VIP6)) for _ in range(100)}
        with entered("lb1"):
            rows = [row for row in connections() if row.client_port in ports]
    assert len(rows) == 100
    assert {row.client_port for row in rows} == ports


def test_templates_of_persistence(nat: Lab) -> None:
    invite = "INVITE sip:x@y SIP/2.0\r\nVia: SIP/2.0/UDP 10.9.0.2:5060\r\nCall-ID: 8438@998s\r\nContent-Length: 0\r\n\r\n"
    with IPVS(netns="lb1") as ipvs:
        ipvs.add_service(f"udp/{VIP}:5060", scheduler="rr", persistence_s=60, persistence_engine="sip")
        ipvs.add_destination(f"udp/{VIP}:5060", "10.1.0.11:5060")
    with entered("client"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.sendto(invite.encode(), (VIP, 5060))
        row = poll(lambda: seen(0), what="the template")
    assert row is not None
    assert (row.protocol, row.persistence_engine, row.engine_data) == (Protocol.UDP, "sip", "8438@998s")
    assert row.expires_s <= 60


def test_what_a_sync_daemon_sent_is_told_apart(nat: Lab) -> None:
    with entered("lb1"):
        set_sysctl("sync_threshold", "0 1")
    for host, state in ((nat.lb2, "backup"), (nat.lb1, "master")):
        host.run("ipvsadm", "--start-daemon", state, "--mcast-interface", "eth0")
    try:
        with connected(VIP) as port:
            row = poll(lambda: seen(port, "lb2", synced=True), what="the connection on the other balancer")
        assert row is not None
        assert (row.origin, row.virtual_address, row.destination_address) == ("sync", VIP, "10.1.0.11")
    finally:
        nat.lb1.run("ipvsadm", "--stop-daemon", "master")
        nat.lb2.run("ipvsadm", "--stop-daemon", "backup")


def test_a_thread_reads_the_namespace_that_it_entered(nat: Lab) -> None:
    """/proc/net would be the first thread's."""
    with connected(VIP) as port, ThreadPoolExecutor(1) as pool:
        assert pool.submit(seen, port).result() is not None
        assert not any(row.client_port == port for row in connections())


def test_the_cpus_add_up_to_the_total(nat: Lab) -> None:
    def added_up() -> bool:
        with entered("lb1"):
            *cpus, total = cpu_statistics()
        assert total.cpu is None
        assert [one.cpu for one in cpus] == list(range(len(cpus)))
        names = ("connections", "packets_in", "packets_out", "bytes_in", "bytes_out")
        return all(0 < getattr(total, name) == sum(getattr(one, name) for one in cpus) for name in names)

    poll(lambda: ask(VIP, 80, "client") == "rs1", 60, "an answer")
    poll(added_up, what="the estimator to have added up")


def test_the_table_changes_by_weight_and_not_by_traffic(nat: Lab) -> None:
    with entered("lb1"):
        probe = TableProbe()
        table = Path("/proc/thread-self/net/ip_vs")
        text = table.read_text()
    with probe, IPVS(netns="lb1") as ipvs:
        first = probe.digest()
        with Traffic() as traffic, connected(VIP6):
            poll(lambda: traffic.total > 10 or traffic.lost, what="traffic")
            with entered("lb1"):
                assert table.read_text() != text
            assert probe.digest() == first
        ipvs.update_destination(WEB, "10.1.0.11:80", weight=3)
        second = probe.digest()
        assert second != first
        ipvs.update_destination(WEB, "10.1.0.11:80", weight=1)
        assert probe.digest() == first


def test_a_probe_reads_a_table_of_many_pages(ipvs: IPVS, netns: Host) -> None:
    with entered(netns.name):
        probe = TableProbe()
    keys = [f"tcp/10.0.{number // 250}.{number % 250 + 1}:80" for number in range(1000)]
    with probe:
        for key in keys:
            ipvs.add_service(key, scheduler="rr")
        digests = [probe.digest()]
        for key in (keys[0], keys[500], keys[-1]):
            ipvs.update_service(key, scheduler="wrr")
            digests.append(probe.digest())
        assert len(set(digests)) == 4
        assert probe.digest() == digests[-1]


def test_sysctls_are_read_and_written(netns: Host) -> None:
    outside = sysctls()
    with entered(netns.name):
        before = sysctls()
        assert before["conn_reuse_mode"] == 1
        assert before["sync_threshold"] == "3 50"
        set_sysctl("conn_reuse_mode", 0)
        set_sysctl("sync_threshold", "5 100")
        set_sysctl("drop_entry", 2)  # which the kernel itself sets back to 1 as long as memory is left
        assert sysctl("conn_reuse_mode") == 0
        assert sysctl("drop_entry") in (1, 2)
        assert sysctls() == before | {"conn_reuse_mode": 0, "sync_threshold": "5 100", "drop_entry": sysctl("drop_entry")}
    assert sysctls() == outside


@pytest.mark.parametrize(("name", "value"), [
    ("drop_entry", 9), ("sync_ports", 3), ("cache_bypass", "x"), ("sync_threshold", 4),
])  # fmt: skip
def test_a_value_the_kernel_does_not_take(netns: Host, name: str, value: int | str) -> None:
    with entered(netns.name), pytest.raises(IPVSError, match=name) as caught:
        set_sysctl(name, value)
    assert caught.value.errno == errno.EINVAL


def test_anybody_may_read_and_only_root_may_write() -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setuid(65534)
            sysctls(), list(connections()), cpu_statistics(), TableProbe().digest()
            set_sysctl("conn_reuse_mode", 0)
        except PermissionDenied as error:
            code = 0 if error.what.startswith("conn_reuse_mode") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
