"""What was acknowledged is there, whatever happens; what cannot be read is never overwritten."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusisd.errors import Conflict, StartupError, StoreError
from fusisd.model import Destination, Intent, Offer, Service
from fusisd.ports import Change, Remembered
from fusisd.store.file import SCHEMA_VERSION
from fusisd.store.sqlite import SqliteIntents, SqliteLocal, lock_state, machine_identity, open_database, set_aside
from pyipvs import ForwardingMethod, ServiceKey, Timeouts
from tests.fusisd import strategies

changes = st.lists(
    st.builds(
        Change,
        st.dictionaries(st.sampled_from("abcd"), st.none() | strategies.services(), max_size=3),
        st.none() | strategies.timeouts,
        st.none() | strategies.ranges,
    ),
    max_size=6,
)


def web(name: str = "web", key: str = "tcp/10.0.0.1:80", **settings: Any) -> Service:
    return Service(name, ServiceKey.parse(key), **settings)


def at(number: int, **settings: Any) -> Destination:
    return Destination(f"d{number}", f"10.0.0.{10 + number}", 80, **settings)


def stores(path: Path, machine: str = "m") -> tuple[SqliteIntents, SqliteLocal, sqlite3.Connection]:
    database = open_database(path)
    return SqliteIntents(database, path), SqliteLocal(database, path, machine), database


def test_what_is_committed_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "db"
    intents, _, database = stores(path)
    assert intents.commit(0, Change({"web": web(destinations={"d1": at(1)}), "b": web("b", "tcp/10.0.0.2:80")})) == 1
    assert intents.commit(1, Change({"b": None})) == 2
    database.close()
    intents, _, database = stores(path)
    loaded = intents.load()
    assert (loaded.revision, dict(loaded.services)) == (2, {"web": web(destinations={"d1": at(1)})})
    database.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@settings(max_examples=40)
@given(changes)
def test_any_commits_load_back_as_what_they_amount_to(commits: list[Change]) -> None:
    expected = Intent()
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "db")
        for revision, change in enumerate(commits, 1):
            rows = {name: replace(service, name=name) if service else None for name, service in change.services.items()}
            intents, _, database = stores(path)  # opened anew each time, as after a restart
            assert intents.commit(revision - 1, replace(change, services=rows)) == revision
            database.close()
            kept = {**expected.services, **{name: row and replace(row, revision=revision) for name, row in rows.items()}}
            services = {name: row for name, row in kept.items() if row is not None}
            timeouts = expected.timeouts if change.timeouts is None else change.timeouts
            ranges = expected.ranges if change.ranges is None else change.ranges
            expected = Intent(services, revision, timeouts, ranges)
        intents, _, database = stores(path)
        loaded = intents.load()
        database.close()
    assert loaded == expected
    assert {row.name: row.revision for row in loaded.services.values()} == {
        row.name: row.revision for row in expected.services.values()
    }


def test_everything_on_disk_is_for_the_owner_only(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, Change({"web": web()}))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    database.close()
    assert modes == {"db": 0o600, "db-wal": 0o600}, "no index as a file, which would be mapped"


def test_a_full_disk_refuses_the_change_and_keeps_what_was_there(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, Change({"web": web()}))
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count={pages}")
    many = {f"s{number}": web(f"s{number}", f"tcp/10.0.1.{number}:80") for number in range(1, 200)}
    with pytest.raises(StoreError, match="full"):
        intents.commit(1, Change(many))
    assert (intents.load().revision, set(intents.load().services)) == (1, {"web"})
    database.execute(f"PRAGMA max_page_count={pages + 1000}")
    assert intents.commit(1, Change(many)) == 2
    database.close()


def test_a_call_from_another_thread_is_refused(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    with ThreadPoolExecutor(1) as other, pytest.raises(StoreError, match="thread"):
        other.submit(intents.load).result(10)
    database.close()


def test_a_commit_on_an_old_revision_is_a_conflict_and_changes_nothing(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, Change({"web": web()}))
    with pytest.raises(Conflict):
        intents.commit(0, Change({"web": None}))
    assert set(intents.load().services) == {"web"}
    database.close()


def test_what_would_not_come_back_is_not_stored(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, Change({"web": web()}))
    with pytest.raises(StoreError, match="service b cannot be stored: destinations.d1.weight -1"):
        intents.commit(1, Change({"b": web("b", destinations={"d1": at(1, weight=-1)})}))
    with pytest.raises(StoreError, match="service b cannot be stored: it would come back as"):
        intents.commit(1, Change({"b": web("b", destinations={"d1": replace(at(1), address="FD00::11")}, scheduler="mh",
                                           key="tcp/[fd00::1]:80")}))  # fmt: skip
    assert (intents.load().revision, set(intents.load().services)) == (1, {"web"})
    database.close()


def test_ownership_is_of_this_machine_s_life_only(tmp_path: Path) -> None:
    path = tmp_path / "db"
    _, local, database = stores(path, "boot1 ns1")
    rows = (
        Remembered("rs1", "10.0.0.11", Offer("web", 80, weight=3, checked=False)),
        Remembered("rs2", "10.0.0.12", Offer("web", 80, ForwardingMethod.TUNNEL), left_s=12.5),
    )
    local.claim("vip", {"10.0.0.1": "eth0", "10.0.0.2": "eth0"})
    local.release("vip", ["10.0.0.2", "unknown"])
    local.remember(rows)
    assert (local.owned("vip"), local.owned("service"), local.remembered()) == ({"10.0.0.1": "eth0"}, {}, rows)
    database.close()
    _, local, database = stores(path, "boot1 ns2")
    assert (local.owned("vip"), local.remembered()) == ({}, ())
    local.remember([])
    database.close()
    _, local, database = stores(path, "boot1 ns1")
    assert (local.owned("vip"), local.remembered()) == ({"10.0.0.1": "eth0"}, rows), "a start elsewhere lost nothing"
    database.close()
    for machine in ("boot2 ns1", "boot1 ns1"):
        _, local, database = stores(path, machine)
        assert (local.owned("vip"), local.remembered()) == ({}, ())
        database.close()


@pytest.mark.parametrize("damage", ["all", "head", "page", "cut"])
def test_a_damaged_file_is_named_with_the_mend_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "db"
    intents, _, database = stores(path)
    intents.commit(0, Change({f"s{row}": web(f"s{row}", f"fwmark/{row}") for row in range(1, 400)}))
    database.close()
    good = path.read_bytes()
    bad = {
        "all": b"not a database" * 100,
        "head": b"\0" * 16 + good[16:],
        "page": good[: 5 * 4096] + b"\xff" * 4096 + good[6 * 4096 :],
        "cut": good[: len(good) // 2],
    }[damage]
    path.write_bytes(bad)
    with pytest.raises(StoreError, match="^.*/db.*; fusisd --recover-store sets it aside and starts with an empty one"):
        open_database(path)
    assert path.read_bytes() == bad


def test_a_damaged_file_is_set_aside_whole_and_nothing_set_aside_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "fusisd.db"
    for number in (1, 2):
        intents, _, database = stores(path)
        intents.commit(0, Change({f"s{number}": web(f"s{number}")}))  # in the log: the file itself is empty yet
        for suffix in ("", "-wal"):
            Path(f"{path}{suffix}.kept").write_bytes(Path(f"{path}{suffix}").read_bytes())
        database.close()
        for suffix in ("", "-wal"):
            Path(f"{path}{suffix}.kept").rename(f"{path}{suffix}")
        Path(f"{path}-shm").write_bytes(bytes(32768))  # as another program with SQLite leaves it
        aside = set_aside(path)
        assert aside == tmp_path / f"fusisd.db.damaged-{number}"
        assert not [name for name in os.listdir(tmp_path) if name in ("fusisd.db", "fusisd.db-wal", "fusisd.db-shm")]
    for number in (1, 2):
        intents, _, database = stores(tmp_path / f"fusisd.db.damaged-{number}")
        assert set(intents.load().services) == {f"s{number}"}, "with its log"
        database.close()


def test_a_log_left_from_an_interrupted_setting_aside_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "db"
    open_database(path).close()
    Path(f"{path}.damaged-1-wal").write_text("of a first attempt")
    assert set_aside(path) == Path(f"{path}.damaged-2")
    assert Path(f"{path}.damaged-1-wal").read_text() == "of a first attempt"
    with pytest.raises(StoreError, match="cannot set .*db aside as .*damaged-3: No such file"):
        set_aside(path)


@contextmanager
def nobody() -> Iterator[None]:
    """As a user whom the permissions of files bind: root they do not."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def readable() -> Iterator[Path]:
    """A directory with a store that anybody may read."""
    with tempfile.TemporaryDirectory() as home:
        directory = Path(home)
        database = open_database(directory / "db")
        database.close()
        (directory / "db").chmod(0o666)
        directory.chmod(0o555)
        yield directory
        directory.chmod(0o755)


