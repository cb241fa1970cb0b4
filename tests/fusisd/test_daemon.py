"""fusisd as a process without a kernel (--dry-run): the whole API by curl's road, restarts, and where it will not start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fusisd.dry import ROOT, Dry


@pytest.fixture
def dry(tmp_path: Path) -> Iterator[Dry]:
    running = Dry(tmp_path)
    running.start()
    yield running
    running.close()


WEB = {"Name": "web", "Host": "10.0.0.1", "Port": 80, "Protocol": "tcp", "Scheduler": "rr"}
RS1 = {"Name": "rs1", "Host": "10.0.0.11", "Port": 8080, "Weight": 2, "Mode": "nat"}


def test_a_service_s_whole_life(dry: Dry) -> None:
    assert "dry run" in dry.log.read_text()
    assert dry.ask("GET", "/services") == (200, b"[]\n")
    assert dry.ask("POST", "/services", WEB, token=False)[0] == 401
    assert dry.ask("POST", "/services", WEB)[0] == 200
    assert dry.ask("POST", "/services", WEB)[0] == 200
    assert dry.ask("POST", "/services", {**WEB, "Scheduler": "wrr"})[0] == 422
    assert dry.ask("POST", "/services/web/destinations", RS1)[0] == 200
    assert dry.ask("POST", "/services/nosuch/destinations", RS1)[0] == 404
    status, data = dry.ask("GET", "/services/web")
    assert status == 200
    assert [(row["Name"], row["Weight"], row["Mode"]) for row in json.loads(data)["Destinations"]] == [("rs1", 2, "nat")]
    assert json.loads(dry.ask("GET", "/status")[1])["vips"] == ["10.0.0.1"]
    assert dry.ask("DELETE", "/services/web/destinations/rs1")[0] == 200
    assert dry.ask("DELETE", "/services/web")[0] == 200
    assert dry.ask("GET", "/services") == (200, b"[]\n")


def test_what_was_answered_survives_kill_9(dry: Dry) -> None:
    dry.ask("POST", "/services", WEB)
    dry.ask("POST", "/services/web/destinations", RS1)
    dry.end(signal.SIGKILL)
    dry.start()
    (service,) = json.loads(dry.ask("GET", "/services")[1])
    assert [row["Name"] for row in service["Destinations"]] == ["rs1"]


def test_a_log_as_json_is_one_object_a_line_and_holds_no_secret(dry: Dry) -> None:
    dry.end()
    dry.start(dry.command("--log-format", "json", "--log-level", "debug"))
    dry.ask("POST", "/services", WEB)
    dry.ask("POST", "/services", WEB, headers={"Authorization": "Bearer a-guess"}, token=False)
    dry.end()
    lines = [json.loads(line) for line in dry.log.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert {type(line["reaction_ms"]) for line in lines if line["event"] == "turn"} == {float}
    (refused,) = [line for line in lines if line["event"] == "web refused"]
    assert (refused["method"], refused["status"], refused["peer"]) == ("POST", 401, "127.0.0.1")
    assert {"dry run", "listening", "accepted", "op", "turn"} <= set(events)
    assert (dry.state_dir / "token").read_text().strip() not in dry.log.read_text()
    assert "a-guess" not in dry.log.read_text()


def test_sigterm_ends_it_well(dry: Dry) -> None:
    assert dry.end() == 0
    assert "Traceback" not in dry.log.read_text()


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ([], 1, "another fusisd"),
        (["--state-dir", "/proc/nosuch"], 1, "--state-dir"),
        (["--listen", "nonsense"], 2, "--listen"),
        (["--serf", "sometimes"], 2, "--serf"),
        (["--state-dir", "{home}/other", "--socket", "{home}/run/s"], 1, "{port}"),
    ],
)
def test_where_it_cannot_start_it_says_why_in_one_line(dry: Dry, options: list[str], status: int, said: str) -> None:
    words = [word.format(home=dry.home) for word in options]
    done = subprocess.run(dry.command(*words), cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fusisd:")]
    assert said.format(port=dry.port) in line


def test_a_damaged_state_file_stops_the_start_and_is_left_alone(tmp_path: Path) -> None:
    running = Dry(tmp_path)
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state/fusisd.db").write_bytes(b"nonsense" * 200)
    done = subprocess.run(running.command(), cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "fusisd.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "state/fusisd.db").read_bytes() == b"nonsense" * 200


OPTIONAL = ("prometheus_client", "pyipvs.testing", "fusisd.kernel.cleanup", "fusisd.kernel.doctor", "fusisd.ctl")


def test_a_start_imports_nothing_that_it_may_not_need() -> None:
    """Each costs milliseconds of every start (docs/performance.md), thirteen times as many in the guest."""
    code = f"import fusisd.config, fusisd.daemon, sys; print([name for name in {OPTIONAL} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
