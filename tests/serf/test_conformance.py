"""The same tests of every verb on a real agent and on the scripted one, which other tests trust because of these."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest

from fusisd.serf import (
    MemberEvent,
    QueryAck,
    QueryEvent,
    QueryResponse,
    SerfClient,
    SerfError,
    SerfMisuse,
    SerfRefused,
    Subscription,
    UserEvent,
    connected,
    refused_keys,
)
from fusisd.serf.values import Event
from tests.serf.agents import Agents
from tests.serf.scripted import scripted

Where = tuple[str, int]
Scenario = Callable[[Where], Awaitable[None]]


@pytest.fixture(params=["real", "scripted"])
def run(request: pytest.FixtureRequest, agents: Agents) -> Callable[..., None]:
    """Runs a scenario on an agent n1 of this kind, perhaps with an rpc_auth."""

    @asynccontextmanager
    async def agent(auth: str) -> AsyncIterator[Where]:
        if request.param == "scripted":
            async with scripted(auth) as fake:
                yield fake.where
        else:
            where = agents.start(1, auth=auth)
            await (await agents.client(1, auth or None)).close()
            yield where

    async def limited(scenario: Scenario, auth: str) -> None:
        async with asyncio.timeout(60), agent(auth) as where:
            before = asyncio.all_tasks()
            await scenario(where)
            assert asyncio.all_tasks() - before == set() or request.param == "scripted", "nothing of ours is left running"

    return lambda scenario, auth="": asyncio.run(limited(scenario, auth))


@asynccontextmanager
async def client_of(where: Where, auth: str | None = None) -> AsyncIterator[SerfClient]:
    client = await connected(*where, auth, 20)
    try:
        yield client
    finally:
        await client.close()


async def first(stream: Subscription[Event], kind: type, name: str) -> Event:
    """The next event of this kind and name."""
    async for event in stream:
        if isinstance(event, kind) and name in (getattr(event, "name", ""), getattr(event, "kind", "")):
            return event
    raise AssertionError("the stream ended")


def test_members_and_tags(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client:
            await client.set_tags({"s:web": "80", "gone": "soon"})
            await client.set_tags({"role": "agent"}, ["gone"])
            (us,) = await client.members()
            assert (us.name, us.status, dict(us.tags)) == ("n1", "alive", {"s:web": "80", "role": "agent"})
            assert us.address.startswith("127.")
            with pytest.raises(SerfRefused, match="512"):
                await client.set_tags({"x": "y" * 600})
            assert await client.members() == (us,), "the connection is as good as before"

    run(scenario)


def test_filters_are_whole_expressions(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client:
            await client.set_tags({"role": "agent"})
            for filters, found in (
                ({"name": "n1"}, 1),
                ({"name": "n"}, 0),
                ({"name": "x|1"}, 0),
                ({"name": "n.|x", "status": "alive"}, 1),
                ({"tags": {"role": "agent|balancer"}}, 1),
                ({"tags": {"none": ".+"}}, 0),
            ):
                assert len(await client.members_filtered(**filters)) == found, filters  # type: ignore[arg-type]

    run(scenario)


def test_what_go_cannot_read_ends_the_connection_and_is_said(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client:
            with pytest.raises(SerfError, match="closed"):
                await client.members_filtered(name="[")
            with pytest.raises(SerfError, match="closed"):
                await client.members()
            await client.connect()
            assert await client.members()

    run(scenario)


def test_join_and_force_leave(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client:
            with pytest.raises(SerfRefused) as caught:
                await client.join(["127.0.0.1:1"])
            assert caught.value.body == {"Num": 0}
            await client.force_leave("nobody")
            await client.force_leave("nobody", prune=True)

    run(scenario)


def test_events_come_on_the_stream_that_asks_for_them(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client, client_of(where) as other:
            stream = await client.stream("user:fusis,member-update")
            await other.event("other", b"not for us")
            await other.event("fusis", b"\x00\xff")
            event = await anext(stream)
            assert event == UserEvent("fusis", b"\x00\xff", getattr(event, "ltime", 0), False)
            await client.set_tags({"a": "b"})
            update = await first(stream, MemberEvent, "member-update")
            assert isinstance(update, MemberEvent)
            assert [member.name for member in update.members] == ["n1"]
            await client.stop(stream)
            assert [event async for event in stream] == []
            with pytest.raises(SerfRefused, match="Invalid event filter"):
                await client.stream("nonsense")
            assert await client.members()

    run(scenario)


def test_a_query_is_acknowledged_answered_and_over_in_its_time(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client, client_of(where) as other:
            stream = await other.stream("query:load")
            asking = asyncio.ensure_future(gathered(client))
            event = await first(stream, QueryEvent, "load")
            assert isinstance(event, QueryEvent) and event.payload == b"all"
            await other.respond(event.id, b"0.5")
            with pytest.raises(SerfRefused):
                await other.respond(event.id, b"twice")
            assert await asking == {QueryAck("n1"), QueryResponse("n1", b"0.5")}
            assert [answer async for answer in client.query("load", nodes=["nobody"], timeout_s=0.1)] == []

    async def gathered(client: SerfClient) -> set[object]:
        return {answer async for answer in client.query("load", b"all", ack=True, timeout_s=1.0)}

    run(scenario)


def test_what_the_agent_tells_of_itself(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client:
            assert (await client.stats())["agent"]["name"] == "n1"
            found = await client.coordinate("n1")
            assert found is not None and len(found.vector) == 8
            assert await client.coordinate("nobody") is None
            with pytest.raises(SerfRefused, match="Unknown log level"):
                await client.monitor("ZZ")
            await client.monitor("ERR")
            with pytest.raises(SerfRefused, match="1/1 nodes") as caught:
                await client.list_keys()
            assert refused_keys(caught.value).messages.keys() == {"n1"}

    run(scenario)


def test_an_agent_that_does_not_know_us(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        with pytest.raises(SerfRefused, match="Invalid authentication"):
            await SerfClient(*where, auth_key="wrong").connect()
        async with client_of(where) as stranger:
            for _ in range(2):
                with pytest.raises(SerfRefused, match="Authentication required"):
                    await stranger.set_tags({"a": "b"})
                with pytest.raises(SerfRefused, match="Authentication required"):
                    await stranger.stream()
            await stranger.call("auth", {"AuthKey": "s3cret"})
            assert await stranger.members()
        async with client_of(where, "s3cret") as friend:
            assert await friend.members()

    run(scenario, "s3cret")


def test_leaving_is_answered_and_ends_the_connection(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client:
            stream = await client.stream()
            await client.leave()
            with pytest.raises(SerfError, match="closed"):
                async for _ in stream:
                    pass

    run(scenario)


def test_a_misuse_leaves_the_connection_as_it_was(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client:
            with pytest.raises(SerfMisuse):
                await client.event(b"bytes")  # type: ignore[arg-type]
            with pytest.raises(SerfMisuse):
                await client.call("members", {})
            odd: Any = client
            for verb, given in (
                (odd.join, "10.0.0.1"), (odd.join, 5), (odd.set_tags, None), (odd.set_tags, [1]), (odd.stop, None),
                (odd.stream, 5), (lambda words: odd.members_filtered(tags=words), ["a"]),
                (lambda words: odd.call(words, {}), []), (lambda words: odd.call("auth", words), [1]),
            ):  # fmt: skip
                with pytest.raises(SerfMisuse):
                    await verb(given)
            for asked in ({"timeout_s": math.nan}, {"timeout_s": math.inf}, {"timeout_s": -1}, {"nodes": "abc"}):
                with pytest.raises(SerfMisuse):
                    await anext(odd.query("x", **asked))
            assert await client.members()

    run(scenario)


def test_requests_that_overtake_each_other_get_their_own_answers(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        async with client_of(where) as client:
            results = await asyncio.gather(*(client.coordinate(name) for name in ("n1", "nobody") * 20))
            assert [found is not None for found in results] == [True, False] * 20

    run(scenario)


def test_a_body_that_is_not_expected_runs_the_command_twice_which_is_why_it_is_refused(run: Callable[..., None]) -> None:
    async def scenario(where: Where) -> None:
        reader, writer = await asyncio.open_connection(*where)
        header = {"Command": "members", "Seq": 2}
        for item in ({"Command": "handshake", "Seq": 1}, {"Version": 1}, header, {}):
            writer.write(msgpack.packb(item))
        unpacker, found = msgpack.Unpacker(), []
        while len(found) < 5:
            unpacker.feed(await reader.read(65536))
            found += list(unpacker)
        assert [item.get("Seq") for item in found] == [1, 2, None, 2, None]
        writer.close()

    run(scenario)
