"""Another gossip key for a cluster of real agents: nobody is lost, the old key is worth nothing, restarts have the new."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fusisd.ctl.keys import in_use
from fusisd.serf.client import SerfClient, connected
from fusisd.serf.errors import SerfError, SerfRefused
from fusisd.serf.keys import Keyring, load_or_make_key
from fusisd.serf.rotation import RotationError, pending, rotate
from fusisd.serf.supervisor import ManagedAgent
from tests.serf.agents import Agents, address

ROOT = Path(__file__).parents[2]
RPC_BASE = 10000 + os.getpid() % 10000


def ring(home: Path) -> list[str]:
    return Keyring(home).keys()


def managed(home: Path, number: int, key: str) -> ManagedAgent:
    join = (address(11),) if number != 11 else ()
    return ManagedAgent(home, f"m{number}", f"{address(number)}:7946", RPC_BASE + number, key=key, join=join)


async def client_of(agent: ManagedAgent) -> SerfClient:
    return await connected(*agent.rpc, agent.rpc_auth_key, 20)


async def until_alive(serf: SerfClient, *names: str) -> None:
    async with asyncio.timeout(60):
        while {member.name for member in await serf.members() if member.status == "alive"} != set(names):
            await asyncio.sleep(0.05)


@asynccontextmanager
async def pair(home: Path) -> AsyncIterator[tuple[ManagedAgent, ManagedAgent]]:
    """A balancer's agent (its directory is serf/, as fusisd's) and a server's, which have found each other."""
    key = load_or_make_key(home / "serf" / "key")
    ours, theirs = managed(home / "serf", 11, key), managed(home / "server", 12, key)
    try:
        for agent in (ours, theirs):
            await agent.ensure_running()
        serf = await client_of(ours)
        await until_alive(serf, "m11", "m12")
        await serf.close()
        yield ours, theirs
    finally:
        for agent in (ours, theirs):
            if (pid := agent.pid()) is not None:
                os.kill(pid, 9)


def test_the_key_of_two_nodes_is_rotated_and_outlives_their_ends(tmp_path: Path, agents: Agents) -> None:
    async def scenario() -> None:
        file = tmp_path / "serf" / "key"
        async with pair(tmp_path) as (ours, theirs):
            old = file.read_text().strip()
            serf = await client_of(ours)
            steps: list[str] = []
            await rotate(serf, file, say=steps.append)
            assert len(steps) == 3
            new = file.read_text().strip()
            assert new != old
            assert not pending(file).exists()
            assert (ring(tmp_path / "serf"), ring(tmp_path / "server")) == ([new], [new])
            files = [file, Keyring(tmp_path / "serf").path, Keyring(tmp_path / "server").path]
            assert {stat.S_IMODE(one.stat().st_mode) for one in files} == {0o600}
            assert {member.status for member in await serf.members()} == {"alive"}
            await serf.close()
            agents.start(13, key=old, join=11)
            agents.start(14, key=new, join=11)
            for agent in (theirs, ours):  # the server's key file says the old key for ever
                os.kill(agent.pid() or 0, 9)
                async with asyncio.timeout(20):
                    while agent.pid() is not None:
                        await asyncio.sleep(0.02)
                assert await agent.ensure_running()
            again = await client_of(ours)
            await until_alive(again, "m11", "m12", "n14")
            server = await client_of(theirs)
            await until_alive(server, "m11", "m12", "n14")
            stranger = await agents.client(13)
            with pytest.raises(SerfRefused):
                await stranger.join([address(11)])
            assert [member.name for member in await stranger.members()] == ["n13"]
            for client in (again, server, stranger):
                await client.close()

    asyncio.run(asyncio.wait_for(scenario(), 180))


