"""The guest runner's promises: statuses, limits, signals, and that the host stays unharmed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.expect import ask, poll
from tests.lab.relay import READY, Relay

ROOT = Path(__file__).parents[1]

needs_guest = pytest.mark.skipif(shutil.which("linux.uml") is None, reason="apt-get install user-mode-linux")


def lab(*words: str) -> list[str]:
    return [sys.executable, "-m", "tests.lab.run", *words]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(lab(*words), cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def guests(marker: str) -> list[str]:
    """Living processes of a guest whose command line holds this text."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            dead = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if "linux.uml" in line and marker in line and not dead:
            found.append(line)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out"


@needs_guest
def test_status_and_output_are_the_command_s_and_the_host_is_not_written_to() -> None:
    mark = f"/etc/fusis-lab-{os.getpid()}"
    done = run("--", "sh", "-c", f"id -u; echo to-stderr >&2; touch {mark} /usr/bin/x && ls {mark}; exit 42")
    assert done.returncode == 42
    assert done.stdout.splitlines() == ["0", "to-stderr", mark]
    assert not Path(mark).exists()


@pytest.fixture
def readable() -> Iterator[Path]:
    """What the lab needs of this checkout, where anybody may read it: the checkout itself may stand below /root."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
        os.chmod(home, 0o755)
        for name in ("tests/lab", "pyipvs"):
            shutil.copytree(ROOT / name, Path(home) / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "tests/__init__.py", Path(home) / "tests")
        yield Path(home)


@needs_guest
def test_an_ordinary_user_can_run_it_and_is_root_inside(readable: Path) -> None:
    """Where we are no root ourselves, we are the ordinary user."""
    words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "env", "HOME=/tmp"]
    words = words if os.geteuid() == 0 else []
    script = "id -u; ip netns add x && ip netns exec x ipvsadm -Ln | head -1; touch /etc/x"
    command = [os.path.realpath(sys.executable), "-m", "tests.lab.run", "--timeout", "100", "--", "sh", "-c", script]
    done = subprocess.run([*words, *command], cwd=readable, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "0"
    assert "IP Virtual Server" in done.stdout


@needs_guest
def test_the_time_limit_ends_guest_and_command(out: Path) -> None:
    done = run("--timeout", "6", "--out", str(out), "--", "sleep", "1000")
    assert done.returncode == 124
    poll(lambda: not guests(str(out)), what="the guest to be gone")


@needs_guest
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signalled_runner_leaves_no_guest(out: Path, number: int, status: int) -> None:
    command = lab("--out", str(out), "--", "sh", "-c", "echo begun; sleep 1000")
    runner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert runner.stdout is not None
    assert runner.stdout.readline() == b"begun\n"
    assert guests(str(out))
    runner.send_signal(number)
    assert runner.wait(30) == status
    poll(lambda: not guests(str(out)), what="the guest to be gone")
    runner.stdout.close()


@needs_guest
def test_the_command_can_have_the_terminal() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, lab("--tty", "--", "sh", "-c", "echo ready; read word; echo got-$word; exit 7"))
    said, deadline_s, answered = b"", time.monotonic() + 60, False
    with contextlib.suppress(OSError):  # EIO: the last who had it open is gone
        while select.select([terminal], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            said += os.read(terminal, 4096)
            if b"ready" in said and not answered:
                answered = os.write(terminal, b"it\n") > 0
    os.kill(pid, signal.SIGTERM)  # nothing, when it has ended
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7, said
    assert b"got-it" in said


@needs_guest
def test_a_published_port_leads_into_a_namespace(out: Path) -> None:
    serve = "ip netns add web; ip -n web link set lo up; cd /etc; exec ip netns exec web python3 -m http.server 8000"
    command = lab("--out", str(out), "--publish", "18099:web:8000", "--", "sh", "-c", serve)
    nowhere = subprocess.DEVNULL
    runner = subprocess.Popen(command, cwd=ROOT, stdout=nowhere, stderr=nowhere, stdin=nowhere)
    try:
        body = poll(lambda: ask("127.0.0.1", 18099, path="/debian_version"), 60, "an answer from the guest")
        assert body == Path("/etc/debian_version").read_text()
        large = poll(lambda: ask("127.0.0.1", 18099, path="/services", timeout_s=20), 60, "a larger answer")
        assert large == Path("/etc/services").read_text()
    finally:
        runner.terminate()
        runner.wait(30)


def test_without_the_package_the_runner_names_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(lab("--", "true"), cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 125
    assert "user-mode-linux" in done.stderr


def test_the_relay_carries_connections_both_ways_and_their_ends() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(data.upper())
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        import socket

        left, right = socket.socketpair()
        server = await asyncio.start_server(shout, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        host = Relay(*await asyncio.open_connection(sock=left), None)
        guest = Relay(
            *await asyncio.open_connection(sock=right), lambda: asyncio.open_connection("127.0.0.1", port)
        )
        front = await asyncio.start_server(host.accepted, "127.0.0.1", 0)
        where = front.sockets[0].getsockname()
        tasks = [asyncio.ensure_future(host.run()), asyncio.ensure_future(guest.run())]

        async def talk(size: int) -> None:
            reader, writer = await asyncio.open_connection(*where[:2])
            writer.write(b"a" * size)
            writer.write_eof()
            assert await reader.read() == b"A" * size
            writer.close()

        async with asyncio.timeout(20):
            await asyncio.gather(*(talk(size) for size in (0, 1, 4096, 4097, 300_000, 5)))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        front.close()
        server.close()
        left.close()
        right.close()

    assert READY
    asyncio.run(scenario())
