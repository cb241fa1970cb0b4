"""The client against real agents, and against a fake that does what a real one does only when it is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgpack
import pytest

from fusisd.serf.client import DOORBELL, MembersSeen, SerfClient, SerfError, SerfLost
from fusisd.serf.errors import SerfMisuse
from tests.serf.agents import Agents, address


@pytest.mark.parametrize(
    ("host", "port"), [("a..b", 7373), ("x" * 70 + ".com", 7373), ("127.0.0.1", 70000), ("127.0.0.1", -1), ("a\0b", 1)]
)
def test_what_is_no_host_and_port_is_our_misuse(host: str, port: int) -> None:
    with pytest.raises(SerfMisuse, match="no host and port"):
        asyncio.run(SerfClient(host, port).connect())


def test_every_verb_on_a_real_agent(agents: Agents) -> None:
    async def scenario() -> None:
        agents.start(1, "role=balancer")
        agents.start(2)
        one, two = await agents.client(1), await agents.client(2)
        assert await one.join([address(2)]) == 1
        assert {member.name for member in await one.members()} == {"n1", "n2"}
        await one.set_tags({"s:web": "80"}, ("role",))
        (us,) = [member for member in await one.members() if member.name == "n1"]
        assert us.tags == {"s:web": "80"}
        await one.event("hello", b"\xff")
        assert (await one.stats())["agent"]["name"] == "n1"
        with pytest.raises(SerfError, match="refused join"):
            await one.join(["127.0.0.1:1"])
        with pytest.raises(SerfError, match="512"):
            await one.set_tags({"x": "y" * 600})
        agents.kill(2)
        await two.close()
        await until(lambda: status(one, "n2"), "failed")
        await one.force_leave("n2", prune=True)
        await until(lambda: status(one, "n2"), "")
        await one.leave()
        await one.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


async def status(client: SerfClient, name: str) -> str:
    return next((member.status for member in await client.members() if member.name == name), "")


async def until(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    async with asyncio.timeout(40):
        while await ask() != wanted:
            await asyncio.sleep(0.05)


def test_an_authenticated_agent_refuses_strangers(agents: Agents) -> None:
    async def scenario() -> None:
        agents.start(1, auth="s3cret")
        client = await agents.client(1, "s3cret")
        assert len(await client.members()) == 1
        await client.close()
        stranger = await agents.client(1)
        with pytest.raises(SerfError, match="Authentication required"):
            await stranger.members()
        await stranger.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


class Watched:
    """A running watch and what it said."""

    def __init__(self, host: str, port: int = 7373, timeout_s: float = 5.0) -> None:
        self.seen: list[MembersSeen] = []
        self.lost: list[SerfLost] = []
        self._client = SerfClient(host, port, timeout_s=timeout_s)

    async def __aenter__(self) -> Watched:
        self._before = asyncio.all_tasks()
        self._task = asyncio.ensure_future(self._client.watch(self.seen.append, self.lost.append))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._client.close()
        assert asyncio.all_tasks() == self._before, "nothing is left running"

    def statuses(self) -> dict[str, str]:
        return {member.name: member.status for member in self.seen[-1].members} if self.seen else {}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(40):
            while not condition():
                await asyncio.sleep(0.02)


def test_joins_leaves_and_failures_are_seen(agents: Agents) -> None:
    async def scenario() -> None:
        where = agents.start(1)
        async with Watched(*where) as watched:
            await watched.until(lambda: watched.statuses() == {"n1": "alive"})
            agents.start(2, join=1)
            agents.start(3, join=1)
            await watched.until(lambda: watched.statuses() == {"n1": "alive", "n2": "alive", "n3": "alive"})
            leaving = await agents.client(2)
            await leaving.leave()
            await leaving.close()
            await watched.until(lambda: watched.statuses()["n2"] == "left")
            agents.kill(3)
            await watched.until(lambda: watched.statuses()["n3"] == "failed")
            assert {seen.epoch for seen in watched.seen} == {1}

    asyncio.run(asyncio.wait_for(scenario(), 90))


def test_our_agent_s_restart_is_a_loss_and_then_a_new_epoch(agents: Agents) -> None:
    async def scenario() -> None:
        where = agents.start(1)
        await (await agents.client(1)).close()
        async with Watched(*where) as watched:
            await watched.until(lambda: bool(watched.seen))
            agents.kill(1)
            await watched.until(lambda: bool(watched.lost))
            agents.start(1)
            await watched.until(lambda: watched.seen[-1].epoch == 2)
            assert len(watched.lost) == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_rung_doorbell_shows_new_tags_before_the_member_event_does(agents: Agents) -> None:
    """Serf holds member events back for a second at least; the doorbell's series of lists is over in half of one."""

    async def scenario() -> None:
        where = agents.start(1)
        agents.start(2, join=1)
        async with Watched(*where) as watched:
            await watched.until(lambda: watched.statuses().get("n2") == "alive")
            two, other = await agents.client(2), await agents.client(1)
            events: list[str] = []
            reader = asyncio.ensure_future(record_events(where, events))
            await until(lambda: listening(events), True)
            await two.set_tags({"s:web": "80"})
            await two.event(DOORBELL)
            await watched.until(lambda: any(member.tags for member in watched.seen[-1].members))
            assert "member-update" not in events
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await two.close()
            await other.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


async def listening(events: list[str]) -> bool:
    return "listening" in events


async def record_events(where: tuple[str, int], events: list[str]) -> None:
    """The kinds of the events that a plain stream brings, in order."""
    from fusisd.serf.protocol import Connection, Record

    reader, writer = await asyncio.open_connection(*where)
    protocol = Connection()
    for command, body in (("handshake", {"Version": 1}), ("stream", {"Type": "member-update"})):
        writer.write(protocol.request(command, body)[1])
    try:
        while data := await reader.read(65536):
            for item in protocol.receive(data):
                events.append(item.body["Event"] if isinstance(item, Record) else "listening")
    finally:
        writer.close()


def faulty(behaviour: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> list[SerfLost]:
    """What a watch says of an agent that behaves so."""

    async def scenario() -> list[SerfLost]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await behaviour(reader, writer)
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, asyncio.timeout(30):
            port = server.sockets[0].getsockname()[1]
            watched = Watched("127.0.0.1", port, timeout_s=0.3)
            watched._task = asyncio.ensure_future(watched._client.watch(watched.seen.append, watched.lost.append))
            await watched.until(lambda: bool(watched.lost))
            watched._task.cancel()
            await asyncio.gather(watched._task, return_exceptions=True)
            await watched._client.close()
            return watched.lost

    return asyncio.run(scenario())


HANDSHAKEN = bytes(msgpack.packb({"Error": "", "Seq": 1}))


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)


async def _garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read()


async def _cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(HANDSHAKEN + b"\x82\xa5Err")
    await writer.drain()


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [(_silent, "did not answer handshake"), (_hang_up, "closed"), (_garbage, "broke"), (_cut_off, "closed")],
)
def test_a_broken_agent_is_lost_with_its_reason(
    behaviour: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], said: str
) -> None:
    assert said in faulty(behaviour)[0].reason


def test_nothing_listening_says_what_to_look_at() -> None:
    async def scenario() -> None:
        with pytest.raises(SerfError, match="is it running"):
            await SerfClient("127.0.0.1", 1).connect()

    asyncio.run(scenario())
