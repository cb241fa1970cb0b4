"""What was acknowledged is there, whatever happens; what cannot be read is never overwritten."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusisd.errors import Conflict, StartupError, StoreError
from fusisd.model import Destination, Offer, Service
from fusisd.ports import Remembered
from fusisd.store.sqlite import (
    SqliteIntents,
    SqliteLocal,
    decode_service,
    encode_service,
    lock_state,
    machine_identity,
    open_database,
)
from pyipvs import ForwardingMethod, ServiceKey
from tests.fusisd.world import at, web

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True)
destinations = st.builds(
    Destination,
    names,
    st.ip_addresses().filter(lambda ip: not (ip.is_multicast or ip.is_unspecified or ip.is_reserved)).map(str),
    st.integers(1, 65535),
    st.integers(0, 65535),
    st.sampled_from([ForwardingMethod.NAT, ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL]),
)
services = st.builds(
    lambda name, key, scheduler, persistence, rows, out: Service(
        name, ServiceKey.parse(key), scheduler, persistence, {row.name: row for row in rows}, frozenset(out)
    ),
    names,
    st.sampled_from(["tcp/10.0.0.1:80", "udp/[fd00::1]:53", "sctp/10.0.0.2:9", "fwmark/7"]),
    st.sampled_from(["rr", "mh"]),
    st.integers(0, 1000),
    st.lists(destinations, max_size=4),
    st.sets(names, max_size=3),
)


changes = st.lists(st.dictionaries(st.sampled_from("abcd"), st.none() | services, max_size=3), max_size=8)


@given(services)
def test_a_service_comes_back_from_its_document_as_it_was(service: Service) -> None:
    assert decode_service(service.name, encode_service(service)) == service


def stores(path: Path, machine: str = "m") -> tuple[SqliteIntents, SqliteLocal, sqlite3.Connection]:
    database = open_database(path)
    return SqliteIntents(database, path), SqliteLocal(database, path, machine), database


def test_what_is_committed_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "db"
    intents, _, database = stores(path)
    assert intents.commit(0, {"web": web(destinations={"d1": at(1)}), "b": web("b", "tcp/10.0.0.2:80")}) == 1
    assert intents.commit(1, {"b": None}) == 2
    database.close()
    intents, _, database = stores(path)
    loaded = intents.load()
    assert (loaded.revision, dict(loaded.services)) == (2, {"web": web(destinations={"d1": at(1)})})
    database.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@settings(max_examples=60, deadline=None)
@given(changes)
def test_any_commits_load_back_as_what_they_amount_to(commits: list[dict[str, Service | None]]) -> None:
    expected: dict[str, Service] = {}
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "db")
        for revision, change in enumerate(commits):
            rows = {name: replace(service, name=name) if service else None for name, service in change.items()}
            intents, _, database = stores(path)  # opened anew each time, as after a restart
            assert intents.commit(revision, rows) == revision + 1
            database.close()
            expected = {name: row for name, row in {**expected, **rows}.items() if row is not None}
        intents, _, database = stores(path)
        loaded = intents.load()
        database.close()
    assert (loaded.revision, dict(loaded.services)) == (len(commits), expected)


def test_everything_on_disk_is_for_the_owner_only(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, {"web": web()})
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    database.close()
    assert modes == {"db": 0o600, "db-wal": 0o600, "db-shm": 0o600}


def test_a_full_disk_refuses_the_change_and_keeps_what_was_there(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, {"web": web()})
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count={pages}")
    many = {f"s{number}": web(f"s{number}", f"tcp/10.0.1.{number}:80") for number in range(1, 200)}
    with pytest.raises(StoreError, match="full"):
        intents.commit(1, many)
    assert (intents.load().revision, set(intents.load().services)) == (1, {"web"})
    database.execute(f"PRAGMA max_page_count={pages + 1000}")
    assert intents.commit(1, many) == 2
    database.close()


def test_a_call_from_another_thread_is_refused(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    with ThreadPoolExecutor(1) as other, pytest.raises(StoreError, match="thread"):
        other.submit(intents.load).result(10)
    database.close()


def test_a_commit_on_an_old_revision_is_a_conflict_and_changes_nothing(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, {"web": web()})
    with pytest.raises(Conflict):
        intents.commit(0, {"web": None})
    assert set(intents.load().services) == {"web"}
    database.close()


def test_ownership_is_of_this_machine_s_life_only(tmp_path: Path) -> None:
    path = tmp_path / "db"
    _, local, database = stores(path, "boot 1")
    row = Remembered("rs1", "10.0.0.11", Offer("web", 80, weight=3, checked=False))
    local.claim("vip", {"10.0.0.1": "eth0", "10.0.0.2": "eth0"})
    local.release("vip", ["10.0.0.2", "unknown"])
    local.remember([row])
    assert (local.owned("vip"), local.owned("service"), local.remembered()) == ({"10.0.0.1": "eth0"}, {}, (row,))
    database.close()
    _, local, database = stores(path, "boot 2")
    assert (local.owned("vip"), local.remembered()) == ({}, ())
    database.close()


def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="move it aside"):
        open_database(path)
    assert path.read_bytes() == b"not a database" * 100


def test_a_damaged_row_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    database.execute("INSERT INTO services VALUES ('web', '{\"key\": \"tcp/nonsense\"}')")
    with pytest.raises(StoreError, match="db: service 'web' is damaged"):
        intents.load()
    database.close()


DOCUMENT: dict[str, Any] = {
    "key": "tcp/10.0.0.1:80",
    "scheduler": "rr",
    "persistence_s": 0,
    "destinations": [{"name": "d1", "address": "10.0.0.11", "port": 80, "weight": 1, "method": "nat"}],
    "excluded": [],
}
ROW: dict[str, Any] = DOCUMENT["destinations"][0]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "None is no object"),
        ({}, "'destinations' is missing"),
        (DOCUMENT | {"key": 7}, "7 is no text"),
        (DOCUMENT | {"scheduler": "fair"}, "'fair'"),
        (DOCUMENT | {"persistence_s": "60"}, "'60' is no whole number"),
        (DOCUMENT | {"excluded": "rs1"}, "'rs1' is no list"),
        (DOCUMENT | {"destinations": {}}, "no list"),
        (DOCUMENT | {"destinations": [ROW | {"address": 5}]}, "5 is no text"),
        (DOCUMENT | {"destinations": [ROW | {"port": True}]}, "True is no whole number"),
        (DOCUMENT | {"destinations": [ROW | {"weight": 65536}]}, "65536"),
        (DOCUMENT | {"destinations": [ROW | {"method": "magic"}]}, "'magic'"),
    ],
)
def test_a_document_is_read_as_strictly_as_a_request(tmp_path: Path, document: object, said: str) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, {"web": decode_service("web", DOCUMENT)})
    database.execute("UPDATE services SET document = ?", (json.dumps(document),))
    with pytest.raises(StoreError, match=said):
        intents.load()
    database.close()


def test_a_node_whose_name_is_no_utf_8_is_remembered_too(tmp_path: Path) -> None:
    _, local, database = stores(tmp_path / "db")
    row = Remembered(b"rs\xff".decode("utf-8", "surrogateescape"), "fd00::b", Offer("web", 80))
    local.remember([row])
    assert local.remembered() == (row,)
    database.close()


def test_a_file_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    database = open_database(tmp_path / "db")
    database.execute("PRAGMA user_version=99")
    database.close()
    before = (tmp_path / "db").read_bytes()
    with pytest.raises(StoreError, match="newer"):
        open_database(tmp_path / "db")
    assert (tmp_path / "db").read_bytes() == before


def test_only_one_holds_the_state_directory(tmp_path: Path) -> None:
    held = lock_state(tmp_path / "state")
    with pytest.raises(StartupError, match=f"pid {os.getpid()}"):
        lock_state(tmp_path / "state")
    os.close(held)
    os.close(lock_state(tmp_path / "state"))
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_state_directory_that_cannot_be_made_is_named_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="Not a directory; run as root, or choose another with --state-dir"):
        lock_state(tmp_path / "file" / "state")


def test_the_machine_s_identity_is_boot_and_namespace() -> None:
    boot, namespace = machine_identity().split()
    assert len(boot) == 36
    assert namespace.isdigit()


WRITER = """
import sys; from pathlib import Path
from fusisd.store.sqlite import SqliteIntents, open_database
from tests.fusisd.world import at, web
path = Path(sys.argv[1]); intents = SqliteIntents(open_database(path), path)
revision = intents.load().revision
while True:
    revision = intents.commit(revision, {"web": web(destinations={"d1": at(1, weight=revision % 60000)})})
    print(revision, flush=True)
"""


def test_what_was_acknowledged_before_kill_9_is_there(tmp_path: Path) -> None:
    path = tmp_path / "db"
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().splitlines()]
        writer.wait(10)
        writer.stdout.close()
        intents, _, database = stores(path)
        loaded = intents.load()
        assert loaded.revision >= acknowledged[-1]
        assert loaded.services["web"].destinations["d1"].weight == (loaded.revision - 1) % 60000
        database.close()
