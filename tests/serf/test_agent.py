"""fusis-agent as a process, on real Serf: how it comes, goes, and survives."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusisd.agent.agent import QUIET_S
from fusisd.serf.client import SerfClient, SerfError, connected
from fusisd.serf.keys import load_or_make_key
from tests.lab.expect import poll
from tests.serf.agents import Agents, address

ROOT = Path(__file__).parents[2]
RPC_PORT = 10000 + os.getpid() % 10000  # on lo all share 127.0.0.1: tests of two checkouts must not meet there
BIND_PORT = RPC_PORT + 10000  # below 32768, from where on the kernel gives ports to whoever connects


class Running:
    """A fusis-agent for service web, node rs9, joining agent n1."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.key = load_or_make_key(home / "key")
        self.log = home / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        words = [sys.executable, "-m", "fusisd.agent", "--balancer", address(1), "--key-file", str(self.home / "key")]
        words += ["--service", "web", "--port", "80", "--name", "rs9", "--state-dir", str(self.home / "state")]
        words += ["--rpc-port", str(RPC_PORT), "--bind-port", str(BIND_PORT), "--no-prepare", "--check", "none"]
        words += ["--vip", "127.0.0.2", *options]  # not its own address, which is 127.0.0.1
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def line_of(self, word: str) -> str:
        """A line of /proc/PID/status."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(line.split()[1] for line in status.splitlines() if line.startswith(f"{word}:"))

    def holds_back(self) -> None:
        """Wait until SIGTERM does not end it any more."""
        held = 1 << (signal.SIGTERM - 1)
        poll(lambda: any(int(self.line_of(word), 16) & held for word in ("SigBlk", "SigCgt")), 60, "it to hold back")

    def signal(self, number: int) -> int:
        self.send(number)
        return self.wait()

    def send(self, number: int) -> None:
        """A signal, and no waiting."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, when it ends by itself."""
        assert self._process is not None
        return self._process.wait(60)

    def forget(self) -> subprocess.Popen[bytes]:
        """Hand over the process, to start another."""
        assert self._process is not None
        process, self._process = self._process, None
        return process

    def serf(self) -> int:
        """The pid of its Serf agent."""
        return int((self.home / "state" / "agent.pid").read_text())

    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
        pid_file = self.home / "state" / "agent.pid"
        if pid_file.exists() and Path(f"/proc/{self.serf()}").exists():
            os.kill(self.serf(), signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether there is such a process (one that ended and was not collected yet has no command line)."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


@pytest.fixture
def running(tmp_path: Path, agents: Agents) -> Iterator[Running]:
    agent = Running(tmp_path)
    agents.start(1, "role=balancer", key=agent.key, port=BIND_PORT)
    yield agent
    agent.end()


def seen_by_the_balancer(name: str = "rs9") -> tuple[str, dict[str, str]]:
    """Status and tags of this node as agent n1 has them."""

    async def ask() -> tuple[str, dict[str, str]]:
        client = SerfClient(address(1), 7373)
        try:
            await client.connect()
            for member in await client.members():
                if member.name == name:
                    return member.status, dict(member.tags)
        finally:
            await client.close()
        return "", {}

    try:
        return asyncio.run(ask())
    except SerfError as error:  # it may not listen yet
        raise AssertionError(str(error)) from error


def test_it_joins_with_its_tags_and_leaves_on_sigterm(running: Running) -> None:
    running.start("--weight", "3", "--mode", "route")
    poll(lambda: seen_by_the_balancer() == ("alive", {"role": "agent", "s:web": "80/route/3"}), 60, "rs9 to be alive")
    poll(lambda: "fusis-agent: web on 127." in running.said(), what="its ready line")
    serf = running.serf()
    assert running.key not in running.said()
    assert running.signal(signal.SIGTERM) == 0
    poll(lambda: not alive(serf), what="its Serf agent to end")
    poll(lambda: seen_by_the_balancer()[0] == "left", 60, "rs9 to have left")


def test_an_upgrade_and_a_crash_keep_its_serf_agent_and_the_next_start_finds_it(running: Running) -> None:
    running.start()
    poll(lambda: seen_by_the_balancer()[0] == "alive", 60, "rs9 to be alive")
    poll(lambda: f" joined {address(1)}" in running.said(), what="its ready line")
    serf = running.serf()
    assert running.signal(signal.SIGUSR2) == 0
    running.start("--weight", "7")
    poll(lambda: seen_by_the_balancer() == ("alive", {"role": "agent", "s:web": "80//7"}), 60, "the new weight")
    running.signal(signal.SIGKILL)
    running.start("--weight", "8")
    poll(lambda: seen_by_the_balancer() == ("alive", {"role": "agent", "s:web": "80//8"}), 60, "the next weight")
    assert running.serf() == serf


def test_systemd_gets_as_long_as_the_drain_may_take(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        running.start("--drain", "600")
        poll(lambda: f" joined {address(1)}" in running.said(), 60, "its ready line")
        assert running.signal(signal.SIGTERM) == 0
        manager.setblocking(False)
        said = ""
        while "STOPPING=1" not in said:
            said = manager.recv(4096).decode()
    (extended,) = [line for line in said.split("\n") if line.startswith("EXTEND_TIMEOUT_USEC=")]
    assert int(extended.partition("=")[2]) > 600_000_000, "leaving and undoing come after the drain"


def test_its_serf_agent_is_started_again_when_it_dies(running: Running) -> None:
    running.start()
    poll(lambda: f" joined {address(1)}" in running.said(), 60, "its ready line")
    old = running.serf()
    os.kill(old, signal.SIGKILL)
    poll(lambda: running.serf() != old and seen_by_the_balancer()[0] == "alive", 60, "rs9 to be back")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--key-file", "/nosuch"], 1, "/nosuch"),
        (["--iface", "nosuch0"], 1, "nosuch0"),
        (["--service", "a/b"], 2, "a/b"),
        (["--weight", "-1"], 2, "weight"),
        (["--balancer", "example"], 2, "example"),
    ],
)
def test_where_it_cannot_start_it_says_why_in_one_line(
    tmp_path: Path, options: list[str], status: int, said: str
) -> None:
    load_or_make_key(tmp_path / "key")
    words = [sys.executable, "-m", "fusisd.agent", "--balancer", "127.0.0.1", "--key-file", str(tmp_path / "key")]
    words += ["--service", "web", "--port", "80", "--state-dir", str(tmp_path / "state"), *options]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("fusis-agent:")]) == 1