def test_fusisctl_rotates_and_has_the_new_key_for_joining(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with pair(tmp_path):
            old = (tmp_path / "serf" / "key").read_text()
            words = [sys.executable, "-m", "fusisd.ctl", "serf", "rotate-key", "--json", "--state-dir", str(tmp_path)]
            process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdout=subprocess.PIPE)
            output, _ = await process.communicate()
            assert process.returncode == 0
            assert len(json.loads(output)["steps"]) == 3
            assert ring(tmp_path / "server") == [(tmp_path / "serf" / "key").read_text().strip()]
            assert (tmp_path / "serf" / "key").read_text() != old
            assert in_use(tmp_path) == ring(tmp_path / "server")[0], "what join-command prints"
            assert old.strip() not in shlex.join(words) + output.decode()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_failed_node_stops_it_before_anything_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "serf" / "key"
        async with pair(tmp_path) as (ours, theirs):
            old = file.read_text()
            os.kill(theirs.pid() or 0, 9)
            serf = await client_of(ours)
            async with asyncio.timeout(60):
                while "failed" not in {member.status for member in await serf.members()}:
                    await asyncio.sleep(0.1)
            with pytest.raises(RotationError, match="m12"):
                await rotate(serf, file)
            assert (file.read_text(), pending(file).exists(), ring(tmp_path / "serf")) == (old, False, [old.strip()])
            await rotate(serf, file, anyway=True)
            assert ring(tmp_path / "serf") == [file.read_text().strip()] != [old.strip()]
            await serf.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


STEPS = ("install-key", "use-key", "list-keys", "remove-key")


class Stopping(SerfClient):
    """A client whose agent is gone from one step on."""

    def __init__(self, like: ManagedAgent, step: str, after: bool) -> None:
        super().__init__(*like.rpc, auth_key=like.rpc_auth_key)
        self._step, self._after = step, after

    async def call(self, command, body=None):  # type: ignore[no-untyped-def]
        if command == self._step and not self._after:
            raise SerfError("gone")
        answer = await super().call(command, body)
        if command == self._step:
            raise SerfError("gone")
        return answer


def test_cut_off_anywhere_it_goes_on_when_it_is_run_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "serf" / "key"
        async with pair(tmp_path) as (ours, _):
            for step in STEPS:
                for after in (False, True):
                    before = ring(tmp_path / "serf")[0]
                    broken = Stopping(ours, step, after)
                    await broken.connect()
                    with pytest.raises(SerfError, match="gone"):
                        await rotate(broken, file)
                    await broken.close()
                    kept = pending(file).read_text().strip() if pending(file).exists() else None
                    serf = await client_of(ours)
                    await rotate(serf, file)
                    new = file.read_text().strip()
                    assert kept in (None, new), "the key that was begun with is the one that comes"
                    assert before != new
                    assert (ring(tmp_path / "serf"), ring(tmp_path / "server")) == ([new], [new]), (step, after)
                    assert {member.status for member in await serf.members()} == {"alive"}
                    await serf.close()

    asyncio.run(asyncio.wait_for(scenario(), 240))


def test_without_an_agent_of_its_own_fusisctl_says_so(tmp_path: Path) -> None:
    (tmp_path / "serf").mkdir()
    words = [sys.executable, "-m", "fusisd.ctl", "serf", "rotate-key", "--state-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "--serf managed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_file_counts_when_somebody_put_another_key_there(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    assert not keyring.take("first")
    assert not keyring.take("first")
    keyring.path.write_text('["rotated"]')
    assert not keyring.take("first"), "the key that it came in with: the ring knows better"
    assert keyring.keys() == ["rotated"]
    assert not keyring.take("rotated"), "the key that it has"
    assert keyring.take("second"), "a running agent has to be started anew"
    assert keyring.keys() == ["second", "rotated"]
    assert not keyring.take("second")
    keyring.path.write_text("{")
    assert not keyring.take("second")
    assert keyring.keys() == ["second"]


def test_another_key_in_the_key_file_starts_the_agent_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        key = load_or_make_key(tmp_path / "key")
        first = managed(tmp_path / "serf", 11, key)
        await first.ensure_running()
        pid = first.pid()
        other = load_or_make_key(tmp_path / "other")
        again = managed(tmp_path / "serf", 11, other)
        serf = await client_of(first)
        await serf.close()
        assert await again.ensure_running()
        assert again.pid() != pid
        serf = await client_of(again)
        assert (await serf.list_keys()).keys == {other: 1, key: 1}
        await serf.close()
        await again.stop()

    asyncio.run(asyncio.wait_for(scenario(), 120))
