"""An acknowledged change survives: synced before it is acknowledged, whole or absent when the process dies meanwhile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusisd.model import Intent
from fusisd.store.sqlite import SqliteIntents, open_database
from tests.fusisd.store_campaign import amounted, check
from tests.fusisd.tracing import strace, unsynced

traced = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: .ci/setup installs it")

# Commits N changes, each acknowledged by a line; argument 2 is a pragma to weaken the store with.
WRITER = """
import os, sys
from pathlib import Path
from fusisd.errors import StoreError
from fusisd.store.sqlite import SqliteIntents, SqliteLocal, open_database
from tests.fusisd.store_campaign import MACHINE, change_of
path = Path(sys.argv[1]); database = open_database(path); database.execute(sys.argv[2])
intents, local = SqliteIntents(database, path), SqliteLocal(database, path, MACHINE)
os.write(1, b"opened\\n")
revision = intents.load().revision
for _ in range(int(sys.argv[3])):
    change = change_of(revision + 1)
    try:
        local.claim("service", {str(row.key): name for name, row in change.services.items() if row is not None})
        os.write(1, b"claimed\\n")
        revision = intents.commit(revision, change)
    except StoreError as error:
        os.write(1, f"failed {error}\\n".encode())
    else:
        os.write(1, f"acknowledged {revision}\\n".encode())
"""


def write(path: Path, pragma: str = "PRAGMA synchronous", commits: int = 30, inject: str | None = None) -> tuple[str, str]:
    """What the writer said, and what strace saw of it."""
    trace = path.with_suffix(".trace")
    done = strace(trace, sys.executable, "-c", WRITER, str(path), pragma, str(commits), inject=inject)
    assert inject or done.returncode == 0, done.stderr
    return done.stdout, trace.read_text()


@traced
def test_every_commit_and_claim_is_synced_before_it_is_acknowledged(tmp_path: Path) -> None:
    said, trace = write(tmp_path / "fusisd.db")
    assert said.count("acknowledged") == 30
    assert unsynced(trace, "/fusisd.db-wal", "acknowledged|claimed") == (60, [])
    names = trace[: trace.index("opened")]
    assert f"<{tmp_path}>) = 0" in names, "the new files' names in their directory, too"


@traced
def test_the_test_above_would_see_a_store_that_does_not_sync(tmp_path: Path) -> None:
    _, trace = write(tmp_path / "fusisd.db", "PRAGMA synchronous=NORMAL")
    count, early = unsynced(trace, "/fusisd.db-wal", "acknowledged|claimed")
    assert (count, len(early) > 50) == (60, True)


def test_calls_of_several_threads_are_told_apart() -> None:
    trace = """\
1 pwrite64(5</s/fusisd.db-wal>, "x", 1, 0) = 1
1 fdatasync(5</s/fusisd.db-wal> <unfinished ...>
2 write(1</dev/null>, "acknowledged 1", 14) = 14
1 <... fdatasync resumed>) = 0
2 write(1</dev/null>, "acknowledged 2", 14 <unfinished ...>
2 <... write resumed>) = 14
1 pwrite64(5</s/fusisd.db-wal>, "x", 1, 0 <unfinished ...>
1 <... pwrite64 resumed>) = 1
1 fdatasync(5</s/fusisd.db-wal>) = -1 EIO (Input/output error)
2 write(1</dev/null>, "acknowledged 3", 14) = 14
"""
    count, early = unsynced(trace, "/fusisd.db-wal", "acknowledged")
    assert (count, re.findall("acknowledged .", " ".join(early))) == (3, ["acknowledged 1", "acknowledged 3"])


@traced
def test_a_sync_that_fails_is_no_acknowledgement_and_the_next_commit_works(tmp_path: Path) -> None:
    path = tmp_path / "fusisd.db"
    write(path, commits=3)
    said, _ = write(path, commits=6, inject="fdatasync:error=EIO:when=3..4")
    assert "failed" in said
    assert "disk I/O error; the disk is full or failing" in said
    assert "acknowledged" in said.splitlines()[-1]
    expected = Intent()
    for revision in range(1, int(said.split()[-1]) + 1):
        expected = amounted(expected, revision)
    assert check(path, expected, []) == expected


@traced
@pytest.mark.parametrize("at", [*range(1, 9), 20])
def test_a_process_that_dies_between_write_and_sync_leaves_a_prefix(tmp_path: Path, at: int) -> None:
    path = tmp_path / "fusisd.db"
    write(path, commits=0)
    said, _ = write(path, inject=f"fdatasync:signal=KILL:when={at}")
    numbers = [int(line.split()[1]) for line in said.splitlines() if line.startswith("acknowledged")]
    assert len(numbers) < 30
    check(path, Intent(), numbers)


def test_what_was_acknowledged_before_kill_9_is_there_a_hundred_times(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.fusisd.store_campaign", str(tmp_path / "fusisd.db"), "100", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("100 kills")
    assert int(done.stdout.split()[2]) > 20, "many lives were long enough to commit"


# RLIMIT_FSIZE ends a file's growth as a failing disk does (EFBIG): the log grows up to it, commits fail, then it may grow.
FULL = """
import resource, sys
from pathlib import Path
from fusisd.errors import StoreError
from fusisd.store.sqlite import SqliteIntents, open_database
from tests.fusisd.store_campaign import change_of
path = Path(sys.argv[1]); database = open_database(path); intents = SqliteIntents(database, path)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
revision = failures = 0
for _ in range(200):
    try:
        revision = intents.commit(revision, change_of(revision + 1))
    except StoreError as error:
        failures += 1
        assert str(path) in str(error), error
        assert intents.load().revision == revision
assert 0 < failures < 200, failures
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for _ in range(5):
    revision = intents.commit(revision, change_of(revision + 1))
database.close()
print(revision)
"""


def test_a_file_that_cannot_grow_refuses_changes_until_it_can(tmp_path: Path) -> None:
    path = tmp_path / "fusisd.db"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    database = open_database(path)
    found = SqliteIntents(database, path).load()
    database.close()
    expected = Intent()
    for revision in range(1, int(done.stdout) + 1):
        expected = amounted(expected, revision)
    assert found == expected
