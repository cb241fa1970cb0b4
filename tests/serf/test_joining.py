"""Who may join, as an operator sees it: fusisd --dry-run on a real Serf agent that wants an RPC key."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusisd.ctl import keys
from tests.fusisd.dry import ROOT, Dry
from tests.lab.expect import poll
from tests.serf.agents import Agents, address

WEB = {"Name": "web", "Host": "10.0.0.1", "Port": 80, "Protocol": "tcp", "Scheduler": "rr"}
TAG = "s:web=80/nat/1/check=none"


@pytest.fixture
def dry(tmp_path: Path, agents: Agents) -> Iterator[Dry]:
    """A fusisd that lets n2 and n3 in and no other address; n2 may claim others."""
    agents.start(1, "role=balancer", auth="s3cret")
    key = tmp_path / "rpc-key"
    key.write_text("s3cret\n")
    key.chmod(0o600)
    running = Dry(tmp_path)
    words = ["--serf", f"{address(1)}:7373", "--serf-rpc-key-file", str(key), "--serf-allow", f"{address(2)}/31"]
    running.start(running.command(*words, "--serf-allow", "10.0.0.0/8", "--allow-claims", address(2)))
    yield running
    running.close()


def destinations(dry: Dry) -> dict[str, str]:
    return {row["Name"]: row["Host"] for row in json.loads(dry.ask("GET", "/services/web")[1])["Destinations"]}


def test_who_is_refused_is_named_with_the_reason_and_the_way_out(dry: Dry, agents: Agents) -> None:
    assert dry.ask("POST", "/services", WEB)[0] == 200
    agents.start(2, "role=agent", f"{TAG}/at=10.0.0.9", join=1)
    agents.start(3, "role=agent", f"{TAG}/at=10.0.0.8", join=1)
    agents.start(4, "role=agent", TAG, join=1)

    def problems() -> dict[str, list[str]]:
        return {node["name"]: node["problems"] for node in json.loads(dry.ask("GET", "/status")[1])["nodes"]}

    poll(lambda: set(problems()) == {"n2", "n3", "n4"}, 60, "all to be seen")
    assert problems()["n2"] == []
    assert "--allow-claims" in problems()["n3"][0]
    assert "--serf-allow" in problems()["n4"][0]
    poll(lambda: destinations(dry) == {"n2": "10.0.0.9"}, 20, "the claim of n2 alone")
    words = [sys.executable, "-m", "fusisd.ctl", "--url", f"http://127.0.0.1:{dry.port}", "status"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"node n4: refused: {address(4)} is in no network that may join" in done.stdout
    assert "node n3: service 'web' refused" in done.stdout
    assert "s3cret" not in dry.log.read_text()


def test_who_may_join_is_decided_anew_by_sighup_though_nobody_in_serf_moves(tmp_path: Path, agents: Agents) -> None:
    config = tmp_path / "fusisd.toml"
    agents.start(1, "role=balancer")
    agents.start(2, "role=agent", TAG, join=1)
    config.write_text(f'serf_allow = ["{address(2)}"]\n')
    running = Dry(tmp_path)
    running.start(running.command("--serf", f"{address(1)}:7373", "--config", str(config)))
    try:
        assert running.ask("POST", "/services", WEB)[0] == 200
        poll(lambda: destinations(running) == {"n2": address(2)}, 60, "n2 to serve")
        config.write_text('serf_allow = ["10.0.0.0/8"]\n')
        running.tell(signal.SIGHUP)
        poll(lambda: destinations(running) == {}, 60, "n2 to be refused")
        config.write_text(f'serf_allow = ["{address(2)}"]\n')
        running.tell(signal.SIGHUP)
        poll(lambda: destinations(running) == {"n2": address(2)}, 60, "n2 to serve again")
    finally:
        running.close()


def test_a_key_file_that_others_can_read_is_not_used_and_the_status_says_why(tmp_path: Path, agents: Agents) -> None:
    key = tmp_path / "rpc-key"
    key.write_text("s3cret\n")
    key.chmod(0o644)
    running = Dry(tmp_path)
    running.start(running.command("--serf", f"{address(1)}:7373", "--serf-rpc-key-file", str(key)))
    try:
        poll(lambda: "chmod 600" in running.ask("GET", "/status")[1].decode(), 30, "the reason")
    finally:
        running.close()


def test_the_join_command_names_every_balancer_that_lives(tmp_path: Path, agents: Agents) -> None:
    where = agents.start(1, "role=balancer", auth="s3cret")
    agents.start(2, "role=balancer", join=1)
    agents.start(3, "role=agent", join=1)
    (tmp_path / "serf").mkdir()
    settings = {"rpc_addr": f"{where[0]}:{where[1]}", "rpc_auth": "s3cret"}
    (tmp_path / "serf" / "agent.json").write_text(json.dumps(settings))
    poll(lambda: keys.balancers(tmp_path) == [address(1), address(2)], 60, "both")
    agents.kill(2)
    poll(lambda: keys.balancers(tmp_path) == [address(1)], 60, "the one that lives")
    assert keys.balancers(tmp_path / "nowhere") == []