def test_a_serf_agent_that_cannot_bind_ends_it_with_serf_s_own_words(running: Running) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        running.start("--bind-port", port)
        assert running.wait() == 1
    last = running.said().splitlines()[-1]
    assert last.startswith("fusis-agent: the Serf agent does not run: ")
    assert port in last
    assert "address already in use" in last


def test_two_do_not_share_a_state_directory(running: Running, tmp_path: Path) -> None:
    running.start()
    poll(lambda: f" joined {address(1)}" in running.said(), 60, "its ready line")
    with running.forget() as first:
        try:
            running.start()
            assert running.wait() == 1
        finally:
            first.kill()
    assert f"another fusis-agent (pid {first.pid}) uses {tmp_path}/state" in running.said()


def test_a_serf_agent_found_under_another_name_leaves_and_is_started_anew(running: Running) -> None:
    running.start("--name", "rs8")
    poll(lambda: seen_by_the_balancer("rs8")[0] == "alive", 60, "rs8 to be alive")
    running.signal(signal.SIGKILL)
    running.start()
    poll(lambda: seen_by_the_balancer()[0] == "alive", 60, "rs9 to be alive")
    poll(lambda: seen_by_the_balancer("rs8")[0] == "left", 60, "rs8 to have left")


def test_tags_that_somebody_else_changed_are_put_back(running: Running) -> None:
    running.start()
    poll(lambda: seen_by_the_balancer()[1].get("s:web") == "80", 60, "its own tags")

    async def meddle() -> None:
        auth = (running.home / "state" / "rpc-key").read_text().strip()
        client = await connected("127.0.0.1", RPC_PORT, auth, 20.0)
        await client.set_tags({"s:old": "1", "s:web": "81"})
        await client.close()

    asyncio.run(meddle())
    poll(lambda: "s:old" in seen_by_the_balancer()[1], 60, "the meddling")
    poll(lambda: seen_by_the_balancer()[1] == {"role": "agent", "s:web": "80"}, 60, "the tags to be right")


