"""An agent's RPC on asyncio that does what a test says: as a real one where it conforms, worse than one where it is told to.

It speaks the wire by itself, without fusisd.serf.protocol, which it is to test; tests/serf/test_conformance.py runs the same
tests on it and on real agents. Does not: gossip. What other nodes would do is done to `members` and by `ring`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack

TAGS_LIMIT = 512
EVENTS = ("member-join", "member-leave", "member-failed", "member-update", "member-reap", "user", "query", "*", "")
Row = dict[str, Any]


def row(name: str, addr: bytes = b"\x7f\0\0\1", status: str = "alive", tags: dict[str, str] | None = None) -> Row:
    """A member as the wire has it."""
    versions = {f"{kind}{end}": 5 for kind in ("Protocol", "Delegate") for end in ("Min", "Max", "Cur")}
    return {"Name": name, "Addr": addr, "Port": 7946, "Tags": tags, "Status": status, **versions}


def packed(*objects: object) -> bytes:
    return b"".join(msgpack.packb(item) for item in objects)


@dataclass(eq=False)
class Peer:
    """A client's connection."""

    writer: asyncio.StreamWriter
    greeted: bool = False
    known: bool = False
    streams: dict[int, str] = field(default_factory=dict)
    queries: dict[int, Callable[[object], None]] = field(default_factory=dict)  # by ID: where a response goes

    def send(self, seq: int, error: str = "", body: object = None) -> None:
        objects: list[object] = [{"Error": error, "Seq": seq}]
        self.writer.write(packed(*objects) if body is None else packed(*objects, body))


