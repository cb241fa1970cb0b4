"""Both stores in one SQLite file: operators' intent, and what concerns this machine only.

Write-ahead log with synchronous=FULL: when `commit` returns, the change survives a loss of power (one fdatasync, 0.3 ms on
the measured disk, 2026-11). One row per service, its document as JSON, decoded as strictly as a request from outside.
Blocking; every call comes from the one thread that opened the file. Files are 0600.
Does not: know the event loop, or repair a damaged file (the kernel's table goes on serving without it).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from fusisd.errors import Conflict, Invalid, StoreError
from fusisd.model import (
    SCHEDULERS,
    Destination,
    Intent,
    Offer,
    Service,
    checked_address,
    checked_name,
    checked_port,
    checked_weight,
)
from fusisd.ports import Remembered
from fusisd.store.lock import lock_state as lock_state
from pyipvs import ForwardingMethod, ServiceKey

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
CREATE TABLE services (name TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE owned (machine TEXT, kind TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (machine, kind, key));
CREATE TABLE remembered (machine TEXT, document TEXT NOT NULL);
"""

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="_Stored")


def machine_identity() -> str:
    """This boot and network namespace: what we made in another is not there any more."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"


def open_database(path: Path) -> sqlite3.Connection:
    """The file, made when absent, for the calling thread only. Raises StoreError: damaged, newer than us, no access."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from None
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        _prepare(database, path)
    except sqlite3.Error as error:
        database.close()
        raise StoreError(f"cannot open {path}: {_mended(error)}") from None
    except StoreError:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    """Look at the version before anything is written, then set the modes and make the tables of a new file."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer fusisd (schema {version}): use that one, or move the file aside"
        )
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    if version == 0:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")


def _mended(error: sqlite3.Error) -> str:
    """The error, and what helps when the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extension, https://sqlite.org/rescode.html
    damaged = code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
    return f"{error}; move it aside to start empty (the kernel's table keeps serving)" if damaged else str(error)


