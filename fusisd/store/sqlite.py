"""Both stores in one SQLite file: operators' intent, and what concerns this machine only.

One row per service and one per destination, each a document as JSON (fusisd.documents), decoded as strictly as a request
from outside; what could not be read back is not written, and of a service with a thousand destinations only what changed is
written. Blocking; every call comes from the one thread that opened the file.
Does not: know the event loop, or repair a damaged file (the kernel's table goes on serving without it).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from fusisd import tags
from fusisd.documents import (
    decode_ranges,
    decode_service,
    decode_timeouts,
    encode_service,
    encode_timeouts,
)
from fusisd.errors import Conflict, Invalid, StoreError
from fusisd.fields import Read, one_of, parsed, read_object, seconds, text, truth, whole
from fusisd.model import Intent, Offer, Service, checked_address, checked_name
from fusisd.ports import Change, Remembered
from fusisd.store.file import RECOVER, reported
from fusisd.store.file import copied as copied
from fusisd.store.file import open_database as open_database
from fusisd.store.file import set_aside as set_aside
from fusisd.store.lock import lock_state as lock_state
from pyipvs import ForwardingMethod

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="_Stored")

_GLOBALS: dict[str, Callable[[object, str], Any]] = {"timeouts": decode_timeouts, "ranges": decode_ranges}


def machine_identity() -> str:
    """This boot and network namespace: what we made in another is not there any more."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"


