"""fusisd as systemd's service: readiness, watchdog, sockets that are passed; and the units in docs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from fusisd.errors import StartupError
from fusisd.systemd import notify, passed_sockets, watchdog_s
from fusisd.web.listeners import Passed, TcpListener, UnixListener, bind, chosen
from tests.fusisd.dry import ROOT, Dry
from tests.lab.expect import poll

UNITS = ("fusisd.service", "fusisd.socket", "fusis-agent.service")
# Places descriptors 3 and up and says so, as systemd does between fork and exec.
PASSING = """
import os, sys
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "api:ctl"}
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP and a Unix socket, with a backlog."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "passed.sock"))
        unix.listen()
        yield tcp, unix


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The end of NOTIFY_SOCKET that systemd reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def heard(manager: socket.socket, state: bytes) -> None:
    """Read until this was said."""
    while manager.recv(4096) != state:
        pass


def test_it_says_that_it_is_ready_that_it_goes_on_and_that_it_stops(
    tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    dry = Dry(tmp_path)
    dry.start()
    try:
        heard(manager, b"READY=1")
        for _ in range(3):
            heard(manager, b"WATCHDOG=1")
        dry.tell(signal.SIGTERM)
        heard(manager, b"STOPPING=1")
        assert dry.end(0) == 0
    finally:
        dry.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_ours_or_none(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_s(environ) == seconds


def test_a_systemd_that_reads_nothing_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        told = threading.Thread(target=lambda: [notify("WATCHDOG=1") for _ in range(5000)], daemon=True)
        told.start()
        told.join(20)
        assert not told.is_alive()


def test_sockets_of_another_process_are_left_alone_and_no_child_sees_the_variables() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert passed_sockets(environ) == []
    assert environ == {"HOME": "/"}
    assert passed_sockets({"LISTEN_PID": str(os.getpid())}) == []


def test_passed_sockets_take_the_place_of_the_default_ones(listening: tuple[socket.socket, socket.socket]) -> None:
    tcp, unix = listening
    own, listen = ["10.0.0.1"], [("127.0.0.1", 9)]
    default = [TcpListener("10.0.0.1", 8000), UnixListener("/s")]
    assert chosen([], own, 8000, "/s", []) == default
    assert chosen(listen, own, 8000, "/s", []) == [TcpListener("127.0.0.1", 9), UnixListener("/s")]
    assert chosen([], own, 8000, "/s", [("u", unix)]) == [Passed("u", unix), default[0]]
    assert chosen([], own, 8000, "/s", [("t", tcp)]) == [Passed("t", tcp), default[1]]
    assert chosen(listen, own, 8000, "/s", [("t", tcp)]) == [Passed("t", tcp), TcpListener("127.0.0.1", 9), default[1]]


def test_a_socket_that_does_not_listen_is_refused_with_what_makes_one() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(StartupError, match="ListenStream="):
        bind(Passed("dns", datagrams))
    with socket.socket() as connecting, pytest.raises(StartupError, match="ListenStream="):
        bind(Passed("", connecting))


def test_it_serves_on_the_sockets_that_it_is_given_and_leaves_them(
    tmp_path: Path, listening: tuple[socket.socket, socket.socket]
) -> None:
    """Who connected before the start is answered after it; the Unix socket's file stays when fusisd goes."""
    tcp, unix = listening
    port = tcp.getsockname()[1]
    early = HTTPConnection("127.0.0.1", port, timeout=60)
    early.request("GET", "/healthz")
    words = ["--dry-run", "--state-dir", str(tmp_path / "state"), "--socket", str(tmp_path / "own.sock")]
    shell = 'exec 3<&"$1" 4<&"$2"; shift 2; exec "$@"'
    argv = ["bash", "-c", shell, "-", str(tcp.fileno()), str(unix.fileno()), sys.executable, "-c", PASSING]
    argv += ["-m", "fusisd", *words]
    log = tmp_path / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=output, pass_fds=(tcp.fileno(), unix.fileno()))
    try:
        assert json.loads(early.getresponse().read()) == {"ok": True}
        early.close()
        poll(lambda: f"Listening and serving HTTP on :{port}" in log.read_text(), 60, "the ready line")
        done = subprocess.run([sys.executable, "-m", "fusisd.ctl", "--socket", str(tmp_path / "passed.sock"), "services"],
                              cwd=ROOT, capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stderr
        environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"LISTEN_PID" in environ, "the test passed them"
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert (tmp_path / "passed.sock").exists()
    assert not (tmp_path / "own.sock").exists()


def test_the_units_are_accepted_by_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed here")
    for name in UNITS:
        text = (ROOT / "docs" / name).read_text()
        for program in ("fusisd", "fusis-agent"):  # it looks whether they are there
            text = text.replace(f"ExecStart=/opt/fusis/bin/{program}", f"ExecStart={sys.executable}")
        (tmp_path / name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if any(name in line for name in UNITS)]
    assert (done.returncode, complaints) == (0, [])
    (tmp_path / UNITS[0]).write_text(text.replace("Type=notify", "Type=nonsense"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(tmp_path / UNITS[0])],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert "nonsense" in done.stderr, "it would have said so"