def test_a_balancer_that_comes_later_is_joined_then(running: Running, agents: Agents) -> None:
    agents.kill(1)
    running.start()
    poll(lambda: "not joined reason=" in running.said(), 60, "its complaint")
    assert f"joined {address(1)}" not in running.said()
    agents.start(1, "role=balancer", key=running.key, port=BIND_PORT)
    poll(lambda: f"joined {address(1)}" in running.said(), 60, "its ready line")


def test_sigterm_before_it_joined_ends_it_too(running: Running, agents: Agents) -> None:
    agents.kill(1)
    running.start()
    poll(lambda: (running.home / "state" / "agent.pid").exists(), 60, "its Serf agent to be started")
    serf = running.serf()
    assert running.signal(signal.SIGTERM) == 0
    poll(lambda: not alive(serf), what="its Serf agent to end")


def listener() -> socket.socket:
    """A service on a free port of loopback."""
    return socket.create_server(("127.0.0.1", 0))


@contextmanager
def offered(running: Running) -> Iterator[tuple[socket.socket, int]]:
    """A service that the agent offers and the balancer has heard of, and its port."""
    with listener() as service:
        port = service.getsockname()[1]
        running.start("--port", str(port), "--drain", "60")
        poll(lambda: seen_by_the_balancer()[1].get("s:web") == f"{port}", 60, "its tag")
        yield service, port


@contextmanager
def both_ends(service: socket.socket) -> Iterator[None]:
    """A connection to the service, closed by both in the end. (Those of the agent's check are accepted, too.)"""
    with socket.create_connection(service.getsockname()) as client:
        while (found := service.accept())[1] != client.getsockname():
            found[0].close()
        with found[0]:
            yield


def lasts(seen: Callable[[], bool]) -> None:
    """It stays so for longer than a drain without any connection takes."""
    end_s = time.monotonic() + 2 * QUIET_S
    while time.monotonic() < end_s:
        assert seen()


def test_sighup_begins_a_service_drains_another_and_a_wrong_file_changes_nothing(running: Running, tmp_path: Path) -> None:
    def tags() -> dict[str, str]:
        return seen_by_the_balancer()[1]

    with listener() as service:
        port, file = service.getsockname()[1], tmp_path / "agent.toml"
        file.write_text(f"[service.old]\nport = {port}\n")
        running.start("--config", str(file), "--drain", "60")
        poll(lambda: tags().get("s:old") == f"{port}", 60, "the service of the file")
        before = tags()
        file.write_text("[service.new]\nport = 0\n")
        running.send(signal.SIGHUP)
        poll(lambda: "not reloaded reason=" in running.said(), what="its complaint")
        assert tags() == before
        with both_ends(service):
            file.write_text("[service.new]\nport = 82\ncheck = 'none'\n")
            running.send(signal.SIGHUP)
            poll(lambda: tags().get("s:new") == "82", 60, "the new service")
            poll(lambda: tags().get("s:old") == f"{port}///drain", 60, "the old one to drain")
            assert tags()["s:web"] == "80", "what did not change goes on"
            lasts(lambda: "s:old" in tags())
        poll(lambda: "s:old" not in tags(), 60, "the old one to go with its connection")


