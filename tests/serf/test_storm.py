"""The client under more than a real cluster on one machine can make: thousands of members, storms, an agent that fails. On
the scripted agent; bounds, not times (those are `make bench-serf`)."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from fusisd.serf import MembersSeen, Overflowed, SerfClient, SerfError, SerfLost, UserEvent
from fusisd.serf.session import READ_SIZE
from tests.serf.scripted import Row, ScriptedAgent, packed, row, scripted

MEMBERS, EVENTS, FEW = 2000, 30_000, 1000
READ_AT_ONCE = 2 * READ_SIZE  # and as much may wait in asyncio's own buffer


def run(scenario: Callable[[ScriptedAgent], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120), scripted() as agent:
            await scenario(agent)

    asyncio.run(limited())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


class Watching:
    """A running watch."""

    def __init__(self, agent: ScriptedAgent) -> None:
        self.seen: list[MembersSeen] = []
        self.lost: list[SerfLost] = []
        self._client = SerfClient(*agent.where)

    async def __aenter__(self) -> Watching:
        self._task = asyncio.ensure_future(self._client.watch(self.seen.append, self.lost.append))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def status(self, name: str) -> str:
        return next((member.status for member in self.seen[-1].members if member.name == name), "") if self.seen else ""


def user(n: int) -> Row:
    return {"Event": "user", "LTime": n, "Name": "fusis", "Payload": None, "Coalesce": False}


def test_a_storm_loses_no_state_and_costs_few_lists() -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        agent.populate(MEMBERS)
        async with Watching(agent) as watching:
            await until(lambda: watching.seen)
            assert len(watching.seen[-1].members) == MEMBERS
            passes = 0

            async def tick() -> None:
                nonlocal passes
                while True:
                    passes += 1
                    await asyncio.sleep(0)

            ticking, before = asyncio.ensure_future(tick()), agent.asked.count("members")
            agent.members["node-00001"]["Status"] = "failed"
            event = {"Event": "member-update", "Members": [agent.members["node-00003"]]}
            await agent.storm(event for _ in range(EVENTS))
            agent.members["node-00002"]["Status"] = "left"
            agent.ring(user(0))
            await until(lambda: watching.status("node-00002") == "left")
            ticking.cancel()
            assert watching.status("node-00001") == "failed"
            assert agent.asked.count("members") - before < EVENTS / 50
            assert passes > EVENTS * len(packed(event)) / READ_AT_ONCE, "others had their turns in between"
            assert agent.asked.count("stream") == 1
            assert watching.lost == []

    run(scenario)


def test_a_reader_that_does_not_read_costs_no_memory_and_is_told_how_much_it_missed() -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        client = SerfClient(*agent.where)
        await client.connect()
        stream = await client.stream("*", limit=100)
        tracemalloc.start()
        try:
            event = {"Event": "member-update", "Members": [row(f"n{n}", tags={"a": "b"}) for n in range(20)]}
            await agent.storm(event for _ in range(FEW))
            await client.members()  # what was sent before its answer has come
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        agent.ring({**user(0), "Name": "last"})
        await client.members()
        missed = await anext(stream)
        assert isinstance(missed, Overflowed)
        rest = 0
        while not isinstance(await anext(stream), UserEvent):
            rest += 1
        assert missed.dropped + rest == FEW
        assert held < 2_000_000, "of some 30 MB"
        await client.close()

    run(scenario)


def test_a_stream_goes_on_while_requests_are_made() -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        client = SerfClient(*agent.where)
        await client.connect()
        stream = await client.stream("*", limit=10_000)
        for n in range(500):
            agent.ring(user(n))
            if n % 50 == 0:
                assert await client.members()
        found = [await anext(stream) for _ in range(500)]
        assert [event.ltime for event in found if isinstance(event, UserEvent)] == list(range(500))
        await client.close()
        with pytest.raises(SerfError, match="closed here"):
            await anext(stream)

    run(scenario)


def test_an_answer_that_comes_too_late_is_nobody_s() -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inside, outside = await asyncio.open_connection(*agent.where)

            async def back() -> None:
                while data := await inside.read(65536):
                    await held.wait()
                    writer.write(data)

            returning = asyncio.ensure_future(back())
            while data := await reader.read(65536):
                outside.write(data)
            outside.close()
            await returning
            writer.close()
            over.set()

        held, over = asyncio.Event(), asyncio.Event()
        held.set()
        async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
            client = SerfClient(*server.sockets[0].getsockname()[:2], timeout_s=0.2)
            await client.connect()
            held.clear()
            with pytest.raises(SerfError, match="did not answer stats within"):
                await client.stats()
            with pytest.raises(SerfError, match="did not answer stream within"):
                await client.stream()
            held.set()
            assert len(await client.members()) == 1
            agent.ring(user(1))
            assert len(await client.members()) == 1
            await client.close()
            await over.wait()

    run(scenario)


def test_each_restart_of_the_agent_is_one_loss_one_stream_and_a_new_epoch() -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        async with Watching(agent) as watching:
            await until(lambda: watching.seen)
            for epoch in (2, 3):
                await agent.stop()
                await until(lambda epoch=epoch: len(watching.lost) == epoch - 1)
                await agent.start()
                await until(lambda epoch=epoch: watching.seen[-1].epoch == epoch)
            assert [seen.epoch for seen in watching.seen] == [1, 2, 3]
            assert agent.asked.count("stream") == 3
            assert len(watching.lost) == 2

    run(scenario)


def test_a_list_with_a_member_that_makes_no_sense_is_a_loss_and_the_next_is_seen() -> None:
    async def scenario(agent: ScriptedAgent) -> None:
        agent.members["odd"] = row("odd", tags={"a": 5})  # type: ignore[dict-item]
        async with Watching(agent) as watching:
            await until(lambda: watching.lost)
            assert "'odd' has a tag that is no text" in watching.lost[0].reason
            del agent.members["odd"]
            await until(lambda: watching.seen)

    run(scenario)
