"""The SQLite file that holds both stores: opened, brought to the present schema, set aside when it is damaged.

Write-ahead log with synchronous=FULL: when a transaction's COMMIT returns, it survives a loss of power (one fdatasync,
0.3 ms on the measured disk, 2026-11; tests/fusisd/test_store_durable.py proves it by tracing). Files are 0600.
A file that cannot be read is never written, replaced or deleted; an operator may have it set aside.
Does not: know what the tables mean beyond their migration, or take the lock on the directory (lock.py).
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from fusisd.documents import decode_service, encode_service
from fusisd.errors import Invalid, StoreError
from fusisd.fields import parsed
from fusisd.files import open_private

SCHEMA_VERSION = 3
_SERVICES = "CREATE TABLE services (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, document TEXT NOT NULL);"
_DESTINATIONS = "CREATE TABLE destinations (service TEXT, name TEXT, document TEXT NOT NULL, PRIMARY KEY (service, name));"
_GLOBALS = "CREATE TABLE globals (name TEXT PRIMARY KEY, document TEXT NOT NULL);"
_SCHEMA = f"""
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
CREATE TABLE owned (machine TEXT, kind TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (machine, kind, key));
CREATE TABLE remembered (machine TEXT, document TEXT NOT NULL);
{_SERVICES}
{_DESTINATIONS}
{_GLOBALS}
"""

RECOVER = (
    "fusisd --recover-store sets it aside and starts with an empty one: the kernel's services go on serving,"
    " and are there to adopt"
)
_SUFFIXES = ("", "-wal", "-shm")
# https://sqlite.org/rescode.html, without the extension: what helps.
_HELP = {
    sqlite3.SQLITE_NOTADB: RECOVER,
    sqlite3.SQLITE_CORRUPT: RECOVER,
    sqlite3.SQLITE_FULL: "make room for it",
    sqlite3.SQLITE_IOERR: "the disk is full or failing",
    sqlite3.SQLITE_CANTOPEN: "fusisd must be allowed to read, write and make files in its directory",
    sqlite3.SQLITE_READONLY: "fusisd must be allowed to read, write and make files in its directory",
    sqlite3.SQLITE_BUSY: "another program has it open: end that one",
}


def open_database(path: Path) -> sqlite3.Connection:
    """The file, made when absent, for the calling thread only; an older schema is migrated, its file copied aside first
    (`fusisd.db.schema2`). Raises StoreError: damaged, newer than us, no access."""
    try:
        os.close(open_private(path, os.O_RDWR))
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}; {_HELP[sqlite3.SQLITE_CANTOPEN]}") from None
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        with reported(path):
            _prepare(database, path)
    except StoreError:
        database.close()
        raise
    return database


def copied(path: Path, into: Path) -> Path:
    """A copy of the file with its log in a directory of yours, so that it can be opened without a change to it (opening
    migrates, and makes what is not there). Nobody may have it open. Raises StoreError."""
    try:
        for suffix in _SUFFIXES[:2]:
            if not suffix or _with_suffix(path, suffix).exists():
                shutil.copyfile(_with_suffix(path, suffix), _with_suffix(into / path.name, suffix))
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    return into / path.name


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """SQLite's errors inside become StoreError, with the file's name and what helps."""
    try:
        yield
    except sqlite3.Error as error:
        helps = _HELP.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        raise StoreError(f"{path}: {error}" + (f"; {helps}" if helps else "")) from error


def set_aside(path: Path) -> Path:
    """Rename the file with its log and index to `<path>.damaged-<n>`, a name not taken; that name.

    Nobody may have it open. At every moment all of it stands under one of the names: without its log, SQLite would show
    an older state as if nothing were wrong, and beside a new file it would delete the log. Raises StoreError.
    """
    aside = _free_name(path, "damaged-{}", 1)
    try:
        for suffix in _SUFFIXES[1:]:
            if (source := _with_suffix(path, suffix)).exists():
                os.link(source, _with_suffix(aside, suffix))
        os.rename(path, aside)
        for suffix in _SUFFIXES[1:]:
            _with_suffix(path, suffix).unlink(missing_ok=True)
        _sync_directory(path)
    except OSError as error:
        raise StoreError(f"cannot set {path} aside as {aside}: {error.strerror}") from None
    return aside


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _free_name(path: Path, pattern: str, first: int) -> Path:
    """The first name of the pattern that neither a file nor its log or index has."""
    names = (_with_suffix(path, "." + pattern.format(number)) for number in count(first))
    return next(name for name in names if not any(_with_suffix(name, suffix).exists() for suffix in _SUFFIXES))


def _sync_directory(path: Path) -> None:
    """Make the names in the file's directory durable."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    """Look at the version before anything is written, then set the modes and make the tables of a new file.

    With exclusive locking, set before the first access, the log's index is in our memory (https://sqlite.org/wal.html#noshm):
    as a mapped file it ended us by SIGBUS when it could not be written any more (ext4, 2026-11).
    """
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path} was written by a newer fusisd (schema {version}): use that one, or move the file aside")
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()  # under 3 ms for 10,000 services (2026-11)
    if verdict != "ok":
        raise StoreError(f"{path} is damaged ({verdict.splitlines()[-1]}); {RECOVER}")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    if version == 0:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    elif version < SCHEMA_VERSION:
        _copy_aside(database, path, version)
        with database:
            database.execute("BEGIN IMMEDIATE")
            for step in _MIGRATIONS[version - 1 :]:
                step(database, path)
            database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _copy_aside(database: sqlite3.Connection, path: Path, version: int) -> None:
    """A copy that an older fusisd can use: complete and durable before it has its name, and never over another file."""
    draft = _with_suffix(path, ".copy")
    try:
        os.close(open_private(draft, os.O_WRONLY | os.O_TRUNC))
        database.execute("VACUUM INTO ?", (str(draft),))  # into an empty file, with what the log holds
        with open(draft, "rb") as copy:
            os.fsync(copy.fileno())
        target = _with_suffix(path, f".schema{version}")
        os.rename(draft, _free_name(path, f"schema{version}-{{}}", 2) if target.exists() else target)
        _sync_directory(path)
    except OSError as error:
        raise StoreError(f"cannot copy {path} aside before its migration: {error.strerror}") from None


def _migrate_1(database: sqlite3.Connection, path: Path) -> None:
    """Schema 1 (2026-11) had no revisions of rows and no globals, and kept destinations as a list."""
    (revision,) = database.execute("SELECT number FROM revision").fetchone()
    old = database.execute("SELECT name, document FROM services").fetchall()
    rows = [(name, revision, _document_of_1(path, name, document)) for name, document in old]
    database.execute("DROP TABLE services")
    database.execute(_SERVICES)
    database.execute(_GLOBALS)
    database.executemany("INSERT INTO services VALUES (?, ?, ?)", rows)


def _migrate_2(database: sqlite3.Connection, path: Path) -> None:
    """Schema 2 (2026-11) kept a service's destinations in its document."""
    database.execute(_DESTINATIONS)
    for name, document in database.execute("SELECT name, document FROM services").fetchall():
        try:
            service = parsed(document)
            rows = [(name, one, json.dumps(row)) for one, row in service.pop("destinations", {}).items()]
        except (Invalid, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: service {name!r} of schema 2 cannot be read: {error}; {RECOVER}") from None
        database.execute("UPDATE services SET document = ? WHERE name = ?", (json.dumps(service), name))
        database.executemany("INSERT INTO destinations VALUES (?, ?, ?)", rows)


_MIGRATIONS = (_migrate_1, _migrate_2)
"""By the schema they start from; all that are needed run in one transaction."""


def _document_of_1(path: Path, name: str, document: str) -> str:
    try:
        old = parsed(document)
        named = {row.pop("name"): row for row in old["destinations"]}
        return json.dumps(encode_service(decode_service(name, old | {"destinations": named})))
    except (Invalid, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: service {name!r} of schema 1 cannot be read: {error}; {RECOVER}") from None
