"""The supervisor: one agent that outlives us, is found again, and is never confused with somebody else's process."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fusisd.serf import supervisor
from fusisd.serf.client import connected
from fusisd.serf.errors import SupervisorError
from fusisd.serf.keys import load_key, load_or_make_key
from fusisd.serf.supervisor import ManagedAgent
from tests.serf.agents import Agents, address

RPC_BASE = 40000 + os.getpid() % 20000


def managed(home: Path, number: int = 9, **settings: object) -> ManagedAgent:
    return ManagedAgent(home / "serf", f"m{number}", f"{address(number)}:7946", RPC_BASE + number, **settings)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def test_it_starts_is_found_again_and_leaves(tmp_path: Path, agents: Agents) -> None:
    async def scenario() -> None:
        key = load_or_make_key(tmp_path / "key")
        first = managed(tmp_path, key=key, tags={"role": "balancer"})
        assert await first.ensure_running()
        client = await connected(*first.rpc, first.rpc_auth_key, 20)
        (us,) = await client.members()
        assert us.tags == {"role": "balancer"}
        again = managed(tmp_path, key=key)
        assert not await again.ensure_running(), "it is found, not started"
        assert again.pid() == first.pid()
        assert again.rpc_auth_key == first.rpc_auth_key
        command = Path(f"/proc/{first.pid()}/cmdline").read_bytes().decode()
        assert key not in command
        assert first.rpc_auth_key not in command
        agents.start(1, key=key, join=9)
        other = await agents.client(1)
        async with asyncio.timeout(30):
            while len(await other.members()) < 2:
                await asyncio.sleep(0.05)
        await client.close()
        await first.stop()
        assert first.pid() is None
        statuses = {member.name: member.status for member in await other.members()}
        async with asyncio.timeout(30):
            while statuses["m9"] not in ("left", "leaving"):
                statuses = {member.name: member.status for member in await other.members()}
                assert statuses["m9"] != "failed"
        await other.close()

    asyncio.run(asyncio.wait_for(scenario(), 90))


def test_an_agent_that_dies_is_started_again_and_soon_each_time_when_it_had_run_steadily(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STEADY_S", 0.0)
    monkeypatch.setattr(supervisor, "RESTART_AFTER_S", (0.1, 1000.0))

    async def scenario() -> None:
        agent = managed(tmp_path)
        await agent.ensure_running()
        supervision = asyncio.ensure_future(agent.supervise())
        for _ in range(2):
            old = agent.pid()
            assert old is not None
            os.kill(old, 9)
            await until(lambda old=old: agent.pid() not in (None, old))
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
        await agent.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_foreign_process_in_the_pid_file_is_never_touched(tmp_path: Path) -> None:
    async def scenario() -> None:
        stranger = subprocess.Popen(["sleep", "1000"])
        agent = managed(tmp_path)
        (tmp_path / "serf" / "agent.pid").write_text(f"{stranger.pid}\n")
        assert agent.pid() is None
        await agent.stop()
        assert stranger.poll() is None
        stranger.kill()
        stranger.wait(10)

    asyncio.run(scenario())


def test_secrets_are_for_root_only(tmp_path: Path) -> None:
    key = load_or_make_key(tmp_path / "key")
    assert load_or_make_key(tmp_path / "key") == key
    assert load_key(tmp_path / "key") == key
    managed(tmp_path, key=key)
    files = [tmp_path / "key", tmp_path / "serf" / "rpc-key"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [("cg8StVXbQJ0gPvMd9o7yrg==", 0o644, "chmod 600"), ("not a key", 0o600, "no Serf key"), ("YWJj", 0o600, "no Serf key")],
)
def test_a_bad_key_file_is_refused_with_its_mend(tmp_path: Path, text: str, mode: int, said: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(SupervisorError, match=said):
        load_key(file)


def test_the_balancer_s_own_keys_are_looked_at_as_a_server_s_are(tmp_path: Path) -> None:
    for name, text, mode, said in (
        ("key", "not a key", 0o600, "put back"),
        ("key", "", 0o600, "empty"),
        ("key", "cg8StVXbQJ0gPvMd9o7yrg==", 0o644, "chmod 600"),
    ):
        file = tmp_path / name
        file.write_text(text)
        file.chmod(mode)
        with pytest.raises(SupervisorError, match=said):
            load_or_make_key(file)
    (tmp_path / "serf").mkdir()
    (tmp_path / "serf" / "rpc-key").write_text("")
    (tmp_path / "serf" / "rpc-key").chmod(0o600)
    with pytest.raises(SupervisorError, match="empty"):
        managed(tmp_path)


def test_without_serf_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SupervisorError, match="apt-get install serf"):
        asyncio.run(managed(tmp_path).ensure_running())