def _reported(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """SQLite's errors become StoreError, with the file's name."""

    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with reported(self.path):
            return method(self, *args, **kwargs)

    call.__doc__ = method.__doc__
    return call


class _Stored:
    """A part of the file."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        """`database` is `open_database(path)`."""
        self._database, self.path = database, path

    def _transact(self, write: Callable[[sqlite3.Connection], object]) -> None:
        """All that `write` does, or nothing. On a full disk the log's own room is given back and it is tried once more:
        on a small one the log alone would keep it full for ever."""
        try:
            self._once(write)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_FULL:
                raise
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._once(write)

    def _once(self, write: Callable[[sqlite3.Connection], object]) -> None:
        with self._database:  # commits, or rolls back
            self._database.execute("BEGIN IMMEDIATE")
            write(self._database)

    def _decoded(self, what: str, decode: Callable[[object], T], document: str) -> T:
        """The value of a row's document. Raises StoreError, which names file and row."""
        try:
            return decode(parsed(document))
        except Invalid as error:
            raise StoreError(
                f"{self.path}: {what} cannot be read: {error}; unless a newer fusisd wrote it (use that one), {RECOVER}"
            ) from None


class SqliteIntents(_Stored):
    """Fulfils ports.IntentStore."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        """`database` is `open_database(path)`."""
        super().__init__(database, path)
        self._written: dict[str, Service] = {}  # what the file holds, as far as we loaded or wrote it

    @_reported
    def load(self) -> Intent:
        """See ports.IntentStore."""
        rows = self._database.execute("SELECT name, revision, document FROM services ORDER BY name").fetchall()
        destinations = dict[str, dict[str, str]]()
        for service, name, document in self._database.execute("SELECT * FROM destinations ORDER BY rowid"):
            destinations.setdefault(service, {})[name] = document
        others = self._database.execute("SELECT name, document FROM globals").fetchall()
        (revision,) = self._database.execute("SELECT number FROM revision").fetchone()
        found = {name: (at, self._service(name, document, destinations.pop(name, {}))) for name, at, document in rows}
        if destinations:
            raise StoreError(f"{self.path} holds destinations of a service {min(destinations)!r} that it has not; {RECOVER}")
        services = {name: replace(service, revision=at) for name, (at, service) in found.items()}
        self._written = dict(services)
        return Intent(services, revision, **dict(self._global(name, document) for name, document in others))

    def _service(self, name: str, document: str, destinations: Mapping[str, str]) -> Service:
        def decode(value: object) -> Service:
            rows = {one: parsed(text) for one, text in destinations.items()}
            return decode_service(name, {**value, "destinations": rows} if isinstance(value, dict) else value)

        return self._decoded(f"service {name!r}", decode, document)

    def _global(self, name: str, document: str) -> tuple[str, Any]:
        if name not in _GLOBALS:
            raise StoreError(f"{self.path} holds {name!r}, which this fusisd does not know: use the one that wrote it")
        return name, self._decoded(name, lambda value: _GLOBALS[name](value, name), document)

    @_reported
    def commit(self, expected_revision: int, change: Change) -> int:
        """See ports.IntentStore."""
        revision = expected_revision + 1
        gone = [(name,) for name, service in change.services.items() if service is None]
        kept = [_Rows.of(row, self._written.get(name)) for name, row in change.services.items() if row is not None]
        settings = [] if change.timeouts is None else [("timeouts", json.dumps(encode_timeouts(change.timeouts)))]
        settings += [] if change.ranges is None else [("ranges", json.dumps(change.ranges))]

        def write(database: sqlite3.Connection) -> None:
            counted = database.execute("UPDATE revision SET number = ? WHERE number = ?", (revision, expected_revision))
            if counted.rowcount != 1:
                raise Conflict(f"{self.path} was changed by somebody else since revision {expected_revision}")
            database.executemany("DELETE FROM services WHERE name = ?", gone)
            database.executemany("DELETE FROM destinations WHERE service = ?", gone)
            for rows in kept:
                rows.write(database, revision)
            database.executemany("INSERT OR REPLACE INTO globals VALUES (?, ?)", settings)

        self._transact(write)
        for name, row in change.services.items():
            self._written.pop(name, None)
            self._written |= {} if row is None else {name: row}
        return revision


@dataclass(frozen=True, slots=True)
class _Rows:
    """What of a service must be written: its own row, and of its destinations those that are new, others or gone."""

    name: str
    document: str
    changed: Mapping[str, str]
    gone: frozenset[str]
    whole: bool
    """Nothing is known of it in the file: whatever rows it has there go first."""

    @classmethod
    def of(cls, service: Service, before: Service | None) -> _Rows:
        """Raises StoreError when something would not come back as it is: then it would be acknowledged now and refused,
        with all the others, at the next start."""
        old = before.destinations if before is not None else {}
        new = {name: one for name, one in service.destinations.items() if old.get(name) is not one}
        part = replace(service, destinations=new)
        document = encode_service(part)
        try:
            read_back = decode_service(service.name, parsed(json.dumps(document)))
        except Invalid as error:
            raise StoreError(f"service {service.name} cannot be stored: {error}") from None
        if read_back != part:
            raise StoreError(f"service {service.name} cannot be stored: it would come back as {read_back}")
        rows = document.pop("destinations", {})
        changed = {name: json.dumps(rows[name]) for name in new}
        gone = frozenset(old.keys() - service.destinations.keys())
        return cls(service.name, json.dumps(document), changed, gone, before is None)

    def write(self, database: sqlite3.Connection, revision: int) -> None:
        """Inside a transaction. A row that is changed keeps its place, so that lists keep their order."""
        database.execute("INSERT OR REPLACE INTO services VALUES (?, ?, ?)", (self.name, revision, self.document))
        if self.whole:
            database.execute("DELETE FROM destinations WHERE service = ?", (self.name,))
        database.executemany(
            "DELETE FROM destinations WHERE service = ? AND name = ?", [(self.name, gone) for gone in self.gone]
        )
        database.executemany(
            "INSERT INTO destinations VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET document = excluded.document",
            [(self.name, name, document) for name, document in self.changed.items()],
        )


class SqliteLocal(_Stored):
    """Fulfils ports.LocalStore."""

    def __init__(self, database: sqlite3.Connection, path: Path, machine: str) -> None:
        """`machine` is `machine_identity()`. Rows of another boot are deleted; those of this boot's other namespaces are
        not ours here but kept: a start in the wrong namespace must not make strangers of our services. Raises StoreError.
        """
        super().__init__(database, path)
        self._machine = machine
        self._forget_other_boots(machine.split(" ", 1)[0])

    @_reported
    def _forget_other_boots(self, boot: str) -> None:
        for table in ("owned", "remembered"):
            found = f"FROM {table} WHERE machine || ' ' NOT GLOB ? || ' *'"
            if self._database.execute(
                f"SELECT 1 {found} LIMIT 1", (boot,)
            ).fetchone():  # a full disk is no reason not to start
                self._database.execute(f"DELETE {found}", (boot,))

    @_reported
    def owned(self, kind: str) -> Mapping[str, str]:
        """See ports.LocalStore."""
        return dict(
            self._database.execute("SELECT key, value FROM owned WHERE machine = ? AND kind = ?", (self._machine, kind))
        )

    @_reported
    def claim(self, kind: str, keys: Mapping[str, str]) -> None:
        """See ports.LocalStore."""
        rows = [(self._machine, kind, key, value) for key, value in keys.items()]
        self._transact(lambda database: database.executemany("INSERT OR REPLACE INTO owned VALUES (?, ?, ?, ?)", rows))

    @_reported
    def release(self, kind: str, keys: Iterable[str]) -> None:
        """See ports.LocalStore."""
        rows = [(self._machine, kind, key) for key in keys]
        statement = "DELETE FROM owned WHERE machine = ? AND kind = ? AND key = ?"
        self._transact(lambda database: database.executemany(statement, rows))

    @_reported
    def remembered(self) -> tuple[Remembered, ...]:
        """See ports.LocalStore."""
        query = "SELECT document FROM remembered WHERE machine = ?"
        rows = self._database.execute(query, (self._machine,)).fetchall()
        return tuple(self._decoded("a remembered node", _decode_remembered, document) for (document,) in rows)

    @_reported
    def remember(self, destinations: Iterable[Remembered]) -> None:
        """See ports.LocalStore."""
        rows = [(self._machine, json.dumps(_encode_remembered(row))) for row in destinations]

        def write(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM remembered WHERE machine = ?", (self._machine,))
            database.executemany("INSERT INTO remembered VALUES (?, ?)", rows)

        self._transact(write)


def _encode_remembered(row: Remembered) -> dict[str, Any]:
    """Everything in the document: a node's name may be no UTF-8, which JSON's escapes keep and SQLite's text does not."""
    document: dict[str, Any] = {"node": row.node, "service": row.offer.service, "address": row.address}
    document["offer"] = tags.encode(row.offer)
    return document if row.left_s is None else document | {"left_s": row.left_s}


_REMEMBERED: dict[str, Read[Any]] = {
    "node": text,
    "service": lambda value, place: checked_name(text(value, place), place),
    "address": lambda value, place: checked_address(text(value, place), place),
    "offer": text,
    "port": whole(1, 65535),  # these four: as rows were before offers were written as in the tags
    "method": one_of({str(method): method for method in ForwardingMethod}),
    "weight": whole(0, 65535),
    "checked": truth,
    "left_s": seconds(0, 1e12),
}


def _decode_remembered(document: object) -> Remembered:
    written = isinstance(document, dict) and "offer" in document
    old = ("port", "method", "weight", "checked")
    found = read_object(document, "", _REMEMBERED, ("node", "service", "address", *(() if written else old)))
    if written:
        offer = tags.decode(found["service"], found["offer"])
    else:
        offer = Offer(found["service"], found["port"], found["method"], found["weight"], found["checked"])
    return Remembered(found["node"], found["address"], offer, found.get("left_s"))
