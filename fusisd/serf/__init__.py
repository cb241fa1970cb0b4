"""Serf: the RPC protocol without I/O, an asyncio client, and a supervisor of the agent. Usable on its own: docs/serf.md.

`SerfClient` is what most want; `Connection` is the protocol for who has an event loop of their own; `ManagedAgent` keeps a
`serf agent` running. Needs msgpack (`pip install 'pyipvs[fusisd]'`).
"""

from fusisd.serf import values
from fusisd.serf.client import SerfClient, connected, refused_keys
from fusisd.serf.errors import SerfError, SerfMisuse, SerfProtocolError, SerfRefused, SupervisorError
from fusisd.serf.protocol import Connection, Record, Reply
from fusisd.serf.session import Overflowed, Subscription
from fusisd.serf.supervisor import ManagedAgent
from fusisd.serf.values import (
    Coordinate,
    KeyReport,
    LogLine,
    Member,
    MemberEvent,
    OtherEvent,
    QueryAck,
    QueryEvent,
    QueryResponse,
    UserEvent,
)
from fusisd.serf.watch import DOORBELL, MembersSeen, SerfLost

__all__ = [
    "DOORBELL",
    "Connection",
    "Coordinate",
    "KeyReport",
    "LogLine",
    "ManagedAgent",
    "Member",
    "MemberEvent",
    "MembersSeen",
    "OtherEvent",
    "Overflowed",
    "QueryAck",
    "QueryEvent",
    "QueryResponse",
    "Record",
    "Reply",
    "SerfClient",
    "SerfError",
    "SerfLost",
    "SerfMisuse",
    "SerfProtocolError",
    "SerfRefused",
    "Subscription",
    "SupervisorError",
    "UserEvent",
    "connected",
    "refused_keys",
    "values",
]
