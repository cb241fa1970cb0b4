"""The table as a value: read from the kernel or from text, printed, compared.

`diff(a, b)` says what to do to come from one to the other: configuration alone counts, in the fewest changes, a
weight by SET and never by deleting and adding (a deleted destination is kept by the kernel for minutes and slows
every later addition: ip_vs_trash_get_dest).
Does not: speak to the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyipvs import rows, savefile
from pyipvs.changes import (
    AddDestination,
    AddService,
    Change,
    ChangeList,
    DeleteDestination,
    DeleteService,
    UpdateDestination,
    UpdateService,
    order,
)
from pyipvs.layout import Row
from pyipvs.listing import DestinationList
from pyipvs.model import Destination, Service, ServiceKey, Stats, flags_in_effect
from pyipvs.wire import trusted

_Found = dict[Row, Row]  # by rows.place


class Entry:
    """One service of a table and its destinations, which become objects when they are asked for."""

    __slots__ = ("_rows", "_wanted", "service", "stats")

    def __init__(self, service: Service, stats: Stats | None, found: Sequence[Row]) -> None:
        """Made by Ruleset and by IPVS. `stats` None: nobody asked for counters."""
        self.service, self.stats, self._rows = service, stats, found
        self._wanted: frozenset[Row] | None = None  # see _configured

    def __len__(self) -> int:
        """How many destinations it has."""
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        """Of configuration that has an effect: counters and the order of destinations do not matter."""
        if not isinstance(other, Entry):
            return NotImplemented
        if _effective(self.service) != _effective(other.service):
            return False
        mine, others = self._configured(), other._configured()
        return mine == others or set(map(rows.effective, mine)) == set(map(rows.effective, others))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.service.key} {self.service.scheduler}, {len(self)} destinations>"

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """What is configured."""
        return tuple(map(rows.destination, self._rows))

    @property
    def status(self) -> DestinationList:
        """The destinations with their counters. Raises ValueError when the table was read without."""
        if self.stats is None:
            raise ValueError("this table has no counters: take it by IPVS.snapshot()")
        return DestinationList(self._rows)

    def _configured(self) -> frozenset[Row]:
        """The configuration of each destination. Kept only by a table that somebody wants, which is compared many times:
        one that was read is mostly compared once, and would grow by more than its rows."""
        return frozenset(rows.configured(self._rows)) if self._wanted is None else self._wanted

    def _by_place(self) -> _Found:
        return {rows.place(row): row for row in rows.configured(self._rows)}


class Ruleset(Mapping[ServiceKey, Entry]):
    """Services and destinations by key: `ruleset["tcp/10.0.0.1:80"].destinations`. Equal when configured alike."""

    def __init__(self, services: Iterable[tuple[Service, Iterable[Destination]]] = ()) -> None:
        """A table that somebody wants. Raises ValueError for a service or destination that comes twice, or that the
        kernel could not forward to."""
        self._entries: dict[ServiceKey, Entry] = {}
        for service, destinations in services:
            if service.key in self._entries:
                raise ValueError(f"{service.key} comes twice")
            entry = Entry(service, None, [rows.of(AddDestination(service.key, one).destination) for one in destinations])
            if len(entry._by_place()) < len(entry):
                raise ValueError(f"a destination of {service.key} comes twice")
            entry._wanted = entry._configured()
            self._entries[service.key] = entry

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Ruleset:
        """The table of these entries, as `IPVS.scan` gives them."""
        made = cls()
        made._entries = {entry.service.key: entry for entry in entries}
        return made

    @classmethod
    def parse(cls, text: str) -> Ruleset:
        """The table that `ipvsadm --save` wrote. Raises SaveFileError (a ValueError) naming the line."""
        return cls(savefile.parse(text))

    def text(self) -> str:
        """The table as `ipvsadm --save -n` writes it and `ipvsadm --restore` reads it, in sorted order."""
        return savefile.render((entry.service, entry.destinations) for entry in self._entries.values())

    def __getitem__(self, key: ServiceKey | str) -> Entry:
        if isinstance(key, ServiceKey):
            return self._entries[key]
        try:
            return self._entries[ServiceKey.parse(key)]
        except ValueError as error:
            raise KeyError(str(error)) from None

    def __iter__(self) -> Iterator[ServiceKey]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        """As `text`; what another program made and ipvsadm has no words for is a comment."""
        return "\n".join(_shown(self._entries[key]) for key in sorted(self._entries)) or "an empty table"


def _shown(entry: Entry) -> str:
    try:
        return savefile.render([(entry.service, entry.destinations)]).rstrip("\n")
    except ValueError as error:
        return f"# {error}"


def _effective(service: Service) -> tuple[object, ...]:
    """A service's configuration; the netmask groups clients for persistence, and without it means nothing."""
    flags = flags_in_effect(service.key, service.flags)
    netmask = service.netmask if service.persistence_s else None
    return service.key, service.scheduler, flags, service.persistence_s, netmask, service.persistence_engine


def diff(old: Mapping[ServiceKey, Entry], new: Mapping[ServiceKey, Entry]) -> ChangeList:
    """What makes `new` of `old`: services before their destinations, additions before deletions."""
    changes: list[Change] = [DeleteService(key) for key in old if key not in new]
    for key, entry in new.items():
        before = old.get(key)
        if before is None:
            changes.append(AddService(entry.service))
            changes += [trusted(AddDestination, key, destination) for destination in entry.destinations]
        else:
            if _effective(before.service) != _effective(entry.service):
                changes.append(UpdateService(entry.service))
            if before._configured() != entry._configured():
                changes += _between(key, before._by_place(), entry._by_place())
    return order(changes)


def _between(key: ServiceKey, old: _Found, new: _Found) -> Iterator[Change]:
    """The changes of one service's destinations. What callers want was checked, and what a kernel has is a fact."""
    for place, row in new.items():
        if place not in old:
            yield trusted(AddDestination, key, rows.destination(row))
        elif old[place] != row and rows.effective(old[place]) != rows.effective(row):
            yield trusted(UpdateDestination, key, rows.destination(row))
    for place, row in old.items():
        if place not in new:
            yield DeleteDestination(key, rows.destination(row))
