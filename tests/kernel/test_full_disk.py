"""fusisd on a state directory that cannot be written: changes are refused and say why, everything else goes on, and when it
can be written again so can they, without a restart. Nothing that was acknowledged is lost.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.test_store import fill
from tests.lab.backends import Backend, backends
from tests.lab.campaign import Connection
from tests.lab.expect import ask, poll
from tests.lab.fusis import Balancer
from tests.lab.topology import VIP, Lab

SWITCH = "net.ipv4.vs.expire_nodest_conn"
RIGHT = "net.ipv4.vs.expire_quiescent_template"  # as it should be before fusisd starts, so that nothing need be noted of it
ROOM = 400  # more changes than a disk of 1 MiB has room for


class Operator:
    """Makes services, and knows which of them were acknowledged."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._asked = 0
        self.acknowledged: set[str] = set()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and answer."""
        connection = Connection(self._balancer.socket)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def seed(self) -> tuple[int, Any]:
        """One more service, by the routes of 2016."""
        body = {"Name": self._name(), "Host": "10.1.0.101", "Port": self._asked, "Protocol": "tcp", "Scheduler": "rr"}
        return self._noted(self.ask("POST", "/services", body))

    def native(self) -> tuple[int, Any]:
        """One more service, by /v1; a large one."""
        rows = {f"d{number}": {"address": f"10.1.0.{number}", "port": 80, "method": "nat"} for number in range(50, 90)}
        body = {"name": self._name(), "protocol": "tcp", "address": "10.1.0.101", "port": self._asked, "destinations": rows}
        return self._noted(self.ask("POST", "/v1/services", body))

    def services(self) -> set[str]:
        """Those that fusisd shows."""
        return {row["Name"] for row in self.ask("GET", "/services")[1]} - {"web"}

    def _name(self) -> str:
        self._asked += 1
        return f"x{self._asked}"

    def _noted(self, answered: tuple[int, Any]) -> tuple[int, Any]:
        if answered[0] < 300:
            self.acknowledged.add(f"x{self._asked}")
        return answered


@pytest.fixture
def balancer(lab: Lab, tmp_path: Path) -> Iterator[Balancer]:
    """fusisd whose state directory is a file system of 1 MiB, with the service web and its checks."""
    made = Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off")
    made.state_dir.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", made.state_dir)
    try:
        yield from serving(made, lab)
    finally:
        subprocess.run(["umount", "--lazy", str(made.state_dir)], check=True, timeout=30)


@pytest.fixture
def ext4(lab: Lab, tmp_path: Path) -> Iterator[Balancer]:
    """The same on ext4, which becomes read-only when it fails, as a distribution's is."""
    made = Balancer(lab.lb1, tmp_path / "lb1", "--serf", "off")
    made.state_dir.mkdir()
    with open(made.home / "image", "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-e", "remount-ro", str(made.home / "image")], check=True, timeout=60)
    subprocess.run(["modprobe", "loop"], check=True, timeout=30)
    mount("-o", "loop", made.home / "image", made.state_dir)
    made.state_dir.chmod(0o700)
    try:
        yield from serving(made, lab)
    finally:
        subprocess.run(["umount", "--lazy", str(made.state_dir)], check=True, timeout=30)


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, timeout=30)


def serving(made: Balancer, lab: Lab) -> Iterator[Balancer]:
    """Running, with three servers that are checked, answering for the VIP."""
    rows = {host.name: {"address": host.address, "port": 80, "method": "nat"} for host in lab.servers}
    web = {"name": "web", "protocol": "tcp", "address": VIP, "port": 80, "check": {"kind": "tcp"}, "destinations": rows}
    lab.lb1.run("sysctl", "-qw", f"{SWITCH}=0", f"{RIGHT}=1")  # so that it is fusisd that sets the first, and notes it
    with made as running:
        running.client().send("POST", "/v1/services", web)
        yield running
    lab.lb1.run("ipvsadm", "-C")
    lab.lb1.run("ip", "address", "flush", "dev", "eth0", "to", "10.1.0.96/27")


def goes_on(lab: Lab, balancer: Balancer, backend: Backend) -> None:
    """All that needs no store: reading, requests, checks taking a server out and back, hands on ours undone."""
    names = {host.name for host in lab.servers}
    poll(lambda: {ask(VIP, 80, "client") for _ in range(6)} == names, what="all three to answer")
    before = web(lab)
    backend.kill()
    poll(lambda: balancer.weights("web")["rs1"] == 0, what="the dead server to be out")
    assert {ask(VIP, 80, "client") for _ in range(6)} == names - {"rs1"}
    backend.start()
    poll(lambda: web(lab) == before, what="the server to be back")
    drift = balancer.status()["drift"]
    lab.lb1.run("ipvsadm", "-d", "-t", f"{VIP}:80", "-r", f"{lab.servers[1].address}:80")
    poll(lambda: web(lab) == before, what="a destination that was taken out to be put back")
    lab.lb1.run("ipvsadm", "-D", "-t", f"{VIP}:80")
    poll(lambda: web(lab) == before, what="a service that was deleted to be made again")
    lab.lb1.run("sysctl", "-qw", f"{SWITCH}=0", f"{RIGHT}=0")
    lab.lb1.run("ip", "address", "delete", f"{VIP}/32", "dev", "eth0")
    poll(lambda: VIP in lab.lb1.run("ip", "-brief", "address", "show", "dev", "eth0"), what="the VIP to be put back")
    poll(lambda: lab.lb1.run("sysctl", "-n", SWITCH) == "1\n", what="the sysctl to be set again")
    poll(lambda: lab.lb1.run("sysctl", "-n", RIGHT) == "1\n", what="the sysctl that was right at the start to be so again")
    poll(lambda: {ask(VIP, 80, "client") for _ in range(6)} == names, what="all three to answer again")
    assert balancer.status()["drift"] > drift