def _reported(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """SQLite's errors become StoreError, with the file's name."""

    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {_mended(error)}") from error

    call.__doc__ = method.__doc__
    return call


class _Stored:
    """A part of the file."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        """`database` is `open_database(path)`."""
        self._database, self.path = database, path

    def _decoded(self, what: str, decode: Callable[[dict[str, Any]], T], document: str) -> T:
        """The value of a row's document. Raises StoreError, which names file and row."""
        try:
            return decode(_object(json.loads(document)))
        except KeyError as error:
            why = f"{error} is missing"
        except (Invalid, ValueError) as error:
            why = str(error)
        raise StoreError(f"{self.path}: {what} is damaged: {why}; move the file aside to start empty")


class SqliteIntents(_Stored):
    """Fulfils ports.IntentStore."""

    @_reported
    def load(self) -> Intent:
        """See ports.IntentStore."""
        rows = self._database.execute("SELECT name, document FROM services ORDER BY name").fetchall()
        (revision,) = self._database.execute("SELECT number FROM revision").fetchone()
        services = {
            name: self._decoded(f"service {name!r}", partial(decode_service, name), document) for name, document in rows
        }
        return Intent(services, revision)

    @_reported
    def commit(self, expected_revision: int, services: Mapping[str, Service | None]) -> int:
        """See ports.IntentStore."""
        with self._database:  # commits, or rolls back
            self._database.execute("BEGIN IMMEDIATE")
            changed = self._database.execute(
                "UPDATE revision SET number = number + 1 WHERE number = ?", (expected_revision,)
            )
            if changed.rowcount != 1:
                raise Conflict(f"{self.path} was changed by somebody else since revision {expected_revision}")
            gone = [(name,) for name, service in services.items() if service is None]
            kept = [
                (name, json.dumps(encode_service(service)))
                for name, service in services.items()
                if service is not None
            ]
            self._database.executemany("DELETE FROM services WHERE name = ?", gone)
            self._database.executemany("INSERT OR REPLACE INTO services VALUES (?, ?)", kept)
        return expected_revision + 1


class SqliteLocal(_Stored):
    """Fulfils ports.LocalStore."""

    def __init__(self, database: sqlite3.Connection, path: Path, machine: str) -> None:
        """`machine` is `machine_identity()`; rows of another are deleted. Raises StoreError."""
        super().__init__(database, path)
        self._machine = machine
        self._forget_others()

    @_reported
    def _forget_others(self) -> None:
        for table in ("owned", "remembered"):
            self._database.execute(f"DELETE FROM {table} WHERE machine <> ?", (self._machine,))

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
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR REPLACE INTO owned VALUES (?, ?, ?, ?)", rows)

    @_reported
    def release(self, kind: str, keys: Iterable[str]) -> None:
        """See ports.LocalStore."""
        rows = [(self._machine, kind, key) for key in keys]
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("DELETE FROM owned WHERE machine = ? AND kind = ? AND key = ?", rows)

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
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("DELETE FROM remembered WHERE machine = ?", (self._machine,))
            self._database.executemany("INSERT INTO remembered VALUES (?, ?)", rows)


def encode_service(service: Service) -> dict[str, Any]:
    """A service's document: plain data."""
    return {
        "key": str(service.key),
        "scheduler": service.scheduler,
        "persistence_s": service.persistence_s,
        "destinations": [
            {
                "name": destination.name,
                "address": destination.address,
                "port": destination.port,
                "weight": destination.weight,
                "method": str(destination.method),
            }
            for destination in service.destinations.values()
        ],
        "excluded": sorted(service.excluded),
    }


def decode_service(name: str, document: dict[str, Any]) -> Service:
    """The service of a document, every part checked. Raises Invalid, ValueError, KeyError."""
    destinations = [_decode_destination(_object(row)) for row in _list(document["destinations"])]
    scheduler = document["scheduler"]
    if scheduler not in SCHEDULERS:
        raise Invalid(f"scheduler {scheduler!r} is not known", "scheduler")
    return Service(
        name=checked_name(name),
        key=ServiceKey.parse(_text(document["key"])),
        scheduler=scheduler,
        persistence_s=_number(document["persistence_s"]),
        destinations={destination.name: destination for destination in destinations},
        excluded=frozenset(_text(excluded) for excluded in _list(document["excluded"])),
    )


def _decode_destination(row: dict[str, Any]) -> Destination:
    return Destination(
        name=checked_name(_text(row["name"])),
        address=checked_address(_text(row["address"])),
        port=checked_port(_number(row["port"])),
        weight=checked_weight(_number(row["weight"])),
        method=_method(row["method"]),
    )


def _encode_remembered(row: Remembered) -> dict[str, Any]:
    """Everything in the document: a node's name may be no UTF-8, which JSON's escapes keep and SQLite's text does not."""
    offer = row.offer
    return {
        "node": row.node,
        "service": offer.service,
        "address": row.address,
        "port": offer.port,
        "method": str(offer.method),
        "weight": offer.weight,
        "checked": offer.checked,
    }


def _decode_remembered(document: dict[str, Any]) -> Remembered:
    offer = Offer(
        service=checked_name(_text(document["service"]), "service"),
        port=checked_port(_number(document["port"])),
        method=_method(document["method"]),
        weight=checked_weight(_number(document["weight"])),
        checked=document["checked"] is True,
    )
    return Remembered(_text(document["node"]), checked_address(_text(document["address"])), offer)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no object")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _number(value: object) -> int:
    if type(value) is not int or value < 0:  # bool is an int, too
        raise ValueError(f"{value!r} is no whole number")
    return value


def _method(value: object) -> ForwardingMethod:
    try:
        return ForwardingMethod[_text(value).upper()]
    except KeyError:
        raise ValueError(f"method {value!r} is not known") from None