def test_a_directory_that_may_not_be_written_is_an_error_that_says_so(readable: Path) -> None:
    with nobody(), pytest.raises(StoreError, match="db: .*must be allowed to read, write and make files in its directory"):
        open_database(readable / "db")
    with nobody(), pytest.raises(StoreError, match="cannot open .*/new: Permission denied; fusisd must be allowed"):
        open_database(readable / "new")
    with nobody(), pytest.raises(StoreError, match="cannot set .* aside as .*: Permission denied"):
        set_aside(readable / "db")
    assert sorted(os.listdir(readable)) == ["db"]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "no valid JSON"),
        ("[]", "must be an object"),
        ('{"key": "tcp/nonsense"}', "key: 'nonsense' is not ADDRESS:PORT"),
        ('{"key": "tcp/10.0.0.1:80", "colour": "red"}', "colour is not known: misspelt, or of a newer fusisd"),
    ],
)
def test_a_row_is_read_as_strictly_as_a_request(tmp_path: Path, document: str, said: str) -> None:
    intents, _, database = stores(tmp_path / "db")
    intents.commit(0, Change({"web": web()}))
    database.execute("UPDATE services SET document = ?", (document,))
    with pytest.raises(StoreError, match=f"db: service 'web' cannot be read: .*{said}.*--recover-store"):
        intents.load()
    database.close()