def web(lab: Lab) -> set[str]:
    """The lines of the service web in the kernel."""
    return {line for line in lab.lb1.run("ipvsadm", "-Sn").splitlines() if f"{VIP}:80 " in line}


def refusals(operator: Operator, balancer: Balancer, why: str) -> None:
    """Both dialects refuse, and name the file and why."""
    for make, key in ((operator.seed, "error"), (operator.native, "detail")):
        status, answer = make()
        assert status == 503, answer
        assert "not stored and not applied" in answer[key]
        assert str(balancer.state_dir / "fusisd.db") in answer[key]
        assert re.search(why, answer[key])


def test_on_a_full_disk_changes_are_refused_and_all_else_goes_on(lab: Lab, balancer: Balancer) -> None:
    operator, filler = Operator(balancer), balancer.state_dir / "filler"
    with backends(lab.servers) as running:
        poll(lambda: set(balancer.weights("web").values()) == {1}, what="the first checks")
        assert (operator.seed()[0], operator.native()[0]) == (200, 201)
        for make in (operator.seed, operator.native):  # again and again: what the log gives back is taken, too
            statuses = (fill(filler) or make()[0] for _ in range(ROOM))
            assert next(status for status in statuses if status >= 300) == 503
        fill(filler)
        refusals(operator, balancer, "full; make room for it")
        goes_on(lab, balancer, running["rs1"])
        assert operator.services() == operator.acknowledged, "what was refused was not applied"
        balancer.kill()
        balancer.start()  # it is no reason not to start
        assert operator.services() == operator.acknowledged
        filler.unlink()
        assert (operator.seed()[0], operator.native()[0]) == (200, 201)
        balancer.kill()
        balancer.start()
        assert operator.services() == operator.acknowledged


def test_when_directory_and_files_become_read_only_changes_are_refused_and_all_else_goes_on(
    lab: Lab, ext4: Balancer
) -> None:
    operator = Operator(ext4)
    with backends(lab.servers) as running:
        poll(lambda: set(ext4.weights("web").values()) == {1}, what="the first checks")
        assert (operator.seed()[0], operator.native()[0]) == (200, 201)
        # A file that is open for writing keeps its file system from a remount; this flag counts for open files, too.
        chattr("+i", ext4.state_dir)
        os.sync()  # a page of a mapped file is asked for again when it was written back
        refusals(operator, ext4, "disk is full or failing")
        goes_on(lab, ext4, running["rs1"])
        assert operator.services() == operator.acknowledged
        chattr("-i", ext4.state_dir)
        assert (operator.seed()[0], operator.native()[0]) == (200, 201)
        ext4.kill()
        ext4.start()
        assert operator.services() == operator.acknowledged


def test_when_the_file_system_fails_changes_are_refused_and_those_acknowledged_are_there_after_its_repair(
    lab: Lab, ext4: Balancer
) -> None:
    operator = Operator(ext4)
    (source,) = {line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(ext4.state_dir) in line}
    with backends(lab.servers) as running:
        poll(lambda: set(ext4.weights("web").values()) == {1}, what="the first checks")
        assert (operator.seed()[0], operator.native()[0]) == (200, 201)
        os.sync()
        Path(f"/sys/fs/ext4/{Path(source).name}/trigger_fs_error").write_text("1")  # ext4 aborts, and is read-only
        refusals(operator, ext4, "disk is full or failing|must be allowed to read, write")
        goes_on(lab, ext4, running["rs1"])
        assert operator.services() == operator.acknowledged
        ext4.kill()
        subprocess.run(["umount", str(ext4.state_dir)], check=True, timeout=30)
        subprocess.run(["fsck.ext4", "-p", str(ext4.home / "image")], timeout=60)  # status 1: something was repaired
        mount("-o", "loop", ext4.home / "image", ext4.state_dir)
        ext4.start()
        assert operator.services() == operator.acknowledged
        assert (operator.seed()[0], operator.native()[0]) == (200, 201)


def chattr(flag: str, path: Path) -> None:
    subprocess.run(["chattr", "-R", flag, str(path)], check=True, timeout=30)


def test_it_does_not_start_on_a_read_only_directory_and_says_why(lab: Lab, balancer: Balancer) -> None:
    table = web(lab)
    balancer.kill()
    mount("-o", "remount,ro", balancer.state_dir)
    try:
        done = subprocess.run(lab.lb1.argv(*balancer.command()), capture_output=True, text=True, timeout=60)
    finally:
        mount("-o", "remount,rw", balancer.state_dir)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fusisd: cannot use the state directory {balancer.state_dir}: Read-only file system;")
    assert web(lab) == table
    balancer.start()
