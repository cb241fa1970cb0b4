"""fusisd on real IPVS as the user and with the capabilities of docs/fusisd.service: all that root can do."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.backends import backends
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer
from tests.lab.topology import VIP, VIP6, Host, Lab

UNIT = (Path(__file__).parents[2] / "docs" / "fusisd.service").read_text()
USER = 990


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return str(value)


def as_the_unit(words: list[str]) -> list[str]:
    """The command as systemd would start it: setpriv(1) does what User= and the capability settings say."""
    kept = ",".join("+" + name.lower().removeprefix("cap_") for name in setting("AmbientCapabilities").split())
    bound = ",".join("+" + name.lower().removeprefix("cap_") for name in setting("CapabilityBoundingSet").split())
    drop = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", f"--bounding-set=-all,{bound}"]
    return ["setpriv", *drop, f"--inh-caps=-all,{kept}", f"--ambient-caps=-all,{kept}", "--", *words]


class Unprivileged(Balancer):
    """A fusisd that is not root."""

    def command(self) -> list[str]:
        return as_the_unit(super().command())


@pytest.fixture(scope="module")
def balancer(lab: Lab) -> Iterator[Balancer]:
    """With the directories that systemd would make for it, and what ExecStartPre does as root: modules, a lock."""
    home = Path(tempfile.mkdtemp(prefix="unit"))
    home.chmod(0o755)
    for name in ("state", "run"):
        (home / name).mkdir(mode=0o700)
        os.chown(home / name, USER, USER)
    for line in re.findall(r"^ExecStartPre=-\+(.*)$", UNIT, re.MULTILINE):
        lab.lb1.run("sh", "-c", line.replace("chgrp fusisd", f"chgrp {USER}"), check=False)
    try:
        with Unprivileged(lab.lb1, home) as balancer:
            yield balancer
    finally:
        shutil.rmtree(home)


def test_it_holds_these_capabilities_and_no_other(balancer: Balancer) -> None:
    assert balancer._process is not None
    status = Path(f"/proc/{balancer._process.pid}/status").read_text()
    assert re.search(rf"^Uid:\s+{USER}\s+{USER}", status, re.MULTILINE)
    assert set(re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\s+(\w+)", status, re.MULTILINE)) == {f"{1 << 12 | 1 << 13:016x}"}


@pytest.fixture(scope="module")
def served(lab: Lab, balancer: Balancer) -> Iterator[list[Host]]:
    """A service with a server by NAT, which is masqueraded, on IPv4, and one on IPv6."""
    servers = lab.servers[:1]
    with backends(servers, family=socket.AF_INET6):  # which answers IPv4, too
        balancer.add_service("web", VIP)
        balancer.add_service("web6", VIP6)
        for service, address in (("web", servers[0].address), ("web6", servers[0].address6)):
            balancer.post(f"/services/{service}/destinations",
                          {"Name": "rs1", "Host": address, "Port": 80, "Mode": "nat"})  # fmt: skip
        yield servers


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_a_client_is_served_through_it(lab: Lab, balancer: Balancer, served: list[Host], vip: str) -> None:
    poll(lambda: ask(vip, 80, lab.client.name) == served[0].name, 60, "an answer of rs1")


def test_it_knows_of_no_problem_and_serf_runs(balancer: Balancer, served: list[Host]) -> None:
    poll(lambda: balancer.status()["problems"] == [], 60, "nothing to be wrong")
    assert balancer.status()["serf"]["mode"] == "managed"
    (pid,) = (balancer.state_dir / "serf" / "agent.pid").read_text().split()[:1]
    assert f"Uid:\t{USER}" in Path(f"/proc/{pid}/status").read_text()


def test_a_hand_on_its_rules_is_undone_and_in_the_end_all_of_it_is(lab: Lab, balancer: Balancer, served: list[Host]) -> None:
    tool = next(tool for tool in ("iptables-legacy", "iptables") if "FUSIS-MASQ" in rules(lab.lb1, tool))
    lab.lb1.run(tool, "-t", "nat", "-D", "POSTROUTING", "-j", "FUSIS-MASQ")
    poll(lambda: "-A POSTROUTING -j FUSIS-MASQ" in rules(lab.lb1, tool), 60, "the jump to be put back")
    balancer.stop()
    undone = lab.lb1.run(*as_the_unit([sys.executable, "-m", "fusisd", "cleanup", "--state-dir", str(balancer.state_dir)]))
    assert f"VIP {VIP} removed from eth0" in undone
    assert "masquerading removed" in undone
    assert "FUSIS-MASQ" not in rules(lab.lb1, tool)
    addresses = json.loads(lab.lb1.run("ip", "-json", "address", "show", "dev", "eth0"))
    assert VIP not in {row["local"] for row in addresses[0]["addr_info"]}


def rules(host: Host, tool: str) -> str:
    return host.run(tool, "-t", "nat", "-S", check=False)
