"""The units of docs/ under a real systemd: started as they are with their sandbox, restarted, killed, stuck, reloaded."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusisd.ctl.client import Client
from tests.kernel.test_agent_methods import state
from tests.lab.backends import backends
from tests.lab.expect import ask, poll
from tests.lab.systemd import Manager, installed, manager
from tests.lab.topology import VIP, Host, Lab
from tests.lab.traffic import Traffic

pytestmark = pytest.mark.guest_only  # it makes users, and files in /etc

DOCS = Path(__file__).parents[2] / "docs"
SOCKET = Path("/run/fusisd/fusisd.sock")
LOG = Path("/run/fusisd.log")
RESTART_LIMIT_S = 60.0
CONFIG = 'iface = "eth0"\n'
AGENT = """
name = "rs3"
balancer = ["{balancer}"]
key_file = "/etc/fusis/agent.key"
[service.web]
port = 80
method = "route"
"""


def account(name: str) -> None:
    subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name], check=True)


@pytest.fixture(scope="module")
def balancer(lab: Lab) -> Iterator[Manager]:
    """systemd on lb1 with fusisd.service started, as docs/operations.md says."""
    account("fusisd")
    Path("/etc/fusis").mkdir(exist_ok=True)
    Path("/etc/fusis/fusisd.toml").write_text(CONFIG)
    units = {name: (DOCS / name).read_text() for name in ("fusisd.service", "fusisd.socket")}
    own = f"ListenStream={lab.lb1.address}:8000"
    units["fusisd.socket"] = units["fusisd.socket"].replace(f"#{own}", own)
    units["fusisd.service.d/lab.conf"] = installed("fusisd --config /etc/fusis/fusisd.toml", LOG)
    with manager(lab.lb1, units) as found, backends(lab.servers):
        found.run("start", "fusisd.service")
        yield found


def client() -> Client:
    return Client(SOCKET)


def table(host: Host) -> str:
    return host.run("ipvsadm", "-Sn")


def weights() -> dict[str, int]:
    rows = client().get("/v1/services/web")["status"]["destinations"]
    return {name: row["weight"] for name, row in rows.items()}


def pid(of: Manager, unit: str = "fusisd.service") -> str:
    return of.show(unit, "MainPID")


def restarted(of: Manager, before: str) -> None:
    """Wait until another process of the unit is ready."""

    def so() -> bool:
        return of.show("fusisd.service", "ActiveState") == "active" and pid(of) not in ("0", before)

    poll(so, RESTART_LIMIT_S, "systemd to start it anew")


def test_it_does_all_that_root_could_as_its_user_in_its_sandbox(balancer: Manager, lab: Lab) -> None:
    assert balancer.show("fusisd.service", "ActiveState") == "active"
    assert balancer.inside("ps", "-o", "user=", "-p", pid(balancer)).strip() == "fusisd"
    assert "Seccomp:\t2" in balancer.inside("cat", f"/proc/{pid(balancer)}/status"), "system calls are filtered"
    by_script = {"kind": "script", "argv": ["/bin/sh", "-c", "exit 0"], "timeout_s": 5}
    rows = {one.name: {"address": one.address, "port": 80, "method": "nat"} for one in lab.servers[:2]}
    rows["rs2"]["check"] = by_script
    body = {"protocol": "tcp", "address": VIP, "port": 80, "check": {"kind": "http"}, "destinations": rows}
    client().send("PUT", "/v1/services/web", body)
    poll(lambda: weights() == {"rs1": 1, "rs2": 1}, 60, "both checks to pass")
    assert {ask(VIP, 80, "client") for _ in range(4)} == {"rs1", "rs2"}
    assert "MASQUERADE" in lab.lb1.run("iptables-legacy", "-t", "nat", "-S")
    assert lab.lb1.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    status = client().get("/status")
    assert (status["ok"], status["serf_connected"]) == (True, True), status["problems"]


def test_a_reload_is_none_for_traffic_and_process(balancer: Manager) -> None:
    before = pid(balancer)
    Path("/etc/fusis/fusisd.toml").write_text(CONFIG + 'log_level = "debug"\n')
    with Traffic() as traffic:
        balancer.run("reload", "fusisd.service")
        poll(lambda: "reloaded" in LOG.read_text(), what="its word")
        poll(lambda: traffic.total > 10, what="traffic")
    assert (pid(balancer), traffic.lost) == (before, [])


def test_no_restart_moves_traffic_whether_asked_for_or_by_kill_9_or_the_watchdog(balancer: Manager, lab: Lab) -> None:
    made, serf = table(lab.lb1), balancer.inside("pgrep", "-x", "serf").strip()
    with Traffic() as traffic:
        before = pid(balancer)
        balancer.run("restart", "fusisd.service")
        restarted(balancer, before)
        for signal in ("KILL", "STOP"):  # one that is stopped says nothing to the watchdog, which alone can end it
            before = pid(balancer)
            balancer.inside("kill", f"-{signal}", before)
            restarted(balancer, before)
    assert traffic.total > 10
    assert traffic.lost == []
    assert table(lab.lb1) == made
    assert balancer.inside("pgrep", "-x", "serf").strip() == serf
    assert balancer.show("fusisd.service", "NRestarts") == "2"


def test_while_systemd_holds_the_sockets_nobody_is_refused_during_a_restart(balancer: Manager, lab: Lab) -> None:
    made = table(lab.lb1)
    balancer.run("stop", "fusisd.service")
    assert table(lab.lb1) == made, "stopping leaves the kernel as it is"
    balancer.run("start", "fusisd.socket")
    assert client().get("/status")["iface"] == "eth0", "who asks starts it, and waits"
    answers: list[object] = []
    done = threading.Event()

    def ask_on() -> None:
        while not done.is_set():
            answers.append(client().get("/healthz"))

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        before = pid(balancer)
        balancer.run("restart", "fusisd.service")
        restarted(balancer, before)
        counted = len(answers)
        poll(lambda: len(answers) > counted + 3 or not asking.is_alive(), what="answers after the restart")
    finally:
        done.set()
        asking.join(30)
    assert len(answers) > counted + 3, "one was refused: the thread ended with CtlError"
    assert weights() == {"rs1": 1, "rs2": 1}
    assert table(lab.lb1) == made


def test_the_agent_s_restart_does_not_drain_and_its_stop_does_and_undoes(
    balancer: Manager, lab: Lab, tmp_path: Path
) -> None:
    server = lab.servers[2]
    bare = state(server)
    account("fusis-agent")
    Path("/etc/fusis/agent.toml").write_text(AGENT.format(balancer=lab.lb1.address))
    shutil.copy("/var/lib/fusisd/serf/key", "/etc/fusis/agent.key")
    shutil.chown("/etc/fusis/agent.key", "fusis-agent")
    units = {"fusis-agent.service": (DOCS / "fusis-agent.service").read_text()}
    units["fusis-agent.service.d/lab.conf"] = installed("fusisd.agent run --config /etc/fusis/agent.toml", tmp_path / "log")
    with manager(server, units) as here:
        here.run("start", "fusis-agent.service")
        poll(lambda: weights() == {"rs1": 1, "rs2": 1, "rs3": 1}, 60, "rs3 to join")
        assert {ask(VIP, 80, "client") for _ in range(6)} == {"rs1", "rs2", "rs3"}
        ready, ops = state(server), client().get("/status")["ops"]
        with Traffic() as traffic:
            before = pid(here, "fusis-agent.service")
            here.run("restart", "fusis-agent.service")
            poll(lambda: "web ready" in here.show("fusis-agent.service", "StatusText"), 60, "it to be ready again")
            assert pid(here, "fusis-agent.service") != before
            poll(lambda: traffic.total > 10, what="traffic")
            assert (state(server), client().get("/status")["ops"]) == (ready, ops)
            here.run("stop", "fusis-agent.service")
            poll(lambda: set(weights()) == {"rs1", "rs2"}, 60, "rs3 to be gone")
        assert traffic.lost == []
        assert state(server) == bare
