"""Access to fusisd as a process: TLS, tokens rotated and certificates changed while it runs, private reads."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from fusisd import config
from fusisd.ctl.__main__ import main
from fusisd.errors import FusisError, StartupError
from fusisd.web.front import Front
from tests.bench.attackers import unverified
from tests.fusisd.dry import ROOT, Dry
from tests.fusisd.web_helpers import PEM, MemoryCore, another
from tests.lab.expect import poll

WEB = {"Name": "web", "Host": "10.0.0.1", "Port": 80, "Protocol": "tcp", "Scheduler": "rr"}


@pytest.fixture
def dry(tmp_path: Path) -> Iterator[Dry]:
    running = Dry(tmp_path)
    yield running
    running.close()


def certificate(dry: Dry) -> bytes:
    with socket.create_connection(("127.0.0.1", dry.port), 10) as sock, unverified().wrap_socket(sock) as tls:
        return tls.getpeercert(binary_form=True) or b""


def test_tls_beside_plain_http_with_a_certificate_that_changes(dry: Dry, pem: Path) -> None:
    dry.start(dry.command("--tls-cert", str(pem), "--tls-key", str(pem)))
    connection = HTTPSConnection("127.0.0.1", dry.port, timeout=15, context=unverified())
    token = (dry.state_dir / "token").read_text().strip()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    connection.request("POST", "/services", json.dumps(WEB), headers)
    assert connection.getresponse().status == 200
    connection.close()
    assert dry.ask("GET", "/services/web", token=False)[0] == 200
    before = certificate(dry)
    another(pem)
    poll(lambda: certificate(dry) != before, what="the changed certificate is shown")


def test_fusisctl_by_https_believes_only_whom_it_was_told(
    dry: Dry, pem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    another(pem, "127.0.0.1")
    dry.start(dry.command("--tls-cert", str(pem), "--tls-key", str(pem)))
    words = ["--url", f"https://127.0.0.1:{dry.port}", "--token-file", str(dry.state_dir / "token")]
    add = ["service", "add", "web", "--address", "10.0.0.1", "--port", "80"]
    assert main([*words, *add]) == 1
    said = capsys.readouterr().err
    assert "its certificate is not believed: self-signed certificate; --ca-file FILE" in said
    assert main([*words, "--ca-file", str(pem), *add]) == 0
    assert dry.ask("GET", "/services/web")[0] == 200
    assert main([words[0], words[1].replace("127.0.0.1", "localhost"), "--ca-file", str(pem), "status"]) == 1
    assert "not valid for 'localhost'" in capsys.readouterr().err
    assert main([*words, "--ca-file", str(tmp_path / "none"), "status"]) == 2
    assert f"--ca-file {tmp_path / 'none'}: No such file" in capsys.readouterr().err


def test_sighup_reads_the_certificate_again_and_does_not_end_us(dry: Dry, pem: Path) -> None:
    dry.start(dry.command("--tls-cert", str(pem), "--tls-key", str(pem)))
    assert "certificate reloaded" not in dry.log.read_text()
    os.kill(dry.pid, signal.SIGHUP)
    poll(lambda: "certificate reloaded" in dry.log.read_text())
    assert certificate(dry) == ssl.PEM_cert_to_DER_cert(PEM.read_text().partition("-----END PRIVATE KEY-----\n")[2])
    assert dry.end() == 0


def test_sighup_without_tls_is_no_end(dry: Dry) -> None:
    dry.start()
    os.kill(dry.pid, signal.SIGHUP)
    assert dry.ask("GET", "/services")[0] == 200
    assert dry.end() == 0


def test_a_token_is_rotated_without_a_restart_and_nothing_of_it_is_logged(
    dry: Dry, capsys: pytest.CaptureFixture[str]
) -> None:
    dry.start(dry.command("--log-level", "debug"))
    old = (dry.state_dir / "token").read_text().strip()
    ctl = ["--socket", str(dry.home / "run/s"), "token"]
    assert main([*ctl, "rotate", "--overlap", "3600"]) == 0
    second = capsys.readouterr().out.strip()

    def status(token: str) -> int:
        return dry.ask("POST", "/services", WEB, token=False, headers={"Authorization": f"Bearer {token}"})[0]

    assert [status(old), status(second)] == [200, 200]
    assert main([*ctl, "list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[1:] for row in rows][:2] == [["COUNTS", "UNTIL"], ["it", "is", "replaced"]]
    assert main([*ctl, "rotate", "--json"]) == 0
    third = json.loads(capsys.readouterr().out)["token"]
    assert [status(old), status(second), status(third)] == [401, 401, 200]
    events = json.loads(dry.ask("GET", "/v1/events", token=False)[1])["events"]
    assert [event["who"] for event in events if event["kind"] == "token"] == ["unix", "unix"]
    dry.end()
    log = dry.log.read_text()
    dry.start()
    assert [status(second), status(third)] == [401, 200]
    assert log.count("INFO token who=unix text=") == 2
    assert not any(token in log for token in (old, second, third))


def test_private_closes_reads_of_a_process_too(dry: Dry) -> None:
    dry.start(dry.command("--private"))
    assert dry.ask("GET", "/services", token=False)[0] == 401
    assert dry.ask("GET", "/services")[0] == 200
    assert dry.ask("GET", "/healthz", token=False)[0] == 200


def test_names_are_configured(dry: Dry) -> None:
    dry.start(dry.command("--host-name", "LB1.example."))
    assert dry.ask("GET", "/services", headers={"Host": "lb1.example:8000"})[0] == 200
    assert dry.ask("GET", "/services", headers={"Host": "lb2.example:8000"})[0] == 421


def test_a_front_whose_thread_has_ended_ends_the_daemon(tmp_path: Path) -> None:
    where = ["--state-dir", str(tmp_path), "--socket", str(tmp_path / "s"), "--listen", "127.0.0.1:0"]
    front = Front(config.parse(["--dry-run", *where]), MemoryCore(), (), lambda address: False, time.time)
    front.server.start()

    async def ended() -> None:
        looking = asyncio.create_task(front.look_after())
        await asyncio.sleep(0)
        front.server.stop()
        await asyncio.wait_for(looking, 30)

    with pytest.raises(FusisError, match="the HTTP front ended"):
        asyncio.run(ended())


def test_a_certificate_that_cannot_be_used_stops_the_start(dry: Dry, tmp_path: Path) -> None:
    words = dry.command("--tls-cert", str(tmp_path / "absent"), "--tls-key", str(tmp_path / "absent"))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "--tls-cert" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["--tls-cert", "a"], ["--tls-key", "a"], ["--trusted-proxy", "10.0.0.1/8"], ["--trusted-proxy", "proxy"]]
)
def test_options_that_say_nothing_are_named(words: list[str]) -> None:
    with pytest.raises(StartupError, match=words[0]) as caught:
        config.parse(["--dry-run", *words])
    assert caught.value.status == 2


def test_access_as_it_is_asked_for() -> None:
    words = ["--tls-cert", "a", "--tls-key", "b", "--host-name", "LB1.", "--trusted-proxy", "10.9.0.0/16", "--private"]
    asked = config.parse(["--dry-run", *words])
    assert asked.tls == (Path("a"), Path("b"))
    assert (asked.host_names, asked.private, list(map(str, asked.trusted_proxies))) == ({"lb1"}, True, ["10.9.0.0/16"])


def own_address() -> str:
    """An address of this machine's that is not loopback, which no service may have."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))  # TEST-NET-1; nothing is sent: the kernel names the source that it would take
        address: str = sock.getsockname()[0]
        return address


def test_what_comes_in_on_a_vip_is_closed_until_the_vip_is_gone(dry: Dry) -> None:
    vip = own_address()
    dry.start([*dry.command(), "--listen", f"{vip}:{dry.port}"])

    def says() -> bytes:
        with socket.create_connection((vip, dry.port), 10) as sock:
            sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            try:
                return sock.recv(100)
            except ConnectionResetError:
                return b""

    assert says().startswith(b"HTTP/1.1 200")
    assert dry.ask("POST", "/services", {**WEB, "Host": vip})[0] == 200
    poll(lambda: says() == b"")
    assert dry.ask("DELETE", "/services/web?now=1")[0] == 200
    poll(lambda: says().startswith(b"HTTP/1.1 200"))
