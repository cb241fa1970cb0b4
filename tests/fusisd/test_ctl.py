"""fusisctl against a small real HTTP server on a Unix socket and on TCP: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from fusisd.ctl import client as ctl_client
from fusisd.ctl.__main__ import main

KEY = "cg8StVXbQJ0gPvMd9o7yrg=="
STATUS: dict[str, Any] = {
    "ok": True,
    "version": "0.1.0",
    "iface": "eth0",
    "problems": [],
    "nodes": [{"name": "rs1", "address": "10.0.0.11", "status": "alive", "since_s": 61.4, "services": ["web", "dns"]}],
    "serf": {"mode": "managed", "address": "10.0.0.2", "port": 7946},
}
WEB: dict[str, Any] = {
    "Name": "web",
    "Host": "10.0.0.1",
    "Port": 80,
    "Protocol": "tcp",
    "Scheduler": "rr",
    "Destinations": [{"Name": "rs1", "Host": "10.0.0.11", "Port": 80, "Mode": "nat", "Weight": 1, "service_id": "web"}],
}
FOREIGN = {"Name": "", "Host": "fd00::1", "Port": 53, "Protocol": "udp", "Scheduler": "wlc", "Destinations": []}
MARKED = {"Name": "", "Host": "fwmark/7", "Port": 0, "Protocol": "", "Scheduler": "rr", "Destinations": []}


class Answering(BaseHTTPRequestHandler):
    """Answers what the server's `answers` hold for the path, and notes the headers."""

    server: Server

    def do_GET(self) -> None:
        self.server.authorizations.append(self.headers.get("Authorization"))
        status, body = self.server.answers.get(self.path, (404, b'{"error":"there is no such page"}'))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(socketserver.TCPServer):
    """A fusisd as far as fusisctl can see, on a Unix socket or a TCP port."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self.address_family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        super().__init__(address, Answering)  # type: ignore[arg-type]
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.authorizations: list[str | None] = []
        self.says("/status", STATUS)
        self.says("/services", [WEB])

    def says(self, path: str, body: object, status: int = 200) -> None:
        self.answers[path] = (status, json.dumps(body).encode())


def served(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def fusisd(tmp_path: Path) -> Iterator[Server]:
    yield from served(Server(str(tmp_path / "s")))


@pytest.fixture
def fusisd_on_tcp() -> Iterator[Server]:
    yield from served(Server(("127.0.0.1", 0)))


@pytest.fixture
def ctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs fusisctl; exit status, what it printed, what it said on stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["--socket", str(tmp_path / "s"), *words])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_a_healthy_balancer_is_shown_with_its_nodes(fusisd: Server, ctl: Any) -> None:
    assert ctl("status") == (
        0,
        "fusisd 0.1.0 on eth0\n"
        "  everything is as it should be\n"
        "NODE  ADDRESS    SERF   SERVICES  SINCE\n"
        "rs1   10.0.0.11  alive  web,dns   61s\n",
        "",
    )


def test_problems_are_named_and_make_the_exit_status_1(fusisd: Server, ctl: Any) -> None:
    fusisd.says("/status", STATUS | {"ok": False, "problems": ["serf: no agent answers"]})
    status, said, _ = ctl("status")
    assert (status, said.splitlines()[1]) == (1, "  problem: serf: no agent answers")
    assert ctl("status", "--json")[0] == 1


def test_services_are_a_table_with_their_destinations(fusisd: Server, ctl: Any) -> None:
    fusisd.says("/services", [WEB, FOREIGN, MARKED])
    status, said, _ = ctl("services")
    assert status == 0
    assert said == (
        "NAME       ADDRESS           SCHEDULER  MODE  WEIGHT\n"
        "web        tcp/10.0.0.1:80   rr\n"
        "  rs1      10.0.0.11:80                 nat   1\n"
        "(foreign)  udp/[fd00::1]:53  wlc\n"
        "(foreign)  fwmark/7          rr\n"
    )


@pytest.mark.parametrize(("command", "body"), [("status", STATUS), ("services", [WEB])])
def test_json_is_what_fusisd_said(fusisd: Server, ctl: Any, command: str, body: object) -> None:
    status, said, _ = ctl(command, "--json")
    assert (status, json.loads(said)) == (0, body)


def test_a_node_s_name_cannot_steer_the_terminal(fusisd: Server, ctl: Any) -> None:
    node = STATUS["nodes"][0] | {"name": "rs\x1b[2J\udcff"}
    fusisd.says("/status", STATUS | {"nodes": [node]})
    assert ctl("status")[1].splitlines()[-1].startswith(r"rs\x1b[2J\udcff  10.0.0.11")


def test_a_reader_that_goes_is_no_error(fusisd: Server, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fusisd.ctl", "--socket", str(tmp_path / "s"), "status"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    key = tmp_path / "state" / "serf" / "key"
    key.parent.mkdir(parents=True)
    key.write_text(KEY + "\n")
    return tmp_path / "state"


def test_the_join_command_carries_key_and_balancer(fusisd: Server, ctl: Any, state_dir: Path) -> None:
    words = ("--service", "dns", "--port", "53", "--mode", "route", "--state-dir", str(state_dir))
    assert ctl("join-command", *words) == (
        0,
        f"mkdir -p -m 0755 /etc/fusis && (umask 077; printf '%s\\n' {KEY} >/etc/fusis/key) && "
        "fusis-agent --balancer 10.0.0.2 --key-file /etc/fusis/key --service dns --port 53 --mode route\n",
        "",
    )


def test_the_join_command_stores_the_key_for_root_and_runs_the_agent_in_a_shell(
    fusisd: Server, ctl: Any, state_dir: Path, tmp_path: Path
) -> None:
    line = ctl("join-command", "--state-dir", str(state_dir))[1].replace("/etc/fusis", str(tmp_path / "etc"))
    agent = tmp_path / "bin" / "fusis-agent"
    agent.parent.mkdir()
    agent.write_text('#!/bin/sh\necho "$@"\n')
    agent.chmod(0o755)
    path = f"{agent.parent}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", line], env={"PATH": path}, capture_output=True, text=True, timeout=30, check=True)
    key_file = tmp_path / "etc" / "key"
    assert done.stdout == f"--balancer 10.0.0.2 --key-file {key_file} --service web --port 80 --mode nat\n"
    assert (key_file.read_text(), key_file.stat().st_mode & 0o777) == (KEY + "\n", 0o600)
    assert key_file.parent.stat().st_mode & 0o777 == 0o755  # the unit's user reads its own key there


def test_another_gossip_port_is_passed_on(fusisd: Server, ctl: Any, state_dir: Path) -> None:
    fusisd.says("/status", STATUS | {"serf": STATUS["serf"] | {"port": 7999}})
    assert ctl("join-command", "--state-dir", str(state_dir))[1].endswith(" --bind-port 7999\n")


@pytest.mark.parametrize(
    ("services", "said"), [([], "there is none yet"), ([WEB, WEB | {"Name": "b"}], "there are web, b")]
)
def test_the_service_must_be_named_when_it_is_not_the_only_one(
    fusisd: Server, ctl: Any, state_dir: Path, services: object, said: str
) -> None:
    fusisd.says("/services", services)
    status, printed, error = ctl("join-command", "--state-dir", str(state_dir))
    assert (status, printed) == (2, "")
    assert said in error


def test_without_a_managed_serf_there_is_nothing_to_join(fusisd: Server, ctl: Any, state_dir: Path) -> None:
    fusisd.says("/status", STATUS | {"serf": STATUS["serf"] | {"mode": "off"}})
    status, _, error = ctl("join-command", "--state-dir", str(state_dir))
    assert (status, "--serf managed" in error) == (1, True)


def test_an_unreadable_key_is_named(fusisd: Server, ctl: Any, tmp_path: Path) -> None:
    status, printed, error = ctl("join-command", "--service", "web", "--state-dir", str(tmp_path / "nosuch"))
    assert (status, printed) == (1, "")
    assert error == f"fusisctl: cannot read {tmp_path}/nosuch/serf/key: No such file or directory\n"


def test_a_daemon_that_is_not_there_is_one_line_with_the_mend(ctl: Any, tmp_path: Path) -> None:
    assert ctl("status") == (
        1,
        "",
        f"fusisctl: fusisd does not answer at {tmp_path}/s: No such file or directory; is it running?"
        " (systemctl status fusisd)\n",
    )


def test_a_daemon_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, ctl: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(ctl_client, "LIMIT_S", 0.2)
    with socketserver.UnixStreamServer(str(tmp_path / "s"), Answering):  # listens and never accepts
        status, _, error = ctl("status")
    assert (status, "timed out; is it running?" in error) == (1, True)


def test_a_refusal_is_passed_on(fusisd: Server, ctl: Any) -> None:
    fusisd.says("/services", {"error": "too many changes are waiting"}, 503)
    assert ctl("services") == (1, "", "fusisctl: too many changes are waiting\n")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'"x"'])
def test_something_else_that_answers_is_not_taken_for_fusisd(fusisd: Server, ctl: Any, body: bytes) -> None:
    fusisd.answers["/status"] = (200, body)
    status, _, error = ctl("status")
    assert (status, "not fusisd" in error) == (1, True)


def test_over_a_url_the_token_is_sent(fusisd_on_tcp: Server, ctl: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    host, port = fusisd_on_tcp.server_address[:2]
    words = ("--url", f"http://{host!s}:{port}", "--token-file", str(tmp_path / "token"))
    assert ctl(*words, "status")[0] == 0
    assert fusisd_on_tcp.authorizations == ["Bearer s3cret"]


def test_a_token_does_not_go_by_plain_http_to_another_host(ctl: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    words = ("--url", "http://192.0.2.1:1", "--token-file", str(tmp_path / "token"))
    status, _, error = ctl(*words, "pause", "1")
    assert (status, "could be read on the way" in error) == (2, True)


def test_a_url_where_nothing_listens_is_named(ctl: Any) -> None:
    assert ctl("--url", "http://127.0.0.1:1", "status") == (
        1,
        "",
        "fusisctl: fusisd does not answer at http://127.0.0.1:1: Connection refused; is it running there?\n",
    )


@pytest.mark.parametrize("url", ["ftp://h", "h:8000", "http://", "http://h:99999", "http://[::1", "http://h/services"])
def test_a_wrong_url_is_wrong_usage(ctl: Any, url: str) -> None:
    status, _, error = ctl("--url", url, "status")
    assert (status, error) == (2, f"fusisctl: --url {url!r} must be http://HOST[:PORT] or https://HOST[:PORT]\n")


def test_a_wrong_word_is_wrong_usage(ctl: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        ctl("destroy")
    assert ended.value.code == 2
