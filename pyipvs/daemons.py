"""Synchronization daemons: they tell other balancers of this one's connections, or hear of theirs.

The value and its messages; at most one of each state runs in a network namespace.
Does not: start one (client.py does).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from pyipvs.const import NAME_MAX, DaemonAttr
from pyipvs.model import Family, Word, canonical, family_of, within
from pyipvs.wire import COMMAND, RAW, TEXT, U8, U16, U32, Attr, Table, nested, pack, required, text_of, trusted, unpack

DAEMON = Table(
    (
        Attr(DaemonAttr.STATE, "state", U32),
        Attr(DaemonAttr.MCAST_IFN, "interface", TEXT),
        Attr(DaemonAttr.SYNC_ID, "sync_id", U32),
        Attr(DaemonAttr.SYNC_MAXLEN, "max_length", U16),
        Attr(DaemonAttr.MCAST_GROUP, "group", RAW),
        Attr(DaemonAttr.MCAST_GROUP6, "group6", RAW),
        Attr(DaemonAttr.MCAST_PORT, "port", U16),  # in host order, unlike the others
        Attr(DaemonAttr.MCAST_TTL, "ttl", U8),
    )
)
_GROUPS = {"group": Family.INET, "group6": Family.INET6}


class DaemonState(Word):
    """What a synchronization daemon does (IP_VS_STATE_*): MASTER sends connections, BACKUP receives them."""

    MASTER = 1
    BACKUP = 2


@dataclass(frozen=True, slots=True)
class Daemon:
    """A synchronization daemon: tells other balancers of this one's connections, or hears of theirs.

    `interface`: where the multicast goes, at most 15 characters. `sync_id` 0 to 255: only daemons of the same one
    talk to each other (0 for BACKUP: hear all). The rest None = the kernel's own choice: `max_length` of a message
    in bytes (a MASTER's 1472 whatever the MTU, 1452 with an IPv6 group; a BACKUP's the interface's MTU, 1500 at least,
    without headers, and less than 1024 becomes that; start_sync_thread), `group` the multicast address (224.0.0.81),
    `port` (8848), `ttl` (1).
    """

    state: DaemonState
    interface: str
    sync_id: int = 0
    max_length: int | None = None
    group: str | None = None
    port: int | None = None
    ttl: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the part that is wrong."""
        object.__setattr__(self, "state", DaemonState.of(self.state, "state"))
        if not 1 <= len(self.interface.encode()) < NAME_MAX:  # IP_VS_IFNAME_MAXLEN
            raise ValueError(f"interface {self.interface!r} must be a name of 1 to {NAME_MAX - 1} bytes")
        within(self.sync_id, 0, 255, "sync_id")
        for what, value, low, high in (
            ("max_length", self.max_length, 1, 65535),
            ("port", self.port, 1, 65535),
            ("ttl", self.ttl, 1, 255),
        ):
            if value is not None:
                within(value, low, high, what)
        if self.group is not None:
            object.__setattr__(self, "group", _multicast(self.group))


def _multicast(text: str) -> str:
    address = canonical(text)
    first = socket.inet_pton(family_of(address), address)[0]
    if first != 0xFF if ":" in address else not 224 <= first < 240:
        raise ValueError(f"group {text!r} is not a multicast address")
    return address


def encode(daemon: Daemon) -> bytes:
    """A daemon with what the caller chose."""
    values = {name: getattr(daemon, name) for name in ("state", "interface", "sync_id", "max_length", "port", "ttl")}
    if daemon.group is not None:
        name = "group6" if ":" in daemon.group else "group"
        values[name] = socket.inet_pton(family_of(daemon.group), daemon.group)
    return pack(COMMAND, {"daemon": pack(DAEMON, values)})


def encode_state(state: DaemonState) -> bytes:
    """What names a running daemon: the kernel asks for no more (ip_vs_genl_del_daemon)."""
    return pack(COMMAND, {"daemon": pack(DAEMON, {"state": state})})


def decode(data: bytes) -> Daemon:
    """A NEW_DAEMON answer. Raises DecodeError."""
    values = unpack(DAEMON, nested(data, "daemon"))
    groups = [text_of(values[name], family) for name, family in _GROUPS.items() if name in values]
    state = DaemonState.seen(required(values, "state"))
    rest = (values.get("max_length"), groups[0] if groups else None, values.get("port"), values.get("ttl"))
    return trusted(Daemon, state, values.get("interface", ""), values.get("sync_id", 0), *rest)
