"""Records what real agents send: `python -m tests.serf.record [NAME ...]`; read by tests/serf/recorded.py.

A transcript is the requests in order, as JSON, and the bytes that came back. Needs the Debian package serf.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fusisd.serf.protocol import Connection, Record, Reply
from tests.serf.agents import Agents, address

REQUESTS = Path(__file__).parent / "transcripts"
RECEIVED = Path(__file__).parents[1] / "fuzz" / "corpus" / "serf_rpc"
KEYS = ("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=")
LIMIT_S = 30
Found = Reply | Record


class Recorder:
    """A connection that notes everything. Deliberately without fusisd.serf.client, which the transcripts are to test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._protocol = Connection()
        self._found: list[Found] = []
        self.requests: list[tuple[str, dict[str, Any] | None]] = []
        self.received = b""

    async def ask(self, command: str, /, **body: Any) -> Found:
        """The answer. A keyword argument is a key of the body; without one there is no body."""
        self.requests.append((command, body or None))
        seq, data = self._protocol.request(command, body or None)
        self._writer.write(data)
        return await self.until(lambda item: isinstance(item, Reply) and item.seq == seq)

    async def until(self, wanted: Callable[[Found], bool]) -> Found:
        """The first of what came, or comes, that is wanted."""
        async with asyncio.timeout(LIMIT_S):
            while not (matching := [item for item in self._found if wanted(item)]):
                data = await self._reader.read(65536)
                assert data, "the agent closed the connection"
                self.received += data
                self._found += self._protocol.receive(data)
        return matching[0]

    async def rest(self) -> None:
        """Until the agent closes."""
        async with asyncio.timeout(LIMIT_S):
            while data := await self._reader.read(65536):
                self.received += data
                self._protocol.receive(data)


def record_of(command: str, **wanted: object) -> Callable[[Found], bool]:
    return lambda item: isinstance(item, Record) and item.command == command and wanted.items() <= dict(item.body).items()


async def everything(agents: Agents, ask: Recorder) -> None:
    """Every command on an agent with keys, rpc_auth and a neighbour."""
    await ask.ask("handshake", Version=1)
    await ask.ask("auth", AuthKey="s3cret")
    await ask.ask("stream", Type="*")
    await ask.ask("members")
    await ask.ask("members-filtered", Tags={"role": "agent"}, Status="alive", Name="")
    await ask.ask("members-filtered", Name="nobody")
    await ask.ask("tags", Tags={"role": "agent", "s:web": "80/nat/1"}, DeleteTags=["gone"])
    await ask.ask("tags", Tags={"x": "y" * 600})
    await ask.ask("event", Name="fusis", Payload="", Coalesce=False)
    await ask.until(record_of("stream", Event="user", Name="fusis"))
    await ask.until(record_of("stream", Event="member-update"))
    await ask.ask("join", Existing=["127.0.0.1:1"], Replay=False)
    await ask.ask("join", Existing=[address(2)])
    await ask.ask("force-leave", Node="nobody", Prune=False)
    await ask.ask("query", Name="load", Payload="all", RequestAck=True, Timeout=1_500_000_000)
    asked = await ask.until(record_of("stream", Event="query", Name="load"))
    await ask.ask("respond", ID=asked.body["ID"], Payload="0.5")
    await ask.ask("respond", ID=asked.body["ID"], Payload="0.5")
    await ask.until(record_of("query", Type="done"))
    await ask.ask("stats")
    await ask.ask("get-coordinate", Node="n1")
    await ask.ask("get-coordinate", Node="nobody")
    await ask.ask("install-key", Key=KEYS[1])
    await ask.ask("list-keys")
    await ask.ask("use-key", Key=KEYS[1])
    await ask.ask("remove-key", Key=KEYS[1])  # refused: in use
    await ask.ask("remove-key", Key=KEYS[0])
    await ask.ask("monitor", LogLevel="WARN")
    await ask.until(record_of("monitor"))
    await ask.ask("monitor", LogLevel="ZZ")
    agents.kill(2)
    await ask.until(record_of("stream", Event="member-failed"))
    await ask.ask("force-leave", Node="n2", Prune=True)
    await ask.until(record_of("stream", Event="member-reap"))
    await ask.ask("stream", Type="nonsense")
    await ask.ask("stop", Stop=3)
    await ask.ask("members")
    await ask.ask("leave")
    await ask.rest()


async def unauthenticated(agents: Agents, ask: Recorder) -> None:
    """What an agent with rpc_auth says before it knows us; a request's body is answered like a request."""
    await ask.ask("handshake", Version=1)
    await ask.ask("members")
    await ask.ask("join", Existing=["127.0.0.1:1"])
    await ask.ask("tags", Tags={"a": "b"})
    await ask.ask("stream", Type="*")
    await ask.ask("list-keys")
    await ask.ask("auth", AuthKey="wrong")
    await ask.ask("auth", AuthKey="s3cret")
    await ask.ask("members")


async def bare(agents: Agents, ask: Recorder) -> None:
    """An agent without keys, auth and tags: nil where maps could be, errors with bodies."""
    await ask.ask("handshake", Version=1)
    await ask.ask("members")
    await ask.ask("list-keys")
    await ask.ask("install-key", Key=KEYS[0])
    await ask.ask("stop", Stop=99)
    await ask.ask("respond", ID=99, Payload="")
    await ask.ask("query", Name="nobody", FilterNodes=["nobody"], Timeout=100_000_000)
    await ask.until(record_of("query", Type="done"))


SCRIPTS: dict[str, tuple[Callable[[Agents, Recorder], Awaitable[None]], str, str, tuple[str, ...]]] = {
    "everything": (everything, KEYS[0], "s3cret", ("role=balancer", "gone=soon", "odd=\udcff\udcfe")),
    "unauthenticated": (unauthenticated, "", "s3cret", ()),
    "bare": (bare, "", "", ()),
}


async def main(names: list[str]) -> None:
    for name in names or list(SCRIPTS):
        script, key, auth, tags = SCRIPTS[name]
        with tempfile.TemporaryDirectory() as home, Agents(Path(home)) as agents:
            agents.start(1, *tags, key=key, auth=auth)
            client = await agents.client(1, auth or None)
            if script is everything:
                agents.start(2, "role=agent", "s:web=80", key=key, join=1)
                while len(await client.members()) < 2:
                    await asyncio.sleep(0.1)
            await client.close()
            recorder = Recorder(*await asyncio.open_connection(address(1), 7373))
            await script(agents, recorder)
        lines = ",\n".join(f" {json.dumps(request)}" for request in recorder.requests)
        (REQUESTS / f"{name}.json").write_text(f"[\n{lines}\n]\n")
        RECEIVED.mkdir(exist_ok=True)
        (RECEIVED / name).write_bytes(recorder.received)
        print(f"{name}: {len(recorder.received)} bytes for {len(recorder.requests)} requests")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
