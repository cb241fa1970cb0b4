"""fusisd on real IPVS, from the outside: the seed's walk-through, restarts under traffic, what it must never touch."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.backends import Backend, backends
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer
from tests.lab.topology import VIP, VIP6, Lab
from tests.lab.traffic import Traffic


@pytest.fixture
def balancer(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Balancer]:
    """A fusisd on lb1 without Serf, with the options that a test asks for, on a clean machine afterwards."""
    with Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off", *getattr(request, "param", [])) as running:
        yield running
    lab.lb1.run("ipvsadm", "-C")
    lab.lb1.run("ip", "address", "flush", "dev", "eth0", "to", "10.1.0.96/27")


def add_servers(balancer: Balancer, lab: Lab, mode: str = "nat") -> None:
    balancer.add_service()
    for host in lab.servers:
        balancer.post("/services/web/destinations", {"Name": host.name, "Host": host.address, "Port": 80, "Mode": mode})


def test_the_seed_s_walk_through(lab: Lab, balancer: Balancer) -> None:
    assert "Listening and serving HTTP on :8000" in balancer.log.read_text()
    assert lab.lb1.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    raw = lab.client.run("curl", "-si", f"{lab.lb1.address}:8000/services")
    assert raw.startswith("HTTP/1.1 200 OK")
    assert "Content-Type: application/json; charset=utf-8" in raw
    assert "Content-Length: 3" in raw
    assert raw.endswith("\n\n[]\n")
    lab.lb1.run("ipvsadm", "-A", "-t", "10.0.0.1:80", "-s", "rr")
    raw = lab.client.run("curl", "-si", f"{lab.lb1.address}:8000/services")
    assert raw.endswith(
        '[{"Name":"","Host":"10.0.0.1","Port":80,"Protocol":"tcp","Scheduler":"rr","Destinations":[]}]\n'
    )
    assert "Content-Length: 94" in raw


def test_traffic_flows_by_nat_from_a_bare_balancer(lab: Lab, balancer: Balancer) -> None:
    with backends(lab.servers):
        add_servers(balancer, lab)
        assert f"{VIP}/32" in lab.lb1.run("ip", "-brief", "address", "show", "dev", "eth0")
        seen = {ask(VIP, 80, "client") for _ in range(6)}
        assert seen == {host.name for host in lab.servers}
    balancer.delete("/services/web")
    assert balancer.client().get("/services") == [], "it drains, and is absent here at once"
    poll(lambda: lab.lb1.run("ipvsadm", "-Sn") == "", what="the drain to end")
    assert VIP not in lab.lb1.run("ip", "-brief", "address"), "the VIP goes before the service"


def test_ipv6_is_served_like_ipv4(lab: Lab, balancer: Balancer) -> None:
    with backends(lab.servers, family=socket.AF_INET6):
        balancer.add_service("six", VIP6)
        for host in lab.servers:
            row = {"Name": host.name, "Host": host.address6, "Port": 80, "Mode": "nat"}
            balancer.post("/services/six/destinations", row)
        shown = lab.lb1.run("ip", "address", "show", "dev", "eth0", "to", VIP6)
        assert "deprecated" in shown, "it must not become the source of the balancer's own packets"
        poll(lambda: ask(VIP6, 80, "client"), what="an answer over IPv6")
        assert {ask(VIP6, 80, "client") for _ in range(6)} == {host.name for host in lab.servers}
        assert balancer.status()["problems"] == []
    balancer.delete("/services/six?now=1")
    assert VIP6 not in lab.lb1.run("ip", "-brief", "address")


def test_kill_9_and_restart_under_traffic_lose_not_one_request(lab: Lab, balancer: Balancer) -> None:
    with backends(lab.servers):
        add_servers(balancer, lab)
        ask(VIP, 80, "client")
        table = lab.lb1.run("ipvsadm", "-Sn")
        with Traffic() as traffic:
            for _ in range(3):
                before = traffic.total
                poll(lambda before=before: traffic.total > before + 30, what="traffic before the kill")
                balancer.kill()
                poll(lambda before=before: traffic.total > before + 60, what="traffic without fusisd")
                balancer.start()
                poll(lambda: balancer.status()["ok"], what="fusisd to be well again")
        assert traffic.lost == []
        assert lab.lb1.run("ipvsadm", "-Sn") == table
        assert balancer.status()["ops"] == 0, "a restart changes nothing in the kernel"


def test_wishes_survive_a_reboot_and_are_made_true_again(lab: Lab, balancer: Balancer) -> None:
    add_servers(balancer, lab)
    table = lab.lb1.run("ipvsadm", "-Sn")
    balancer.kill()
    lab.lb1.run("ipvsadm", "-C")
    lab.lb1.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
    balancer.start()
    poll(lambda: sorted(lab.lb1.run("ipvsadm", "-Sn").splitlines()) == sorted(table.splitlines()), what="the table")
    poll(lambda: VIP in lab.lb1.run("ip", "-brief", "address", "show", "dev", "eth0"), what="the VIP")


def test_somebody_s_hand_on_ours_is_repaired_and_others_are_left_alone(lab: Lab, balancer: Balancer) -> None:
    lab.lb1.run("ipvsadm", "-A", "-t", "10.0.0.9:80", "-s", "lc")
    add_servers(balancer, lab)
    table = lab.lb1.run("ipvsadm", "-Sn")
    lab.lb1.run("ipvsadm", "-d", "-t", f"{VIP}:80", "-r", f"{lab.servers[0].address}:80")
    lab.lb1.run("ipvsadm", "-e", "-t", f"{VIP}:80", "-r", f"{lab.servers[1].address}:80", "-m", "-w", "9")
    poll(lambda: sorted(lab.lb1.run("ipvsadm", "-Sn").splitlines()) == sorted(table.splitlines()), what="the repair")
    assert "-A -t 10.0.0.9:80 -s lc" in table
    poll(lambda: balancer.status()["drift"] >= 1, what="the drift to be counted")
    balancer.delete("/services/web?now=1")
    assert lab.lb1.run("ipvsadm", "-Sn") == "-A -t 10.0.0.9:80 -s lc\n"


def test_a_service_that_exists_by_other_hands_is_refused(lab: Lab, balancer: Balancer) -> None:
    lab.lb1.run("ipvsadm", "-A", "-t", f"{VIP}:80", "-s", "sh")
    with pytest.raises(AssertionError, match="not ours"):
        balancer.add_service()
    assert lab.lb1.run("ipvsadm", "-Sn") == f"-A -t {VIP}:80 -s sh\n"


def test_an_address_that_is_on_the_host_already_is_never_taken_away(lab: Lab, balancer: Balancer) -> None:
    lab.lb1.run("ip", "address", "add", "10.1.0.101/32", "dev", "eth0")
    balancer.add_service("external", "10.1.0.101")
    assert balancer.status()["external_vips"] == ["10.1.0.101"]
    balancer.delete("/services/external?now=1")
    assert "10.1.0.101/32" in lab.lb1.run("ip", "-brief", "address", "show", "dev", "eth0")


@pytest.mark.parametrize("balancer", [["--listen", "0.0.0.0:8000"]], indirect=True)
def test_the_api_is_not_to_be_had_on_a_vip_whoever_manages_it(lab: Lab, balancer: Balancer) -> None:
    code = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"]

    def says(address: str) -> str:
        return lab.client.run("curl", *code, f"http://{address}:8000/healthz", check=False)

    lab.lb1.run("ip", "address", "add", "10.1.0.101/32", "dev", "eth0")
    assert [says(address) for address in (lab.lb1.address, "10.1.0.101")] == ["200", "200"]
    balancer.add_service("external", "10.1.0.101")
    balancer.add_service()
    poll(lambda: [says(address) for address in (lab.lb1.address, "10.1.0.101", VIP)] == ["200", "000", "000"])


def test_the_announcement_moves_the_vip_from_another_host(lab: Lab, balancer: Balancer) -> None:
    lab.lb2.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
    with contextlib.suppress(OSError):
        ask(VIP, 80, "client", 1.0)  # refused; but the router has asked for the VIP's owner
    poll(lambda: lab.mac(lab.lb2) in lab.router.run("ip", "neigh", "show", VIP), what="the router to know the old owner")
    lab.lb2.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
    balancer.add_service()
    poll(lambda: lab.mac(lab.lb1) in lab.router.run("ip", "neigh", "show", VIP), what="the router to learn the new owner")


def test_a_write_from_another_host_needs_more_than_nothing(lab: Lab, balancer: Balancer) -> None:
    url = f"http://{lab.lb1.address}:8000/services"
    body = json.dumps({"Name": "x", "Host": VIP, "Port": 80, "Protocol": "tcp", "Scheduler": "rr"})
    code = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"]
    code += ["-H", "Content-Type: application/json", "-d", body]
    assert lab.client.run("curl", *code, url) == "403"
    local = "http://127.0.0.1:8000/services"
    assert lab.lb1.run("curl", *code, local) == "401"
    token = (balancer.state_dir / "token").read_text().strip()
    assert lab.lb1.run("curl", *code, "-H", f"Authorization: Bearer {token}", local) == "200"
    assert token not in balancer.log.read_text()


START_FAILURES = [
    (["--iface", "nosuch0"], 1, "nosuch0"),
    ([], 2, "--iface"),
    (["--iface", "eth0", "--listen", "127.0.0.1:8000"], 1, "8000"),
    (["--iface", "eth0", "--state-dir", "{running}"], 1, "another fusisd"),
    (["--iface", "eth0", "--state-dir", "/proc/nosuch"], 1, "--state-dir"),
]


@pytest.mark.parametrize(("options", "status", "said"), START_FAILURES, ids=[row[2] for row in START_FAILURES])
def test_where_it_cannot_start_it_says_why_in_one_line(
    lab: Lab, balancer: Balancer, tmp_path: Path, options: list[str], status: int, said: str
) -> None:
    words = [word.format(running=balancer.state_dir) for word in options]
    home = ["--socket", str(tmp_path / "second.sock")]
    home += [] if "--state-dir" in words else ["--state-dir", str(tmp_path / "second")]
    command = [sys.executable, "-m", "fusisd", "--serf", "off", *home, *words]
    script = f"cd {Path.cwd()} && {' '.join(command)} 2>&1; echo status=$?"
    output = lab.lb1.run("sh", "-c", script)
    lines = [line for line in output.splitlines() if line.startswith("fusisd:")]
    assert f"status={status}" in output, output
    assert "Traceback" not in output
    assert len(lines) == 1
    assert said in lines[0]


def test_without_root_it_says_so(lab: Lab, tmp_path: Path) -> None:
    """Root is given up after the imports: the checkout may lie where only root can read."""
    words = ["--iface", "eth0", "--state-dir", f"{tmp_path}/s", "--socket", f"{tmp_path}/f"]
    script = f"import os, sys, fusisd.daemon as d, fusisd.__main__ as m; os.setuid(65534); sys.exit(m.main({words!r}))"
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    command = lab.lb1.argv(sys.executable, "-c", script)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "root" in line


def test_a_dead_backend_of_an_operator_s_destination_is_the_operator_s_matter(lab: Lab, balancer: Balancer) -> None:
    backend = Backend(lab.servers[0])
    backend.start()
    add_servers(balancer, lab)
    backend.kill()
    assert set(balancer.weights("web").values()) == {1}


def test_metrics_count_what_went_through_by_name(lab: Lab, balancer: Balancer) -> None:
    def scraped() -> dict[str, float]:
        lines = lab.client.run("curl", "-sf", f"{lab.lb1.address}:8000/metrics").splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    rows = [f'fusis_destination_connections_total{{service="web",destination="{one.name}"}}' for one in lab.servers]
    lab.lb1.run("ipvsadm", "-A", "-u", "10.9.9.9:53", "-s", "rr")
    with backends(lab.servers):
        add_servers(balancer, lab)
        before = poll(lambda: (now := scraped()).keys() >= set(rows) and now)  # an earlier life's: ip_vs_trash_get_dest()
        for _ in range(6):
            ask(VIP, 80, "client")
        poll(lambda: scraped().get('fusis_service_connections_total{service="web"}') == 6)
    found = scraped()
    for row in rows:
        assert found[row] - before[row] == 2
    for way in ("in", "out"):
        assert found[f'fusis_service_bytes_total{{service="web",direction="{way}"}}'] > 0
        assert found[f'fusis_destination_packets_total{{service="web",destination="rs1",direction="{way}"}}'] > 0
    assert found['fusis_service_connections_total{service="udp/10.9.9.9:53"}'] == 0
    assert found['fusis_operations_total{operation="add destination",result="done"}'] == 3
    assert found["fusis_reaction_seconds_count"] > 0
    told = balancer.client().get("/v1/services/web/statistics")
    assert (told["statistics"]["connections"], told["destinations"]["rs1"]["connections"]) == (6, found[rows[0]])
