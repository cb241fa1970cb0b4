"""Serf's RPC over asyncio: one connection, pipelined requests, every wait limited; and `watch`, which follows the members.

`watch` keeps to what makes Serf's events safe to use: the list is the truth and an event only a doorbell (events repeat,
go missing and carry stale states; see docs/architecture.md). It subscribes once per connection, lists, and lists again at
each ring and 50, 200 and 500 ms later, because the list follows a ring by up to that; besides every 10 s.
Does not: start an agent (supervisor.py), or decide what a member means.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fusisd.errors import FusisError
from fusisd.serf import protocol
from fusisd.serf.protocol import Connection, Member, Record, RemoteProtocolError, Reply

DOORBELL = "fusis"
"""The user event by which an agent says: my tags changed, list again. It carries nothing that anybody believes."""

EVENTS = f"member-join,member-leave,member-failed,member-update,member-reap,user:{DOORBELL}"
RELIST_AFTER_S = (0.0, 0.05, 0.2, 0.5)
RELIST_PERIOD_S = 10.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class SerfError(FusisError):
    """The agent refused a request, or cannot be reached; `str()` says which and what to do."""


@dataclass(frozen=True, slots=True)
class MembersSeen:
    """A member list; `epoch` counts connections, so a higher one means that our agent may have been restarted."""

    members: tuple[Member, ...]
    epoch: int


@dataclass(frozen=True, slots=True)
class SerfLost:
    """The agent is not reachable now."""

    reason: str


class SerfClient:
    """One connection to an agent's RPC port. Lives on one event loop."""

    def __init__(self, host: str, port: int, auth_key: str | None = None, timeout_s: float = 5.0) -> None:
        """`auth_key`: the agent's rpc_auth, None when it has none. `timeout_s` limits each request."""
        self._where, self._auth_key, self._timeout_s = (host, port), auth_key, timeout_s
        self._protocol = Connection()
        self._writer: asyncio.StreamWriter | None = None
        self._reader_task: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[Reply]] = {}
        self._ring = asyncio.Event()
        self._lost: asyncio.Future[str] | None = None

    async def connect(self) -> None:
        """Connect, shake hands, authenticate. Raises SerfError."""
        host, port = self._where
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, self._writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            why = "no answer" if isinstance(error, TimeoutError) else str(error)
            raise SerfError(f"no Serf agent answers at {host}:{port} ({why}); is it running, with -rpc-addr?") from None
        self._protocol = Connection()
        self._lost = asyncio.get_running_loop().create_future()
        self._reader_task = asyncio.create_task(self._read(reader))
        await self.call("handshake", {"Version": protocol.VERSION})
        if self._auth_key is not None:
            await self.call("auth", {"AuthKey": self._auth_key})

    async def close(self) -> None:
        """End the connection; again does nothing."""
        task, self._reader_task = self._reader_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def call(self, command: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """One request and its answer's body. Raises SerfError."""
        if self._writer is None or self._lost is None:
            raise SerfError("not connected to a Serf agent")
        if self._lost.done():
            raise SerfError(self._lost.result())
        seq, data = self._protocol.request(command, body)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answers[seq] = answer
        self._writer.write(data)
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await answer
        except TimeoutError:
            raise SerfError(f"the Serf agent did not answer {command} within {self._timeout_s:g} s") from None
        finally:
            self._answers.pop(seq, None)
        if reply.error:
            raise SerfError(f"the Serf agent refused {command}: {reply.error}")
        return reply.body

    async def members(self) -> tuple[Member, ...]:
        """The member list. Raises SerfError."""
        try:
            return protocol.members(await self.call("members"))
        except RemoteProtocolError as error:
            raise SerfError(f"the Serf agent's member list makes no sense: {error}") from None

    async def join(self, addresses: list[str], replay: bool = False) -> int:
        """Join a cluster by any of these `address[:port]`; how many answered. Raises SerfError."""
        return int((await self.call("join", {"Existing": addresses, "Replay": replay})).get("Num", 0))

    async def leave(self) -> None:
        """The agent leaves the cluster and ends. Raises SerfError."""
        await self.call("leave")

    async def force_leave(self, node: str, prune: bool = False) -> None:
        """A failed node becomes left (with `prune`: forgotten). Raises SerfError."""
        await self.call("force-leave", {"Node": node, "Prune": prune})

    async def set_tags(self, tags: Mapping[str, str], delete: tuple[str, ...] = ()) -> None:
        """Set and delete tags of the agent's own node. Raises SerfError (they may hold 512 bytes in all)."""
        await self.call("tags", {"Tags": dict(tags), "DeleteTags": list(delete)})

    async def event(self, name: str, payload: bytes = b"", coalesce: bool = False) -> None:
        """Send a user event to every node. Raises SerfError."""
        await self.call("event", {"Name": name, "Payload": payload, "Coalesce": coalesce})

    async def stats(self) -> Mapping[str, Any]:
        """The agent's statistics: maps of text. Raises SerfError."""
        return await self.call("stats")

    async def watch(self, on_seen: Callable[[MembersSeen], None], on_lost: Callable[[SerfLost], None]) -> None:
        """Follow the members for ever, over as many connections as it takes; ends when cancelled.

        `on_seen` gets the first list of each connection and then each that differs; `on_lost` each loss, once.
        """
        epoch, failures, told = 0, 0, False
        while True:
            try:
                await self.connect()
                epoch, failures, told = epoch + 1, 0, False
                reason = await self._follow(on_seen, epoch)
            except SerfError as error:
                reason = str(error)
            await self.close()
            if not told:
                told = True
                on_lost(SerfLost(reason))
            pause_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            failures += 1
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))

    async def _follow(self, on_seen: Callable[[MembersSeen], None], epoch: int) -> str:
        """List at each ring until the connection is lost; why it was. Raises SerfError."""
        assert self._lost is not None  # connect() made it
        self._ring.set()
        await self.call("stream", {"Type": EVENTS})
        known: tuple[Member, ...] | None = None
        while not self._lost.done():
            rung = await self._rung()
            for after_s in RELIST_AFTER_S if rung else (0.0,):
                await asyncio.sleep(after_s)
                members = tuple(sorted(await self.members(), key=lambda member: member.name))
                if members != known:
                    known = members
                    on_seen(MembersSeen(members, epoch))
                if self._ring.is_set():
                    break  # a newer ring: begin its series anew
        return self._lost.result()

    async def _rung(self) -> bool:
        """Wait for a ring, for the period, or for the loss of the connection; whether it was a ring."""
        assert self._lost is not None
        ring = asyncio.ensure_future(self._ring.wait())
        either: set[asyncio.Future[Any]] = {ring, self._lost}
        try:
            done, _ = await asyncio.wait(either, timeout=RELIST_PERIOD_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ring.cancel()
        self._ring.clear()
        return ring in done

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand what comes to who waits for it, until the connection ends."""
        reason = "the Serf agent closed the connection"
        try:
            while data := await reader.read(65536):
                for item in self._protocol.receive(data):
                    if isinstance(item, Record):
                        self._ring.set()
                    elif (answer := self._answers.get(item.seq)) is not None and not answer.done():
                        answer.set_result(item)
        except (OSError, RemoteProtocolError) as error:
            reason = f"the connection to the Serf agent broke: {error}"
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(SerfError(reason))
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)


async def connected(host: str, port: int, auth_key: str | None, limit_s: float) -> SerfClient:
    """A connected client, tried again until `limit_s` is over (a starting agent listens after about a second)."""
    deadline_s = asyncio.get_running_loop().time() + limit_s
    while True:
        client = SerfClient(host, port, auth_key)
        try:
            await client.connect()
        except SerfError:
            await client.close()
            if asyncio.get_running_loop().time() > deadline_s:
                raise
            await asyncio.sleep(0.1)
        else:
            return client
