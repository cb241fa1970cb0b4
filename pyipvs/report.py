"""What the command `pyipvs` shows: the table and connections in the columns of ipvsadm, as JSON, and planned changes.

Numbers are exact, and columns as wide as what is in them.
Does not: print, or read the kernel.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pyipvs.changes import Change, DeleteDestination, DeleteService, UpdateDestination, UpdateService
from pyipvs.daemons import Daemon
from pyipvs.listing import table
from pyipvs.model import (
    Destination,
    DestinationStatus,
    Family,
    ForwardingMethod,
    Service,
    ServiceFlags,
    ServiceKey,
    ServiceStatus,
    Stats,
    Tunnel,
    Word,
    endpoint,
)
from pyipvs.procfs import Connection
from pyipvs.ruleset import Ruleset

Shown = tuple[ServiceStatus, Sequence[DestinationStatus]]

COUNTERS = ("Conns", "InPkts", "OutPkts", "InBytes", "OutBytes")
RATES = ("CPS", "InPPS", "OutPPS", "InBPS", "OutBPS")
FLAG_WORDS = {
    "ops": ServiceFlags.ONE_PACKET,
    "flag-1": ServiceFlags.SCHED1,
    "flag-2": ServiceFlags.SCHED2,
    "flag-3": ServiceFlags.SCHED3,
    "sh-fallback": ServiceFlags.SH_FALLBACK,
    "sh-port": ServiceFlags.SH_PORT,
    "mh-fallback": ServiceFlags.SH_FALLBACK,
    "mh-port": ServiceFlags.SH_PORT,
}
_HEADINGS = ("Prot LocalAddress:Port", "  -> RemoteAddress:Port")
_FORWARD = {ForwardingMethod.NAT: "Masq", ForwardingMethod.LOCAL: "Local", ForwardingMethod.ROUTE: "Route"}
_Known = dict[ServiceKey, dict[tuple[str, int], Destination]]


def aligned(rows: Iterable[Sequence[str]], left: int, limit: int | None = None) -> list[str]:
    """Lines in columns, the first `left` of them to the left, numbers to the right.

    Columns that do not fit into `limit` characters are left out whole: half a number would be another number.
    """
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    while limit is not None and len(widths) > 1 and sum(widths) + 2 * (len(widths) - 1) > limit:
        widths.pop()
    line = "  ".join(f"{{:{'<' if at < left else '>'}{max(width, 1)}}}" for at, width in enumerate(widths))
    return [line.format(*row[: len(widths)]).rstrip() for row in cells]


def in_order(shown: Iterable[Shown]) -> list[Shown]:
    """Services by key, their destinations by address and port."""
    return [(status, by_address(rows)) for status, rows in sorted(shown, key=lambda pair: pair[0].service.key)]


def by_address(rows: Iterable[DestinationStatus]) -> list[DestinationStatus]:
    """Destinations by address and port."""
    return sorted(rows, key=lambda row: (row.destination.family, row.destination.packed, row.destination.port))


def configuration(shown: Sequence[Shown]) -> list[str]:
    """The lines of `ipvsadm -Ln`."""
    cells = [_forward_cells(row) for _, rows in shown for row in rows]
    tails = iter(aligned([("Forward", "Weight", "ActiveConn", "InActConn"), *cells], 1))
    lines = [(_HEADINGS[0], "Scheduler Flags"), (_HEADINGS[1], next(tails))]
    for status, rows in shown:
        lines.append((_service_name(status.service.key), _settings(status.service)))
        lines += [(f"  -> {row.destination}", next(tails)) for row in rows]
    return aligned(lines, 2)


def statistics(shown: Sequence[Shown], columns: Sequence[str]) -> list[str]:
    """The lines of `ipvsadm -Ln --stats --exact` (COUNTERS) or `--rate` (RATES)."""
    lines: list[Sequence[str]] = [(_HEADINGS[0], *columns), (_HEADINGS[1], *[""] * len(columns))]
    for status, rows in shown:
        lines.append((_service_name(status.service.key), *_numbers(status.stats, columns)))
        lines += [(f"  -> {row.destination}", *_numbers(row.stats, columns)) for row in rows]
    return aligned(lines, 1)


def connection_lines(found: Iterable[Connection]) -> list[str]:
    """The lines of `ipvsadm -Lnc`, and of a template that a persistence engine made its name and data."""
    heading = ("pro", "expire", "state", "source", "virtual", "destination", "")
    return aligned([heading, *map(_connection_cells, found)], 7)


def daemon_lines(daemons: Iterable[Daemon]) -> str:
    """The synchronization daemons; `-` is the kernel's own choice."""
    columns = [field.name for field in dataclasses.fields(Daemon)]
    rows = [[getattr(daemon, column) for column in columns] for daemon in daemons]
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    return table([column.upper().replace("_", "-") for column in columns], cells)


def plain(value: Any) -> Any:
    """A value of the model with all its fields, as JSON has them: names for numbers that have one."""
    if isinstance(value, ServiceFlags):
        return [flag.name.lower() for flag in value if flag.name]
    if isinstance(value, Word):
        return str(value)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name != "packed"]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    return value


