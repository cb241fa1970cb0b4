"""What goes wrong on a server beside one service must not touch the others, and what was made must go whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusisd.agent.record import RecordFile
from fusisd.files import open_private
from fusisd.serf.keys import load_or_make_key
from fusisd.store.lock import lock_state
from fusisd.store.sqlite import open_database
from tests.kernel.test_agent_methods import state
from tests.lab.backends import Backend
from tests.lab.expect import poll
from tests.lab.fusis import NOBODY, Balancer
from tests.lab.topology import VIP, Host, Lab

VIP_OTHER = "10.1.0.101"
WEB = "[service.web]\nport = 80\nmethod = 'route'\n"
TUNNEL = "[service.tun]\nport = 81\nmethod = 'ipip'\n"


class Server:
    """A fusis-agent by a file on a server, with an `ip` of its own in its PATH."""

    def __init__(self, host: Host, home: Path, balancer: Balancer) -> None:
        self.host, self.home = host, home
        self.config, self.log = home / "agent.toml", home / "log"
        self.bin, self.real = home / "bin", str(shutil.which("ip"))
        self.bin.mkdir()
        for program in ("serf", "modprobe", "ip"):
            (self.bin / program).symlink_to(str(shutil.which(program)))
        self._head = f"balancer = ['{balancer.host.address}']\nkey_file = '{balancer.state_dir / 'serf' / 'key'}'\n"
        self._head += f"name = '{host.name}'\nstate_dir = '{home / 'state'}'\n"
        self.process: subprocess.Popen[bytes] | None = None
        self.wrap: tuple[str, ...] = ()

    def configure(self, *services: str) -> None:
        self.config.write_text(self._head + "".join(services))
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        words = ["env", f"PATH={self.bin}", sys.executable, "-m", "fusisd.agent", "run", "--config", str(self.config)]
        self.process = self.host.popen(*self.wrap, *words, log=self.log)

    def typed(self, *words: str, check: bool = True) -> str:
        line = [sys.executable, "-m", "fusisd.agent", *words, "--state-dir", str(self.home / "state")]
        return self.host.run(*line, check=check)

    def status(self) -> dict[str, Any]:
        said = self.typed("status", "--json", check=False)
        found: dict[str, Any] = json.loads(said) if said else {"services": [], "problems": []}
        return found

    def states(self) -> dict[str, str]:
        return {row["service"]: row["state"] for row in self.status()["services"]}

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


@pytest.fixture(scope="module")
def balancer(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    with Balancer(lab.lb1, tmp_path_factory.mktemp("faults") / "lb1") as running:
        running.add_service("web", VIP)
        running.add_service("tun", VIP_OTHER, 81)
        yield running


@pytest.fixture
def server(lab: Lab, balancer: Balancer, tmp_path: Path) -> Iterator[Server]:
    """It answers on both ports; after the test it is as it was."""
    host = lab.servers[0]
    before = state(host)
    server = Server(host, tmp_path, balancer)
    backends = [Backend(host), Backend(host, port=81)]
    for backend in backends:
        backend.start()
    yield server
    server.end()
    for backend in backends:
        backend.stop()
    assert state(host) == before


def test_a_step_that_fails_takes_down_its_own_service_alone(server: Server, balancer: Balancer) -> None:
    server.configure(WEB)
    server.start()
    poll(lambda: server.states() == {"web": "ready"}, 60, "web to be ready")
    server.host.run("ip", "link", "add", "theirs", "type", "ipip", "local", server.host.address)  # no second one like it
    try:
        server.configure(WEB, TUNNEL)
        poll(lambda: server.states() == {"web": "ready", "tun": "preparing"}, 60, "the tunnel to be refused")
        assert "fusis-ipip" in server.status()["services"][1]["reason"]
        assert balancer.weights("web") == {"rs1": 1}
    finally:
        server.host.run("ip", "link", "delete", "theirs")
    poll(lambda: server.states() == {"web": "ready", "tun": "ready"}, 60, "both")


def test_without_the_arp_switches_there_is_no_vip(server: Server, balancer: Balancer) -> None:
    """A read-only /proc/sys, as in a container, seen by the agent alone: it has a mount namespace of its own."""
    server.configure(WEB)
    ro = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\""
    server.wrap = ("unshare", "--mount", "sh", "-c", ro, "sh")
    server.start()
    poll(lambda: server.states() == {"web": "preparing"}, 60, "it to be refused")
    assert "arp_ignore" in server.status()["services"][0]["reason"]
    assert VIP not in server.host.run("ip", "-o", "address", "show", "dev", "lo")


@pytest.mark.parametrize("broken", ["gone", "not to be run"])
def test_while_nothing_can_be_seen_what_was_ready_stays_ready(server: Server, balancer: Balancer, broken: str) -> None:
    server.configure(WEB)
    server.start()
    poll(lambda: server.states() == {"web": "ready"}, 60, "web to be ready")
    (server.bin / "ip").unlink()
    if broken != "gone":
        (server.bin / "ip").write_text("")
    try:
        poll(lambda: bool(server.status()["problems"]), 60, "it to notice")
        assert "ip" in server.status()["problems"][0]
        assert server.states() == {"web": "ready"}
        assert server.process is not None and server.process.poll() is None
        assert balancer.weights("web") == {"rs1": 1}
    finally:
        (server.bin / "ip").unlink(missing_ok=True)
        (server.bin / "ip").symlink_to(server.real)
    poll(lambda: not server.status()["problems"], 60, "it to see again")


def test_what_somebody_else_took_away_is_no_hindrance(server: Server, balancer: Balancer) -> None:
    server.configure(WEB, "[service.tun]\nport = 81\nmethod = 'route'\n")
    server.start()
    poll(lambda: server.states() == {"web": "ready", "tun": "ready"}, 60, "both to be ready")
    server.host.run("ip", "address", "delete", f"{VIP_OTHER}/32", "dev", "lo")
    server.configure(WEB)
    poll(lambda: server.states() == {"web": "ready"}, 60, "one to have gone")
    assert server.status()["problems"] == []


def test_sigterm_while_a_step_is_made_leaves_nothing(server: Server) -> None:
    """The fixture looks that nothing is left."""
    slow = server.home / "slow"
    (server.bin / "ip").unlink()
    wait = f'case "$*" in *"address add"*) : >{slow}; /bin/sleep 2;; esac'
    (server.bin / "ip").write_text(f'#!/bin/sh\n{wait}\nexec {server.real} "$@"\n')
    (server.bin / "ip").chmod(0o755)
    server.configure(WEB)
    server.start()
    poll(slow.exists, 60, "the step to be made")
    server.end()
    assert server.process is not None and server.process.returncode == 0


def test_a_tunnel_s_answers_take_the_route_that_all_take(server: Server) -> None:
    host = server.host
    for line in ("link add d0 type dummy", "link set d0 up", "address add 10.78.0.2/24 dev d0",
                 "route add default via 10.78.0.1 dev d0 metric 200",
                 "route add 10.79.0.0/24 via 192.0.2.1 dev d0 onlink"):  # fmt: skip
        host.run("ip", *line.split())
    try:
        server.configure(TUNNEL)
        server.start()
        poll(lambda: server.states() == {"tun": "ready"}, 60, "it to be ready")
        made = state(host)
        main = [line for line in host.run("ip", "route", "show", "default").splitlines() if line]
        copied = host.run("ip", "route", "show", "table", "7946")
        assert len(main) == 2
        for line in main:
            assert line.strip() in copied
        assert "via 192.0.2.1 dev d0 onlink" in copied
        server.configure(TUNNEL, "[service.more]\nport = 82\nvip = '10.1.0.102'\nmethod = 'nat'\n")  # one more pass
        poll(lambda: "more" in server.states(), 60, "the pass")
        assert state(host) == made
    finally:
        server.end()
        host.run("ip", "link", "delete", "d0")


def test_what_root_makes_for_the_unit_s_user_is_that_user_s(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    RecordFile(tmp_path / "host.json", "boot 1").write()
    os.close(lock_state(tmp_path))
    open_database(tmp_path / "fusisd.db").close()
    load_or_make_key(tmp_path / "key")
    for name in ("host.json", "lock", "fusisd.db", "key"):
        assert ((tmp_path / name).stat().st_uid, (tmp_path / name).stat().st_mode & 0o777) == (NOBODY, 0o600), name
    (tmp_path / "secret").write_text("root's")
    (tmp_path / "trap").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        open_private(tmp_path / "trap", os.O_RDWR)
    assert (tmp_path / "secret").stat().st_uid == 0


def test_undo_after_a_kill_takes_the_server_out_and_its_vip_away(server: Server, balancer: Balancer) -> None:
    server.configure(WEB)
    server.start()
    poll(lambda: balancer.weights("web") == {"rs1": 1}, 60, "it to serve")
    assert server.process is not None
    server.process.kill()
    server.process.wait(30)
    server.typed("undo")
    poll(lambda: balancer.weights("web") == {}, 60, "it to be out")
