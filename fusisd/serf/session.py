"""One connection to an agent's RPC over asyncio: pipelined requests, each with a time limit, and bounded subscriptions.

One task reads, hands each answer to who waits for it and each record to its subscription. An agent that sees its client
read slowly drops events without a word (512 waiting, measured 2026-11), so records are taken off the wire at once and
wait here, so many at most: what does not fit is dropped and the reader is told (`Overflowed`), who then lists again.
Does not: connect again (watch.py), or know what bodies mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fusisd.serf.errors import SerfError, SerfMisuse, SerfProtocolError, SerfRefused
from fusisd.serf.messages import COMMANDS
from fusisd.serf.protocol import Connection, Record, Reply

T = TypeVar("T")

READ_SIZE = 65536
Decode = Callable[[Mapping[str, Any]], T]


@dataclass(frozen=True, slots=True)
class Overflowed:
    """So many records were dropped here, because nobody took them: list again, what they said is not known."""

    dropped: int


class Subscription(Generic[T]):
    """The records of one `stream`, `monitor` or `query`: an asynchronous iterator with one reader.

    It ends when it was stopped or is complete, and raises SerfError when the connection is lost. A record weighs one and
    one for each member in it; `limit` is what may wait.
    """

    def __init__(self, seq: int, decode: Decode[T], limit: int) -> None:
        """Made by Session.subscribe."""
        self.seq = seq
        self._decode, self._limit = decode, limit
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._weight, self._dropped = 0, 0
        self._news = asyncio.Event()
        self._over = False
        self._lost: str | None = None

    def __aiter__(self) -> AsyncIterator[T | Overflowed]:
        """Itself."""
        return self

    async def __anext__(self) -> T | Overflowed:
        """The next record, or `Overflowed` where some are missing. Raises SerfError."""
        while True:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                return Overflowed(dropped)
            if self._waiting:
                body = self._waiting.popleft()
                self._weight -= _weight(body)
                return self._decode(body)
            if self._lost is not None:
                raise SerfError(self._lost)
            if self._over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    @property
    def over(self) -> str:
        """Why nothing more comes, "" while something may."""
        return (self._lost or "it was stopped") if self._over else ""

    async def rung(self, limit_s: float) -> bool:
        """Whether anything came within so many seconds (or the end); all that waits is thrown away unread."""
        try:
            async with asyncio.timeout(limit_s):
                if not self._over:
                    await self._news.wait()
        except TimeoutError:
            return False
        self._waiting.clear()
        self._weight = self._dropped = 0
        if not self._over:
            self._news.clear()
        return True

    def put(self, body: Mapping[str, Any]) -> None:
        """For the session: a record came."""
        weight = _weight(body)
        if self._waiting and self._weight + weight > self._limit:
            self._dropped += len(self._waiting)
            self._waiting.clear()
            self._weight = 0
        self._waiting.append(body)
        self._weight += weight
        self._news.set()

    def end(self, lost: str | None = None) -> None:
        """For the session: nothing more comes, because of `lost` or because it is complete."""
        self._over, self._lost = True, lost
        self._news.set()


class Session:
    """One connection. Lives on one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float) -> None:
        """Made by `open_session`."""
        self._writer, self._timeout_s = writer, timeout_s
        self._protocol = Connection()
        self._answers: dict[int, asyncio.Future[Reply]] = {}
        self._subscriptions: dict[int, Subscription[Any]] = {}
        self._lost: str | None = None
        self._task = asyncio.create_task(self._read(reader))

    @property
    def lost(self) -> str | None:
        """Why the connection is of no use any more, None while it is."""
        return self._lost

    async def close(self) -> None:
        """End the connection; again does nothing. What waits for it gets SerfError."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._lose("the connection to the Serf agent was closed here")
        self._writer.transport.abort()

    async def call(self, command: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """One request and its answer's body. Raises SerfError (SerfRefused with the agent's words), SerfMisuse."""
        _, answer = self._send(command, body)
        return await self._answer(answer, command)

    async def subscribe(self, command: str, body: Mapping[str, Any], decode: Decode[T], limit: int) -> Subscription[T]:
        """Begin a `stream`, `monitor` or `query`. Raises SerfError, SerfMisuse."""
        seq, answer = self._send(command, body)
        subscription = self._subscriptions[seq] = Subscription(seq, decode, limit)
        try:
            await self._answer(answer, command)
        except BaseException:
            del self._subscriptions[seq]
            raise
        return subscription

    def forget(self, subscription: Subscription[Any]) -> None:
        """Nobody reads it any more; what still comes for it is dropped."""
        self._subscriptions.pop(subscription.seq, None)
        subscription.end()

    def _send(self, command: str, body: Mapping[str, Any] | None) -> tuple[int, asyncio.Future[Reply]]:
        if self._lost is not None:
            raise SerfError(self._lost)
        seq, data = self._protocol.request(command, body)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answers[seq] = answer
        answer.add_done_callback(lambda _: self._answers.pop(seq, None))
        self._writer.write(data)
        return seq, answer

    async def _answer(self, answer: asyncio.Future[Reply], command: str) -> Mapping[str, Any]:
        """Wait for it; given up, the future is cancelled and with that forgotten."""
        limit_s = self._timeout_s + COMMANDS[command].takes_s
        try:
            async with asyncio.timeout(limit_s):
                reply = await answer
        except TimeoutError:
            raise SerfError(f"the Serf agent did not answer {command} within {limit_s:g} s") from None
        if reply.error:
            raise SerfRefused(command, reply.error, reply.body)
        return reply.body

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand what comes to who waits for it, until the connection ends."""
        reason = "the Serf agent closed the connection"
        try:
            while data := await reader.read(READ_SIZE):
                for item in self._protocol.receive(data):
                    self._deliver(item)
        except (OSError, SerfProtocolError) as error:
            reason = f"the connection to the Serf agent broke: {error}"
        self._lose(reason)

    def _deliver(self, item: Reply | Record) -> None:
        if isinstance(item, Reply):
            answer = self._answers.get(item.seq)
            if answer is not None and not answer.done():
                answer.set_result(item)
        elif (subscription := self._subscriptions.get(item.seq)) is not None:
            subscription.put(item.body)

    def _lose(self, reason: str) -> None:
        """The connection is over, once: everybody who waits is told."""
        if self._lost is not None:
            return
        self._lost = reason
        for answer in list(self._answers.values()):
            if not answer.done():
                answer.set_exception(SerfError(reason))
        for subscription in self._subscriptions.values():
            subscription.end(reason)


async def open_session(host: str, port: int, timeout_s: float) -> Session:
    """A connection on which nothing was said yet. Raises SerfError, SerfMisuse."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else str(error)
        raise SerfError(f"no Serf agent answers at {host}:{port} ({why}); is it running, with -rpc-addr?") from None
    except (TypeError, ValueError, OverflowError):  # UnicodeError: no name that IDNA could write
        raise SerfMisuse(f"{host!r} and {port!r} are no host and port") from None
    return Session(reader, writer, timeout_s)


def _weight(body: Mapping[str, Any]) -> int:
    rows = body.get("Members")
    return 1 + (len(rows) if isinstance(rows, list) else 0)
