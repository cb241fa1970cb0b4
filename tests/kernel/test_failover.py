"""Two balancers with keepalived, as docs/operations.md says: the VIP moves, fusisd serves where it is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.backends import backends
from tests.lab.expect import poll
from tests.lab.fusis import Balancer
from tests.lab.topology import VIP, Host, Lab
from tests.lab.traffic import Traffic

CONFIG = (Path(__file__).parents[2] / "docs/examples/keepalived.conf").read_text()
LIMIT_S = 60.0


class Keepalived:
    """keepalived on a host, with the configuration that is shipped."""

    def __init__(self, host: Host, home: Path, priority: int) -> None:
        self.host, self._home = host, home / f"keepalived-{host.name}"
        self._home.mkdir()
        (self._home / "conf").write_text(CONFIG.replace("priority 100", f"priority {priority}"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", str(self._home / "conf")]
        pids = ["--pid", str(self._home / "pid"), "--vrrp_pid", str(self._home / "vrrp")]
        self._process = self.host.popen(*words, *pids, log=self._home / "log")

    def stop(self) -> None:
        """SIGTERM: it gives the VIP away."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    @property
    def stands_by(self) -> bool:
        """Its script passes, and it heard the other."""
        said = (self._home / "log").read_text()
        passes = said.rfind("VRRP_Script(fusisd) succeeded") > said.rfind("VRRP_Script(fusisd) failed")
        return passes and said.rfind("Entering BACKUP STATE") > said.rfind("Entering FAULT STATE")

    @property
    def has_vip(self) -> bool:
        return f" {VIP}/32 " in self.host.run("ip", "-o", "address", "show", "dev", "eth0")


@pytest.fixture(scope="module")
def balancers(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Balancer, Balancer]]:
    """fusisd on both, with one service whose VIP is another's affair."""
    home = tmp_path_factory.mktemp("failover")
    rows = {host.name: {"address": host.address, "port": 80, "method": "nat"} for host in lab.servers}
    check = {"kind": "tcp"}
    body = {"protocol": "tcp", "address": VIP, "port": 80, "vip": "external", "check": check, "destinations": rows}
    pair = [Balancer(host, home / host.name, "--serf", "off") for host in (lab.lb1, lab.lb2)]
    with pair[0], pair[1], backends(lab.servers):
        for one in pair:
            one.client().send("PUT", "/v1/services/web", body)
            poll(lambda one=one: one.weights("web") == dict.fromkeys(rows, 1), LIMIT_S, "the checks")  # type: ignore[misc]
        yield pair[0], pair[1]


@pytest.fixture(scope="module")
def owners(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Keepalived, Keepalived]]:
    home = tmp_path_factory.mktemp("keepalived")
    first, second = Keepalived(lab.lb1, home, 100), Keepalived(lab.lb2, home, 90)
    try:
        yield first, second
    finally:
        first.stop()
        second.stop()


def moved(to: Keepalived, traffic: Traffic, what: str) -> None:
    """Wait until it has the VIP and clients are served again."""
    poll(lambda: to.has_vip, LIMIT_S, f"the VIP to move: {what}")
    traffic.goes_on(10, what)


def test_clients_are_served_wherever_the_vip_is(
    lab: Lab, balancers: tuple[Balancer, Balancer], owners: tuple[Keepalived, Keepalived]
) -> None:
    (here, there), (first, second) = balancers, owners
    first.start()
    poll(lambda: first.has_vip, LIMIT_S, "the first to become the master")
    second.start()  # with nopreempt it is whoever was there first
    poll(lambda: second.stands_by, LIMIT_S, "the second to stand by")
    with Traffic(timeout_s=1.0) as traffic:
        moved(first, traffic, "the beginning")
        first.stop()
        moved(second, traffic, "SIGTERM of keepalived")
        assert not first.has_vip
        first.start()
        there.stop()  # fusisd alone: IPVS goes on, and keepalived's script notices that nobody takes care of it
        moved(first, traffic, "fusisd has ended")
        there.start()
        poll(lambda: second.stands_by, LIMIT_S, "the second to stand by again")
        assert traffic.lost == []
        here.client().send("POST", "/v1/withdraw")  # keepalived's script asks /readyz
        moved(second, traffic, "fusisctl withdraw")
        here.client().send("DELETE", "/v1/withdraw")
        poll(lambda: first.stands_by, LIMIT_S, "the first to stand by again")
        second.stop()
        moved(first, traffic, "SIGTERM of the other")
        second.start()
        poll(lambda: second.stands_by, LIMIT_S, "the second to stand by again")
        lab.cable(lab.lb1, "down")
        moved(second, traffic, "the cable is pulled")
        lab.cable(lab.lb1, "up")
    for one in (here, there):
        poll(lambda one=one: one.status()["ok"], LIMIT_S, "its checks to pass")  # type: ignore[misc]
        assert one.status()["vips"] == []
        assert f'vip text="{VIP}' not in one.log.read_text(), "fusisd neither put it there nor took it away"