def test_sigterm_waits_for_a_long_connection_and_leaves_when_it_has_ended(running: Running) -> None:
    with offered(running) as (service, port):
        serf = running.serf()
        with both_ends(service):
            running.send(signal.SIGTERM)
            poll(lambda: seen_by_the_balancer()[1].get("s:web") == f"{port}///drain", 60, "its drain")
            lasts(lambda: alive(serf) and seen_by_the_balancer()[0] == "alive")
        assert running.wait() == 0
        assert not alive(serf)
        poll(lambda: seen_by_the_balancer()[0] == "left", 60, "rs9 to have left")


def test_sigterm_waits_for_a_client_that_has_said_all_and_still_reads(running: Running) -> None:
    with offered(running) as (service, port):
        serf = running.serf()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.shutdown(socket.SHUT_WR)
            running.send(signal.SIGTERM)
            poll(lambda: seen_by_the_balancer()[1].get("s:web") == f"{port}///drain", 60, "its drain")
            lasts(lambda: alive(serf) and seen_by_the_balancer()[0] == "alive")
            service.accept()[0].close()
        assert running.wait() == 0


def test_sigterm_waits_for_what_a_slow_reader_has_not_got_yet(running: Running) -> None:
    """The service has written all and closed: nobody but the kernel knows of the connection any more."""
    with offered(running) as (service, port):
        serf = running.serf()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            answering, _ = service.accept()
            answering.setblocking(False)
            sent = answering.send(bytes(1 << 20))
            answering.close()
            running.send(signal.SIGTERM)
            lasts(lambda: alive(serf) and seen_by_the_balancer()[0] == "alive")
            read = 0
            while piece := client.recv(65536):
                read += len(piece)
            assert read == sent
        assert running.wait() == 0


def test_sighup_while_it_drains_brings_nothing_back(running: Running) -> None:
    with offered(running) as (service, port):
        with both_ends(service):
            running.send(signal.SIGTERM)
            poll(lambda: seen_by_the_balancer()[1].get("s:web") == f"{port}///drain", 60, "its drain")
            running.send(signal.SIGHUP)
            poll(lambda: "not reloaded reason=leaving" in running.said(), 60, "its word")
            lasts(lambda: seen_by_the_balancer()[1].get("s:web") == f"{port}///drain")
        assert running.wait() == 0


def test_sigterm_just_after_a_restart_drains_as_any_other(running: Running) -> None:
    with offered(running) as (service, port):
        with both_ends(service):
            running.signal(signal.SIGUSR2)
            running.start("--port", str(port), "--drain", "60")
            running.holds_back()
            running.send(signal.SIGTERM)
            poll(lambda: seen_by_the_balancer()[1].get("s:web") == f"{port}///drain", 60, "its drain")
            lasts(lambda: seen_by_the_balancer()[0] == "alive")
        assert running.wait() == 0


def test_a_balancer_that_comes_when_another_is_joined_is_joined_too(running: Running, agents: Agents) -> None:
    running.start("--balancer", f"{address(1)},{address(2)}")
    poll(lambda: seen_by_the_balancer()[0] == "alive", 60, "it to join the first")
    agents.start(2, "role=balancer", key=running.key, port=BIND_PORT)
    both = [address(1), address(2)]
    poll(lambda: json.loads(command(running, "status", "--json").stdout)["joined_to"] == both, 60, "both")


def test_sigterm_before_anybody_listens_to_it_is_not_lost(running: Running) -> None:
    running.start()
    running.holds_back()
    assert running.signal(signal.SIGTERM) == 0


def test_sigterm_waits_for_a_service_that_has_answered_and_still_reads(running: Running) -> None:
    with offered(running) as (service, port):
        serf = running.serf()
        with socket.create_connection(("127.0.0.1", port)), service.accept()[0] as answering:
            answering.shutdown(socket.SHUT_WR)
            running.send(signal.SIGTERM)
            lasts(lambda: alive(serf) and seen_by_the_balancer()[0] == "alive")
        assert running.wait() == 0


def test_sigterm_gives_connections_that_it_cannot_see_the_whole_time(running: Running) -> None:
    elsewhere = "192.0.2.1"  # RFC 5737: as a container's address would be, of no interface here
    running.start("--drain", "5", "--at", elsewhere)
    poll(lambda: "s:web" in seen_by_the_balancer()[1], 60, "its tag")
    began_s = time.monotonic()
    assert running.signal(signal.SIGTERM) == 0
    assert time.monotonic() - began_s >= 5


