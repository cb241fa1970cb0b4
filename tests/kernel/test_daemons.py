"""Synchronization daemons on the real kernel: started, listed with all attributes, stopped at once."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from pyipvs import IPVS, AlreadyExists, Daemon, DaemonNotFound, DaemonState, IPVSError
from tests.lab.expect import poll
from tests.lab.topology import Host


@pytest.fixture
def ipvs(netns: Host) -> Iterator[IPVS]:
    netns.run("ip", "link", "add", "d0", "type", "dummy")
    netns.run("ip", "address", "add", "10.9.0.1/24", "dev", "d0")
    netns.run("ip", "link", "set", "d0", "up", "multicast", "on")
    # IPv6 multicast is sent from a link-local address, which exists once duplicate detection is over
    poll(lambda: "tentative" not in netns.run("ip", "-6", "address", "show", "dev", "d0"), what="the link-local address")
    with IPVS(netns=netns.name, timeout_s=0.5) as handle:
        yield handle


@pytest.mark.parametrize(
    "daemon",
    [
        Daemon(DaemonState.MASTER, "d0", 7),
        Daemon(DaemonState.BACKUP, "d0"),
        Daemon(DaemonState.MASTER, "d0", 255, max_length=1000, group="224.0.0.90", port=9000, ttl=3),
        Daemon(DaemonState.MASTER, "d0", 3, group="ff02::5"),
        Daemon(DaemonState.BACKUP, "d0", 1, group="ff02::5", port=9001, ttl=2),
    ],
    ids=str,
)
def test_a_daemon_is_listed_as_it_was_started_and_stops(ipvs: IPVS, daemon: Daemon) -> None:
    assert ipvs.daemons() == []
    ipvs.start_daemon(daemon)
    (running,) = ipvs.daemons()
    for name in ("state", "interface", "sync_id", "max_length", "group", "port", "ttl"):
        wanted = getattr(daemon, name)
        assert wanted is None or getattr(running, name) == wanted, name
    assert running.group
    assert running.port
    ipvs.stop_daemon(daemon.state)
    assert ipvs.daemons() == []


def test_both_states_run_side_by_side_but_each_once(ipvs: IPVS) -> None:
    ipvs.start_daemon(Daemon("master", "d0", 1))
    ipvs.start_daemon(Daemon("backup", "d0", 2))
    assert {(daemon.state, daemon.sync_id) for daemon in ipvs.daemons()} == {
        (DaemonState.MASTER, 1),
        (DaemonState.BACKUP, 2),
    }
    with pytest.raises(AlreadyExists):
        ipvs.start_daemon(Daemon("master", "d0", 1))
    ipvs.stop_daemon("master")
    ipvs.stop_daemon("backup")
    assert ipvs.daemons() == []


def test_what_cannot_be_is_said(ipvs: IPVS) -> None:
    with pytest.raises(IPVSError) as caught:
        ipvs.start_daemon(Daemon("master", "nosuch0"))
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(DaemonNotFound) as missing:
        ipvs.stop_daemon("backup")
    assert str(missing.value) == "stop sync daemon backup: none runs (ESRCH)"
