"""`python -m pyipvs` beside the real ipvsadm: each shows what the other does, and reads what the other saved."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyipvs import IPVS
from tests.lab.expect import poll
from tests.lab.netns import entered
from tests.lab.topology import Host
from tests.pyipvs.test_cli import Pty

ROOT = Path(__file__).parents[2]
SAVED = """\
-A -t 10.0.0.1:80 -s sh -p 300 -M 255.255.0.0 -b sh-fallback,sh-port
-a -t 10.0.0.1:80 -r 10.0.0.2:80 -g -w 1
-a -t 10.0.0.1:80 -r 10.0.0.10:8080 -m -w 65535
-A -t [fd00::1]:80 -s rr -b flag-1,flag-3
-a -t [fd00::1]:80 -r [fd00::2]:80 -i -w 0 --tun-type ipip
-A -u 10.0.0.1:53 -s rr -o
-a -u 10.0.0.1:53 -r 127.0.0.1:5353 -m -w 3
-A -u 10.0.0.1:5060 -s rr -p 60 --pe sip -o
-A --sctp-service 10.0.0.1:9 -s wrr
-A -f 7 -s mh -b mh-fallback
-A -f 7 -6 -s rr -p 9 -M 64
"""


def command(netns: Host, *words: str) -> list[str]:
    return [sys.executable, "-m", "pyipvs", "--netns", netns.name, *words]


def pyipvs(netns: Host, *words: str, text: str = "", status: int = 0) -> str:
    """What it printed."""
    done = subprocess.run(command(netns, *words), cwd=ROOT, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done
    return done.stderr if status == 1 and not done.stdout else done.stdout


@pytest.fixture
def filled(netns: Host, ipvs: IPVS) -> Host:
    """A namespace with a service of each kind."""
    assert pyipvs(netns, "restore", "-", text=SAVED) == ""
    return netns


@pytest.fixture
def busy(filled: Host, ipvs: IPVS) -> Host:
    """One where packets came; the kernel adds up every 2 s (ip_vs_est.c)."""
    netns = filled
    netns.run("ip", "address", "add", "10.0.0.1/32", "dev", "lo")
    with entered(netns.name):
        server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with server, client:
        server.bind(("127.0.0.1", 5353))
        for _ in range(3):
            client.sendto(b"0123456789", ("10.0.0.1", 53))
    poll(lambda: ipvs.service("udp/10.0.0.1:53").stats.connections == 3, what="packets that were counted")
    return netns


def rows(text: str) -> dict[tuple[str, ...], list[list[str]]]:
    """Each service's line in words, with its destinations' lines; headings are left out."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for line in text.splitlines():
        words = line.split()
        if words[0] in ("TCP", "UDP", "SCTP", "FWM"):
            found[tuple(words)] = destinations = []
        elif words[0] == "->" and words[1] != "RemoteAddress:Port":
            destinations.append(words)
            destinations.sort()
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"), [((), ()), (("--stats",), ("--stats", "--exact")), (("--rate",), ("--rate", "--exact"))]
)
def test_list_has_the_rows_of_ipvsadm(busy: Host, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    def both() -> tuple[str, str]:
        return pyipvs(busy, "list", "-n", *ours), busy.run("ipvsadm", "-Ln", *theirs)

    poll(lambda: same(*both()), what="two readings with no estimate in between")
    listed, expected = both()
    assert len(rows(listed)) == 7
    headings = [[line.split() for line in text.splitlines()[:3]] for text in (listed, expected)]
    assert headings[0] == headings[1]


def same(listed: str, expected: str) -> bool:
    return rows(listed) == rows(expected)


def test_statistics_count_the_traffic(busy: Host) -> None:
    services = {one["key"]: one for one in json.loads(pyipvs(busy, "list", "--json"))["services"]}
    service = services["udp/10.0.0.1:53"]
    counted = [one["stats"]["bytes_in"] for one in (service, *service["destinations"])]
    assert counted == [3 * (20 + 8 + 10)] * 2
    assert pyipvs(busy, "zero") == ""
    assert ("UDP", "10.0.0.1:53", *["0"] * 5) in rows(pyipvs(busy, "list", "--stats"))


def test_connections_are_those_of_ipvsadm(netns: Host) -> None:
    pyipvs(netns, "add", "service", "udp/10.0.0.1:53", "--scheduler", "rr")
    pyipvs(netns, "add", "destination", "udp/10.0.0.1:53", "127.0.0.1:5353")
    netns.run("ip", "address", "add", "10.0.0.1/32", "dev", "lo")
    with entered(netns.name):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.sendto(b"0123456789", ("10.0.0.1", 53))

    def words(text: str) -> list[list[str]]:
        """Without when they expire."""
        return [[word for at, word in enumerate(line.split()) if at != 1] for line in text.splitlines()]

    ours = words(pyipvs(netns, "list", "--connections"))
    assert ours == words(netns.run("ipvsadm", "-Lnc"))
    assert ours[2][1:2] + ours[2][3:] == ["UDP", "10.0.0.1:53", "127.0.0.1:5353"]
    assert len(words(pyipvs(netns, "list", "--connections", "udp/10.0.0.1:54"))) == 2


def test_ipvsadm_restores_what_is_saved(filled: Host, ipvs: IPVS) -> None:
    saved, before = pyipvs(filled, "save"), ipvs.snapshot()
    assert sorted(saved.splitlines()) == sorted(SAVED.splitlines())
    assert pyipvs(filled, "flush", "--yes") == ""
    restored = subprocess.run(filled.argv("ipvsadm", "-R"), input=saved, text=True, capture_output=True, timeout=60)
    assert restored.stderr == ""
    assert ipvs.snapshot() == before
    assert pyipvs(filled, "plan", "-", text=saved) == ""


def test_apply_takes_what_ipvsadm_saved(filled: Host, ipvs: IPVS) -> None:
    before, saved = ipvs.snapshot(), filled.run("ipvsadm", "-Sn")
    for words in (
        ("delete", "service", "fwmark/7"),
        ("edit", "service", "tcp/10.0.0.1:80", "--persistent", "7", "--flags", "none"),
        ("edit", "destination", "tcp/10.0.0.1:80", "10.0.0.10:8080", "--weight", "0"),
        ("delete", "destination", "tcp/10.0.0.1:80", "10.0.0.2:80"),
        ("add", "service", "fwmark/8"),
    ):
        assert pyipvs(filled, *words) == ""
    planned = pyipvs(filled, "plan", "-", text=saved, status=1).splitlines()
    assert sorted(line[0] for line in planned) == sorted("++-~~")
    assert "~ destination 10.0.0.10:8080 of tcp/10.0.0.1:80 (weight 0 -> 65535)" in planned
    applied = pyipvs(filled, "apply", "-", "--yes", text=saved)
    assert applied == "applied 5 changes, deleting 1 service with 0 destinations\n"
    assert ipvs.snapshot() == before
    assert filled.run("ipvsadm", "-Sn") == saved


def test_a_service_that_is_there_is_told(filled: Host) -> None:
    told = pyipvs(filled, "restore", "-", text=SAVED, status=1).splitlines()
    assert told[-1] == "pyipvs: 11 of 11 changes failed; the others are done"
    assert all("exists already (EEXIST)" in line for line in told[:-1])


def test_timeouts_sysctls_and_daemons_are_of_the_namespace(netns: Host) -> None:
    assert pyipvs(netns, "timeouts", "--tcp", "77") == ""
    assert netns.run("ipvsadm", "-L", "--timeout").split()[-3] == "77"
    assert pyipvs(netns, "sysctl", "expire_nodest_conn", "1") == ""
    assert pyipvs(netns, "sysctl", "expire_nodest_conn") == "expire_nodest_conn = 1\n"
    assert netns.run("sysctl", "-n", "net.ipv4.vs.expire_nodest_conn") == "1\n"
    netns.run("ip", "link", "set", "lo", "multicast", "on")
    assert pyipvs(netns, "daemon", "start", "master", "--interface", "lo", "--sync-id", "7") == ""
    assert "mcast=lo" in netns.run("ipvsadm", "-L", "--daemon")
    assert pyipvs(netns, "daemon", "list").splitlines()[1].split()[:3] == ["master", "lo", "7"]
    assert pyipvs(netns, "daemon", "stop", "master") == ""
    assert len(pyipvs(netns, "daemon", "list").splitlines()) == 1


def test_top_on_a_terminal_is_ended_by_q(filled: Host) -> None:
    terminal = Pty(command(filled, "top", "--interval", "0.2", "--sort", "name"))
    text = terminal.until(lambda seen: "over 0." in seen and seen.endswith("\x1b[J"))
    assert "7 services, 4 destinations" in text
    assert "udp/10.0.0.1:53" in text
    terminal.type("q")
    assert terminal.end() == 0