class ScriptedAgent:
    """One agent, named n1. `members`: its list, free to be changed. `asked`: the commands that came, in order."""

    def __init__(self, auth: str = "") -> None:
        self.members: dict[str, Row] = {"n1": row("n1")}
        self.asked: list[str] = []
        self.peers: list[Peer] = []
        self.where = ("127.0.0.1", 0)
        self._key, self._queries = auth, 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, *self.where)
        self.where = self._server.sockets[0].getsockname()[:2]

    async def stop(self) -> None:
        """As if killed; `start` brings it back to the same port."""
        assert self._server is not None
        self._server.close()
        for peer in list(self.peers):
            peer.writer.transport.abort()
        await self._server.wait_closed()

    def populate(self, number: int) -> None:
        """A list of so many, as fusis-agents would make it."""
        for n in range(1, number):
            tags = {"role": "agent", "s:web": f"80/nat/{n % 7 + 1}"}
            self.members[f"node-{n:05}"] = row(f"node-{n:05}", bytes([10, 0, n >> 8, n & 255]), tags=tags)

    def ring(self, event: Row) -> None:
        """An event to every stream that wants it."""
        for peer in self.peers:
            self._to(peer, event)

    async def storm(self, events: Iterable[Row]) -> None:
        """As `ring`, as fast as the clients take it from their sockets, answering them in between."""
        for event in events:
            self.ring(event)
            await asyncio.sleep(0)
            for peer in self.peers:
                await peer.writer.drain()

    def _to(self, peer: Peer, event: Row) -> None:
        kind, name = event["Event"], event.get("Name")
        for seq, types in peer.streams.items():
            if {kind, f"{kind}:{name}", "*"} & set((types or "*").split(",")):
                peer.send(seq, body=event)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(writer, known=not self._key)
        self.peers.append(peer)
        try:
            async for command, seq, next_body in _requests(reader):
                self.asked.append(command)
                if not self._let_in(peer, command, seq):
                    continue
                if command not in TAKES_BODY | BODILESS:
                    peer.send(seq, "Unsupported command")
                    break
                answer = getattr(self, f"_{command.replace('-', '_')}")
                answer(peer, seq, await next_body() if command in TAKES_BODY else {})
                if command == "leave":
                    await writer.drain()
                    break
        except (ConnectionError, asyncio.IncompleteReadError, re.error):
            pass
        finally:
            self.peers.remove(peer)
            writer.close()

    def _let_in(self, peer: Peer, command: str, seq: int) -> bool:
        if not peer.greeted and command != "handshake":
            peer.send(seq, "Handshake required")
            raise ConnectionError("a real one hangs up, too")
        if not peer.known and command not in ("handshake", "auth"):
            peer.send(seq, "Authentication required")
            return False
        return True

    def _handshake(self, peer: Peer, seq: int, body: Row) -> None:
        peer.greeted = True
        peer.send(seq)

    def _auth(self, peer: Peer, seq: int, body: Row) -> None:
        peer.known = body["AuthKey"] == self._key
        peer.send(seq, "" if peer.known else "Invalid authentication token")

    def _members(self, peer: Peer, seq: int, body: Row) -> None:
        peer.send(seq, body={"Members": list(self.members.values())})

    def _members_filtered(self, peer: Peer, seq: int, body: Row) -> None:
        def fits(member: Row) -> bool:
            tags = member["Tags"] or {}
            pairs = [(body.get("Name"), member["Name"]), (body.get("Status"), member["Status"])]
            pairs += [(wanted, tags.get(tag, "")) for tag, wanted in (body.get("Tags") or {}).items()]
            return all(not wanted or re.search(f"^{wanted}$", found) for wanted, found in pairs)

        peer.send(seq, body={"Members": [member for member in self.members.values() if fits(member)]})

    def _join(self, peer: Peer, seq: int, body: Row) -> None:
        bad = [address for address in body["Existing"] if address.endswith(":1")]
        peer.send(seq, f"Failed to join {bad[0]}: connection refused" if bad else "", {"Num": 0 if bad else 1})

    def _leave(self, peer: Peer, seq: int, body: Row) -> None:
        peer.send(seq)

    def _force_leave(self, peer: Peer, seq: int, body: Row) -> None:
        member = self.members.get(body["Node"])
        peer.send(seq)
        if member is None:
            return
        member["Status"] = "left"
        if body.get("Prune"):
            del self.members[body["Node"]]
        self.ring({"Event": "member-reap" if body.get("Prune") else "member-leave", "Members": [member]})

    def _tags(self, peer: Peer, seq: int, body: Row) -> None:
        us = self.members["n1"]
        tags = {tag: text for tag, text in (us["Tags"] or {}).items() if tag not in (body.get("DeleteTags") or [])}
        tags.update(body.get("Tags") or {})
        if len(packed(tags)) > TAGS_LIMIT:
            peer.send(seq, "Encoded length of tags exceeds limit of 512 bytes")
            return
        us["Tags"] = tags
        peer.send(seq)
        self.ring({"Event": "member-update", "Members": [us]})

    def _event(self, peer: Peer, seq: int, body: Row) -> None:
        peer.send(seq)
        event = {"Event": "user", "LTime": 1, "Name": body["Name"], "Payload": body.get("Payload") or None}
        self.ring({**event, "Coalesce": body.get("Coalesce", False)})

    def _query(self, peer: Peer, seq: int, body: Row) -> None:
        peer.send(seq)
        self._queries += 1
        number = self._queries
        if "n1" in (body.get("FilterNodes") or ["n1"]):
            for other in self.peers:
                other.queries[number] = lambda payload: peer.send(
                    seq, body={"Type": "response", "From": "n1", "Payload": payload}
                )
            self.ring({"Event": "query", "ID": number, "LTime": 1, "Name": body["Name"], "Payload": body.get("Payload")})
            if body.get("RequestAck"):
                peer.send(seq, body={"Type": "ack", "From": "n1", "Payload": None})
        done = {"Type": "done", "From": "", "Payload": None}
        asyncio.get_running_loop().call_later(body["Timeout"] / 1e9, lambda: peer.send(seq, body=done))

    def _respond(self, peer: Peer, seq: int, body: Row) -> None:
        answer = peer.queries.pop(body["ID"], None)
        if answer is None:
            peer.send(seq, "No pending queries matching ID")
            return
        peer.send(seq)
        answer(body.get("Payload"))

    def _stream(self, peer: Peer, seq: int, body: Row) -> None:
        if {kind.partition(":")[0] for kind in body["Type"].split(",")} - set(EVENTS):
            peer.send(seq, "Invalid event filter")
            return
        peer.streams[seq] = body["Type"]
        peer.send(seq)

    def _monitor(self, peer: Peer, seq: int, body: Row) -> None:
        if body["LogLevel"] not in ("TRACE", "DEBUG", "INFO", "WARN", "ERR"):
            peer.send(seq, f"Unknown log level: {body['LogLevel']}")
            return
        peer.send(seq)
        peer.send(seq, body={"Log": "2026/11/25 00:00:00 [INFO] agent: scripted"})

    def _stop(self, peer: Peer, seq: int, body: Row) -> None:
        peer.streams.pop(body["Stop"], None)
        peer.send(seq)

    def _stats(self, peer: Peer, seq: int, body: Row) -> None:
        peer.send(seq, body={"agent": {"name": "n1"}, "serf": {"members": str(len(self.members))}})

    def _get_coordinate(self, peer: Peer, seq: int, body: Row) -> None:
        coord = {"Vec": [0.0] * 8, "Error": 1.5, "Adjustment": 0.0, "Height": 1e-05}
        known = body["Node"] in self.members
        peer.send(seq, body={"Coord": coord if known else {**coord, "Vec": None}, "Ok": known})

    def _list_keys(self, peer: Peer, seq: int, body: Row) -> None:
        report = {"NumNodes": 1, "NumResp": 1, "NumErr": 1, "Messages": {"n1": "Keyring is empty"}, "Keys": None}
        peer.send(seq, "1/1 nodes reported failure", report)

    _install_key = _use_key = _remove_key = _list_keys


TAKES_BODY = {
    *("handshake", "auth", "members-filtered", "join", "force-leave", "tags", "event", "query", "respond", "stream"),
    *("monitor", "stop", "get-coordinate", "install-key", "use-key", "remove-key"),
}
BODILESS = {"members", "leave", "stats", "list-keys"}


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[tuple[str, int, Any]]:
    """Command, Seq, and how to read the body: not read, it is the next header, as in a real agent."""
    unpacker = msgpack.Unpacker(unicode_errors="surrogateescape")

    async def next_object() -> Row:
        while True:
            for item in unpacker:
                return dict(item)
            data = await reader.read(65536)
            if not data:
                raise ConnectionError("the client is gone")
            unpacker.feed(data)

    header: Row = {}
    while True:
        header.update(await next_object())
        yield header["Command"], header["Seq"], next_object


@asynccontextmanager
async def scripted(auth: str = "") -> AsyncIterator[ScriptedAgent]:
    """A running one."""
    agent = ScriptedAgent(auth)
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()