def test_a_global_that_is_not_known_is_refused(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    database.execute("INSERT INTO globals VALUES ('colour', '{}')")
    with pytest.raises(StoreError, match="holds 'colour', which this fusisd does not know"):
        intents.load()
    database.close()


@pytest.mark.parametrize("change", [{"port": "80"}, {"left_s": -1}, {"checked": 1}, {"address": "x"}, {"more": 1}])
def test_a_remembered_node_is_read_as_strictly(tmp_path: Path, change: dict[str, Any]) -> None:
    _, local, database = stores(tmp_path / "db")
    local.remember([Remembered("rs1", "10.0.0.11", Offer("web", 80))])
    (document,) = database.execute("SELECT document FROM remembered").fetchone()
    database.execute("UPDATE remembered SET document = ?", (json.dumps(json.loads(document) | change),))
    with pytest.raises(StoreError, match=f"a remembered node cannot be read: {next(iter(change))}"):
        local.remembered()
    database.close()


# What fusisd of schema 1 (2026-11) wrote: its statements and documents, word for word.
SCHEMA_1 = """
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
CREATE TABLE services (name TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE owned (machine TEXT, kind TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (machine, kind, key));
CREATE TABLE remembered (machine TEXT, document TEXT NOT NULL);
"""
WEB_1 = (
    '{"key": "tcp/10.0.0.1:80", "scheduler": "wlc", "persistence_s": 0, "destinations": [{"name": "rs1", "address": '
    '"10.0.0.11", "port": 8080, "weight": 5, "method": "nat"}, {"name": "rs2", "address": "10.0.0.12", "port": 80, '
    '"weight": 0, "method": "route"}], "excluded": ["rs9"]}'
)
DNS_1 = '{"key": "udp/[fd00::1]:53", "scheduler": "rr", "persistence_s": 60, "destinations": [], "excluded": []}'
NODE_1 = (
    '{"node": "rs1", "service": "web", "address": "10.0.0.11", "port": 80, "method": "nat", "weight": 1, "checked": true}'
)


def make_schema_1(path: Path, *rows: tuple[str, str]) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.executescript(f"BEGIN; {SCHEMA_1} PRAGMA user_version=1; COMMIT;")
    database.execute("UPDATE revision SET number = 7")
    database.executemany("INSERT INTO services VALUES (?, ?)", rows)
    database.execute("INSERT INTO owned VALUES ('m', 'service', 'tcp/10.0.0.1:80', 'web')")
    database.execute("INSERT INTO remembered VALUES ('m', ?)", (NODE_1,))
    return database


def test_a_file_of_schema_1_is_migrated_and_copied_aside_first(tmp_path: Path) -> None:
    path = tmp_path / "fusisd.db"
    (tmp_path / "fusisd.db.schema1").write_text("of an earlier time")
    old = make_schema_1(tmp_path / "old", ("web", WEB_1), ("dns", DNS_1))
    for suffix in ("", "-wal"):  # copied while it is open: the rows are in the log, as after kill -9
        Path(f"{path}{suffix}").write_bytes((tmp_path / f"old{suffix}").read_bytes())
    intents, local, database = stores(path)
    loaded = intents.load()
    rows = [Destination("rs1", "10.0.0.11", 8080, 5, ForwardingMethod.NAT), Destination("rs2", "10.0.0.12", 80, 0)]
    assert loaded == Intent(
        {
            "web": web(scheduler="wlc", destinations={row.name: row for row in rows}, excluded=frozenset({"rs9"})),
            "dns": web("dns", "udp/[fd00::1]:53", persistence_s=60),
        },
        7,
    )
    assert {row.revision for row in loaded.services.values()} == {7}
    assert local.owned("service") == {"tcp/10.0.0.1:80": "web"}
    assert local.remembered() == (Remembered("rs1", "10.0.0.11", Offer("web", 80)),)
    assert intents.commit(7, Change({"dns": None}, Timeouts(udp_s=9), ("10.9.0.0/24",))) == 8
    fresh = open_database(tmp_path / "fresh")
    tables = "SELECT name, sql FROM sqlite_master ORDER BY name"
    assert database.execute(tables).fetchall() == fresh.execute(tables).fetchall()
    for connection in (database, fresh, old):
        connection.close()
    assert (tmp_path / "fusisd.db.schema1").read_text() == "of an earlier time"
    copy = tmp_path / "fusisd.db.schema1-2"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    aside = sqlite3.connect(copy)
    assert aside.execute("PRAGMA user_version").fetchone() == (1,)
    assert dict(aside.execute("SELECT name, document FROM services")) == {"web": WEB_1, "dns": DNS_1}
    aside.close()
    open_database(path).close()
    assert not (tmp_path / "fusisd.db.schema1-3").exists(), "migrated once"


# What fusisd of schema 2 (2026-11) wrote.
SCHEMA_2 = """
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (7);
CREATE TABLE owned (machine TEXT, kind TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (machine, kind, key));
CREATE TABLE remembered (machine TEXT, document TEXT NOT NULL);
CREATE TABLE services (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, document TEXT NOT NULL);
CREATE TABLE globals (name TEXT PRIMARY KEY, document TEXT NOT NULL);
INSERT INTO globals VALUES ('ranges', '["10.9.0.0/24"]');
"""
WEB_2 = (
    '{"key": "tcp/10.0.0.1:80", "scheduler": "wlc", "destinations": {"rs1": {"address": "10.0.0.11", "port": 8080, '
    '"weight": 5, "method": "nat"}, "rs2": {"address": "10.0.0.12", "port": 80, "weight": 0, "method": "route"}}}'
)


def make_schema_2(path: Path, document: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(f"BEGIN; {SCHEMA_2} PRAGMA user_version=2; COMMIT;")
    database.execute("INSERT INTO services VALUES ('web', 6, ?)", (document,))
    database.close()


def test_a_file_of_schema_2_is_migrated_and_copied_aside_first(tmp_path: Path) -> None:
    path = tmp_path / "fusisd.db"
    make_schema_2(path, WEB_2)
    intents, _, database = stores(path)
    loaded = intents.load()
    rows = [Destination("rs1", "10.0.0.11", 8080, 5, ForwardingMethod.NAT), Destination("rs2", "10.0.0.12", 80, 0)]
    service = replace(web(scheduler="wlc", destinations={row.name: row for row in rows}), revision=6)
    assert loaded == Intent({"web": service}, 7, ranges=("10.9.0.0/24",))
    assert list(loaded.services["web"].destinations) == ["rs1", "rs2"], "in the order they had"
    fresh = open_database(tmp_path / "fresh")
    tables = "SELECT name, sql FROM sqlite_master ORDER BY name"
    assert database.execute(tables).fetchall() == fresh.execute(tables).fetchall()
    database.close()
    fresh.close()
    aside = sqlite3.connect(tmp_path / "fusisd.db.schema2")
    assert aside.execute("SELECT document FROM services").fetchone() == (WEB_2,)
    aside.close()


@pytest.mark.parametrize("document", ["[]", '{"destinations": [7]}', "{"])
def test_a_damaged_file_of_schema_2_is_left_as_it_is(tmp_path: Path, document: str) -> None:
    path = tmp_path / "db"
    make_schema_2(path, document)
    with pytest.raises(StoreError, match="db: service 'web' of schema 2 cannot be read"):
        open_database(path)
    left = sqlite3.connect(path)
    assert left.execute("PRAGMA user_version").fetchone() == (2,)
    assert left.execute("SELECT document FROM services").fetchone() == (document,)
    left.close()


def test_only_the_destinations_that_changed_are_written_and_the_order_stays(tmp_path: Path) -> None:
    intents, _, database = stores(tmp_path / "db")
    many = {f"rs{n}": Destination(f"rs{n}", f"10.0.0.{n}", 80) for n in range(1, 201)}
    service = web(destinations=many)
    intents.commit(0, Change({"web": service}))
    before = database.total_changes
    changed = replace(service, destinations=many | {"rs7": replace(many["rs7"], weight=9)})
    intents.commit(1, Change({"web": changed}))
    assert database.total_changes - before == 3, "the revision, the service and one destination"
    fewer = replace(changed, destinations={name: one for name, one in changed.destinations.items() if name != "rs3"})
    intents.commit(2, Change({"web": fewer}))
    database.close()
    intents, _, database = stores(tmp_path / "db")
    assert list(intents.load().services["web"].destinations.items()) == list(fewer.destinations.items())
    intents.commit(3, Change({"web": None}))
    assert database.execute("SELECT count(*) FROM destinations").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize("document", ["[]", "{}", '{"destinations": [7]}', WEB_1.replace("wlc", "w l c"), "{"])
def test_a_damaged_file_of_schema_1_is_left_as_it_is(tmp_path: Path, document: str) -> None:
    path = tmp_path / "db"
    make_schema_1(path, ("dns", DNS_1), ("web", document)).close()
    with pytest.raises(StoreError, match="db: service 'web' of schema 1 cannot be read"):
        open_database(path)
    left = sqlite3.connect(path)
    assert left.execute("PRAGMA user_version").fetchone() == (1,)
    assert dict(left.execute("SELECT name, document FROM services")) == {"dns": DNS_1, "web": document}
    left.close()


def test_a_node_whose_name_is_no_utf_8_is_remembered_too(tmp_path: Path) -> None:
    _, local, database = stores(tmp_path / "db")
    row = Remembered(b"rs\xff".decode("utf-8", "surrogateescape"), "fd00::b", Offer("web", 80))
    local.remember([row])
    assert local.remembered() == (row,)
    database.close()


def test_a_file_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    database = open_database(tmp_path / "db")
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
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