def as_json(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """Services with all that is known of them."""
    return [_service_object(status, rows) for status, rows in shown]


def plan(old: Ruleset, changes: Iterable[Change]) -> Iterator[str]:
    """One line for each change of `old`: `+` made, `~` changed (from what to what), `-` deleted."""
    known: _Known = {}
    for change in changes:
        match change:
            case UpdateService():
                yield f"~ service {change.key} ({_differences(old[change.key].service, change.service)})"
            case UpdateDestination(key, destination):
                there = _destination(old, known, key, destination)
                yield f"~ destination {destination} of {key} ({_differences(there, destination)})"
            case DeleteService(key):
                yield f"- service {key} ({count(len(old[key]), 'destination')})"
            case DeleteDestination(key, destination):
                yield f"- destination {destination} of {key}"
            case _:
                yield f"+ {str(change).partition(' ')[2]}"


def summary(old: Ruleset, changes: Sequence[Change]) -> str:
    """How many changes there are, and how many of them delete what."""
    kinds = Counter(map(type, changes))
    lost = sum(len(old[change.key]) for change in changes if isinstance(change, DeleteService))
    services = f"{count(kinds[DeleteService], 'service')} with {count(lost, 'destination')}"
    single = f" and {kinds[DeleteDestination]} more" if kinds[DeleteDestination] else ""
    if kinds[DeleteService]:
        return f"{count(len(changes), 'change')}, deleting {services}{single}"
    deleted = f", deleting {count(kinds[DeleteDestination], 'destination')}" if single else ", deleting nothing"
    return count(len(changes), "change") + deleted


def count(number: int, noun: str) -> str:
    """`1 service`, `2 services`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _service_name(key: ServiceKey) -> str:
    if key.mark is not None:
        return f"FWM  {key.mark} IPv6" if key.family is Family.INET6 else f"FWM  {key.mark}"
    return f"{str(key.protocol).upper():<4} {endpoint(key.address or '', key.port or 0)}"


def _settings(service: Service) -> str:
    """Scheduler and flags as print_service_entry in ipvsadm.c writes them."""
    words = [service.scheduler]
    if flags := _flags_of(service):
        words.append(f"({flags})")
    if service.persistence_s:
        words.append(f"persistent {service.persistence_s}")
        if service.netmask != (128 if service.key.family is Family.INET6 else 32):
            words.append(f"mask {_mask(service)}")
    if service.persistence_engine:
        words.append(f"pe {service.persistence_engine}")
    if ServiceFlags.ONE_PACKET in service.flags:
        words.append("ops")
    return " ".join(words)


def _flags_of(service: Service) -> str:
    """The scheduler's own flags; sh and mh have names for two of them."""
    names = {flag: word for word, flag in FLAG_WORDS.items() if word.startswith("flag-")}
    names |= {flag: word for word, flag in FLAG_WORDS.items() if word.startswith(f"{service.scheduler}-")}
    return ",".join(word for flag, word in names.items() if flag in service.flags)


def _mask(service: Service) -> str:
    prefix = service.netmask or 0
    if service.key.family is Family.INET6:
        return str(prefix)
    return ".".join(map(str, (2**32 - 2 ** (32 - prefix)).to_bytes(4)))


def _forward_cells(row: DestinationStatus) -> tuple[str, ...]:
    destination = row.destination
    method = _FORWARD.get(destination.method) or str(destination.method).capitalize()
    return (method, str(destination.weight), str(row.active), str(row.inactive))


def _numbers(stats: Stats, columns: Sequence[str]) -> list[str]:
    return [str(number) for number in (stats[5:] if columns is RATES else stats[:5])]


def _connection_cells(one: Connection) -> tuple[str, ...]:
    protocol = "IP" if one.protocol == 0 else str(one.protocol).upper()
    expires = "{:02}:{:02}".format(*divmod(one.expires_s, 60))
    client = endpoint(one.client_address, one.client_port)
    virtual = endpoint(one.virtual_address, one.virtual_port)
    destination = endpoint(one.destination_address, one.destination_port)
    engine = f"{one.persistence_engine} {_printable(one.engine_data)}" if one.persistence_engine else ""
    return (protocol, expires, one.state, client, virtual, destination, engine)


def _printable(text: str) -> str:
    """Without what could steer a terminal: a client chose these bytes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _service_object(status: ServiceStatus, rows: Sequence[DestinationStatus]) -> dict[str, Any]:
    service: dict[str, Any] = plain(status.service)
    key = service.pop("key")
    destinations = [_flat(plain(row), "destination") for row in rows]
    return {"key": str(status.service.key), **key, **service, "stats": plain(status.stats), "destinations": destinations}


def _flat(value: dict[str, Any], inner: str) -> dict[str, Any]:
    below: dict[str, Any] = value.pop(inner)
    return below | value


def _destination(old: Ruleset, known: _Known, key: ServiceKey, wanted: Destination) -> Destination:
    """What `old` has at the place of `wanted`; a service's destinations are made objects once."""
    if key not in known:
        known[key] = {one.key: one for one in old[key].destinations}
    return known[key][wanted.key]


def _differences(old: Any, new: Any) -> str:
    """The settings of two values that are not the same."""
    names = [field.name for field in dataclasses.fields(old) if field.compare]
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in names]
    return ", ".join(f"{name} {_word(before)} -> {_word(after)}" for name, before, after in pairs if before != after)


def _word(value: Any) -> str:
    match value:
        case ServiceFlags():
            return ",".join(plain(value)) or "none"
        case Tunnel():
            return " ".join(f"{name} {part}" for name, part in plain(value).items() if part)
        case None:
            return "none"
    return str(value)