def test_sigterm_waits_for_a_long_connection_until_the_deadline(running: Running) -> None:
    with listener() as service:
        port = service.getsockname()[1]
        running.start("--port", str(port), "--drain", "3")
        poll(lambda: seen_by_the_balancer()[1].get("s:web") == f"{port}", 60, "its tag")
        with both_ends(service):
            assert running.signal(signal.SIGTERM) == 0
            poll(lambda: seen_by_the_balancer()[0] == "left", 60, "rs9 to have left")


def command(running: Running, *words: str) -> subprocess.CompletedProcess[str]:
    """An order typed beside the running agent."""
    line = [sys.executable, "-m", "fusisd.agent", *words, "--state-dir", str(running.home / "state")]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_doctor_examines_for_the_agent_that_runs(running: Running) -> None:
    with listener() as service:
        port = service.getsockname()[1]
        running.start("--port", str(port), "--check", "tcp")
        poll(lambda: seen_by_the_balancer()[1].get("s:web") == f"{port}", 60, "its tag")
        ended = command(running, "doctor", "--json")
        findings = {finding["check"]: finding for finding in json.loads(ended.stdout)}
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert {"serf", "listening"} <= findings.keys()
        assert all(finding.keys() == {"check", "service", "ok", "seen", "mend"} for finding in findings.values())
    ended = command(running, "doctor", "--json")
    (bad,) = [finding for finding in json.loads(ended.stdout) if not finding["ok"]]
    assert (ended.returncode, bad["check"], bad["service"]) == (1, "listening", "web")
    assert bad["mend"]


def test_a_reader_that_goes_is_no_traceback(running: Running) -> None:
    running.start()
    poll(lambda: "s:web" in seen_by_the_balancer()[1], 60, "its tag")
    status = [sys.executable, "-m", "fusisd.agent", "status", "--state-dir", str(running.home / "state")]
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(status, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_an_order_with_a_name_that_is_none_does_nothing(running: Running) -> None:
    running.start()
    poll(lambda: seen_by_the_balancer()[1].get("s:web") == "80", 60, "its tag")
    ended = command(running, "drain", "web", "typo")
    assert (ended.returncode, ended.stderr) == (2, "fusis-agent: this agent has no service typo\n")
    ended = command(running, "status", "--json")
    assert (ended.returncode, json.loads(ended.stdout)["services"][0]["state"]) == (0, "ready")


def test_a_balancer_that_is_gone_is_no_balancer_joined_and_the_other_is(running: Running, agents: Agents) -> None:
    agents.start(2, "role=balancer", key=running.key, port=BIND_PORT)
    nobody = address(99)
    running.start("--balancer", f"{nobody},{address(1)}")
    poll(lambda: seen_by_the_balancer()[0] == "alive", 60, "it to join by the one that lives")
    status = json.loads(command(running, "status", "--json").stdout)
    assert (status["joined"], status["joined_to"]) == (True, [address(1)])
    agents.kill(1)
    poll(lambda: not json.loads(command(running, "status", "--json").stdout)["joined"], 90, "Serf to call it failed")
    ended = command(running, "doctor", "--json")
    (serf,) = [finding for finding in json.loads(ended.stdout) if finding["check"] == "serf"]
    assert not serf["ok"]
    assert "has not joined, or is cut off" in command(running, "status").stdout


def test_undo_takes_a_server_out_whose_agent_was_killed(running: Running) -> None:
    running.start()
    poll(lambda: seen_by_the_balancer()[1].get("s:web") == "80", 60, "its tag")
    serf = running.serf()
    running.signal(signal.SIGKILL)
    assert alive(serf)
    assert command(running, "undo").returncode == 0
    poll(lambda: seen_by_the_balancer()[0] == "left", 60, "it to have left")
    assert not alive(serf)
