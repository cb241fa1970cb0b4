"""Serf's RPC as verbs over asyncio, one connection at a time, every wait limited; and `watch`, which follows the members.

Does not: start an agent (supervisor.py), connect again by itself (`watch` does), or decide what a member means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from fusisd.serf import values
from fusisd.serf.errors import SerfError, SerfRefused
from fusisd.serf.messages import VERSION
from fusisd.serf.session import Overflowed, Session, Subscription, open_session
from fusisd.serf.values import Answer, Coordinate, Event, KeyReport, LogLine, Member, QueryAck, QueryDone, QueryResponse
from fusisd.serf.watch import DOORBELL, MembersSeen, SerfLost, watch

__all__ = ["DOORBELL", "MembersSeen", "SerfClient", "SerfError", "SerfLost", "connected"]

QUERY_LIMIT_S = 3600.0
ANSWERS_KEPT = 1 << 16  # of a query: every node of the largest cluster may answer before anybody reads


class SerfClient:
    """One connection to an agent's RPC port. Lives on one event loop.

    Every verb raises SerfError when the agent refuses (SerfRefused), does not answer in time or is gone, and SerfMisuse
    when no agent could do what is asked. A cancelled or timed-out request may have been done all the same.
    """

    def __init__(self, host: str, port: int, auth_key: str | None = None, timeout_s: float = 5.0) -> None:
        """`auth_key`: the agent's rpc_auth, None when it has none. `timeout_s` limits each request, beyond the time that
        the agent itself takes for it by the protocol's table (`join`, `leave`, keys)."""
        self._where, self._auth_key, self._timeout_s = (host, port), auth_key, timeout_s
        self._session: Session | None = None

    async def connect(self) -> None:
        """Connect, shake hands, authenticate; a connection that was open is closed. Raises SerfError."""
        await self.close()
        self._session = await open_session(*self._where, self._timeout_s)
        try:
            await self.call("handshake", {"Version": VERSION})
            if self._auth_key is not None:
                await self.call("auth", {"AuthKey": self._auth_key})
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the connection; again does nothing."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, command: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Any request of the protocol that has one answer, and that answer's body as it came."""
        return await self._open().call(command, body)

    async def members(self) -> tuple[Member, ...]:
        """The member list, in no order."""
        return values.members(await self.call("members"))

    async def members_filtered(
        self, name: str = "", status: str = "", tags: Mapping[str, str] | None = None
    ) -> tuple[Member, ...]:
        """Members whose name, status and tags match these whole regular expressions (Go's; "" is any; a tag that a member
        lacks is ""). One that Go cannot read makes the agent hang up without a word."""
        body = {"Name": _whole(name), "Status": _whole(status)}
        return values.members(await self.call("members-filtered", {**body, "Tags": _wholes(tags)}))

    async def join(self, addresses: Sequence[str], replay: bool = False) -> int:
        """Join a cluster by any of these `address[:port]`; how many answered. `replay`: bring its old user events, too."""
        return values.joined(await self.call("join", {"Existing": addresses, "Replay": replay}))

    async def leave(self) -> None:
        """The agent leaves the cluster and ends, and with it the connection."""
        await self.call("leave")

    async def force_leave(self, node: str, prune: bool = False) -> None:
        """A failed node becomes left (with `prune`: forgotten). An unknown one is no error."""
        await self.call("force-leave", {"Node": node, "Prune": prune})

    async def set_tags(self, tags: Mapping[str, str], delete: Sequence[str] = ()) -> None:
        """Set and delete tags of the agent's own node (they may hold 512 bytes in all)."""
        await self.call("tags", {"Tags": tags, "DeleteTags": delete})

    async def event(self, name: str, payload: bytes = b"", coalesce: bool = False) -> None:
        """Send a user event to every node (512 bytes with its name). `coalesce`: of several with this name that come close
        together, receivers may be shown the last alone, and late."""
        await self.call("event", {"Name": name, "Payload": payload, "Coalesce": coalesce})

    async def query(
        self,
        name: str,
        payload: bytes = b"",
        *,
        nodes: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        ack: bool = False,
        relay_factor: int = 0,
        timeout_s: float = 2.0,
    ) -> AsyncIterator[QueryAck | QueryResponse | Overflowed]:
        """Ask every node, or these, or those whose tags match these regular expressions; what they answer, as it comes.

        It ends when `timeout_s` (an hour at the most) is over and not before. `ack`: nodes say that they have it, too.
        `relay_factor`: so many others repeat each answer (it may come several times).
        """
        body = {
            "Name": name,
            "Payload": payload,
            "FilterNodes": nodes,
            "FilterTags": _wholes(tags),
            "RequestAck": ack,
            "RelayFactor": relay_factor,
            "Timeout": round(timeout_s * 1e9) if 0 <= timeout_s <= QUERY_LIMIT_S else None,
        }
        session = self._open()
        answers = await session.subscribe("query", body, values.answer, ANSWERS_KEPT)
        deadline_s = asyncio.get_running_loop().time() + timeout_s + self._timeout_s
        try:
            while not isinstance(answer := await _next(answers, deadline_s), QueryDone):
                yield answer
        finally:
            session.forget(answers)

    async def respond(self, query_id: int, payload: bytes = b"") -> None:
        """Answer the QueryEvent of this id, which came on a stream of this connection; once, and in its time."""
        await self.call("respond", {"ID": query_id, "Payload": payload})

    async def stream(self, types: str = "*", limit: int = 1024) -> Subscription[Event]:
        """The events of these types, by commas: member-join, -leave, -failed, -update, -reap, user[:NAME], query[:NAME], *.

        `limit`: how many may wait for their reader, a member in an event counting as one more, before `Overflowed`.
        """
        return await self._open().subscribe("stream", {"Type": types}, values.event, limit)

    async def monitor(self, level: str = "INFO", limit: int = 1024) -> Subscription[LogLine]:
        """The agent's log from this level on, the last 512 lines first; one per connection."""
        return await self._open().subscribe("monitor", {"LogLevel": level}, values.log_line, limit)

    async def stop(self, subscription: Subscription[Any]) -> None:
        """End a stream or monitor. While events flow an agent can crash of it: rather close the connection."""
        session = self._open()
        await session.call("stop", {"Stop": getattr(subscription, "seq", None)})
        session.forget(subscription)

    async def stats(self) -> Mapping[str, Mapping[str, str]]:
        """The agent's statistics in groups (agent, runtime, serf, tags), all as text."""
        return values.stats(await self.call("stats"))

    async def coordinate(self, node: str) -> Coordinate | None:
        """Where a node stands on Serf's map of round-trip times; None when it is not known."""
        return values.coordinate(await self.call("get-coordinate", {"Node": node}))

    async def list_keys(self) -> KeyReport:
        """Which gossip keys how many nodes have. With an error the report is in the SerfRefused: `refused_keys`."""
        return values.keys(await self.call("list-keys"))

    async def install_key(self, key: str) -> KeyReport:
        """Every node takes one more key (base64 of 16, 24 or 32 bytes) for reading."""
        return values.keys(await self.call("install-key", {"Key": key}))

    async def use_key(self, key: str) -> KeyReport:
        """Every node writes with this key from now on."""
        return values.keys(await self.call("use-key", {"Key": key}))

    async def remove_key(self, key: str) -> KeyReport:
        """Every node forgets a key that it does not write with."""
        return values.keys(await self.call("remove-key", {"Key": key}))

    async def watch(self, on_seen: Callable[[MembersSeen], None], on_lost: Callable[[SerfLost], None]) -> None:
        """Follow the members for ever, over as many connections as it takes; see watch.watch."""
        await watch(self, on_seen, on_lost)

    def _open(self) -> Session:
        if self._session is None:
            raise SerfError("not connected to a Serf agent")
        return self._session


def refused_keys(refusal: SerfRefused) -> KeyReport:
    """What came with the refusal of a command about keys: which nodes said what. Raises SerfProtocolError."""
    return values.keys(refusal.body)


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


async def _next(answers: Subscription[Answer], deadline_s: float) -> Answer | Overflowed:
    """No limit may span a `yield`: it would end whatever the caller does then."""
    try:
        async with asyncio.timeout_at(deadline_s):
            return await anext(answers)
    except TimeoutError:
        raise SerfError("the Serf agent did not end a query when its time was over") from None


def _whole(pattern: str) -> str:
    """Go anchors as ^…$ without brackets, so that a|b would match too much."""
    return f"(?:{pattern})" if pattern and isinstance(pattern, str) else pattern


def _wholes(patterns: Mapping[str, str] | None) -> Mapping[str, str]:
    if not isinstance(patterns, Mapping):
        return {} if patterns is None else patterns  # no map: refused with the request
    return {tag: _whole(text) for tag, text in patterns.items()}
