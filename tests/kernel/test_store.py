"""The store on a file system that is really full, or mounted for reading only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusisd.errors import StoreError
from fusisd.model import Intent
from fusisd.store.sqlite import SqliteIntents, SqliteLocal, lock_state, open_database, set_aside
from tests.fusisd.store_campaign import MACHINE, amounted, change_of, check


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True, timeout=30)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True, timeout=30)


def fill(path: Path) -> None:
    """Take all the room there is."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError as error:
        assert error.strerror == "No space left on device"
    finally:
        os.close(file)


def test_a_full_disk_refuses_changes_and_nothing_else_until_there_is_room(disk: Path) -> None:
    path = disk / "fusisd.db"
    database = open_database(path)
    intents, local = SqliteIntents(database, path), SqliteLocal(database, path, MACHINE)
    expected, revision = Intent(), 0

    def commit() -> None:
        nonlocal expected, revision
        change = change_of(revision + 1)
        local.claim("service", {str(row.key): name for name, row in change.services.items() if row is not None})
        revision = intents.commit(revision, change)
        expected = amounted(expected, revision)

    for _ in range(3):
        for _ in range(12):
            commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with pytest.raises(StoreError, match=f"{path}: .*full"):
            for _ in range(400):
                fill(disk / "filler")  # again and again: what the log gives back is taken, too
                commit()
        assert intents.load() == expected, "reading goes on"
        (disk / "filler").unlink()
    for _ in range(200):  # more than the disk would hold of the log, which is written back when it is full
        commit()
    fill(disk / "filler")
    database.close()
    found = check(path, expected, [])  # opened while full
    assert found.revision == revision


def test_a_new_file_on_a_full_disk_is_an_error_and_no_wreck(disk: Path) -> None:
    fill(disk / "filler")
    with pytest.raises(StoreError, match="fusisd.db: .*full"):
        open_database(disk / "fusisd.db")
    (disk / "filler").unlink()
    database = open_database(disk / "fusisd.db")
    assert SqliteIntents(database, disk / "fusisd.db").load() == Intent()
    database.close()


def test_a_file_system_that_cannot_be_written_is_an_error_that_says_so(disk: Path) -> None:
    path = disk / "fusisd.db"
    open_database(path).close()
    os.close(lock_state(disk))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=30)
    with pytest.raises(StoreError, match="cannot open .*fusisd.db: Read-only file system; fusisd must be allowed"):
        open_database(path)
    with pytest.raises(StoreError, match="cannot set .*: Read-only file system"):
        set_aside(path)
