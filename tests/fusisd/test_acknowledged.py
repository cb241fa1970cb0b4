"""A change was synced before the first byte of its 2xx was sent: the whole daemon, traced from its start, many clients at
once. For each answer the store is put together from what had been synced when it began, opened, and must hold the change.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fusisd.model import Intent
from fusisd.store.sqlite import SqliteIntents, open_database
from tests.fusisd.dry import Dry
from tests.fusisd.tracing import Call, answers, calls, command, left
from tests.lab.expect import poll

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: .ci/setup installs it")

CLIENTS = 6
# A sync that lasts: changes that come meanwhile share the next one, and an answer that did not wait for it would be seen.
SLOW = "fdatasync:delay_exit=20000"
# fusisd with a pragma (argument 1) that weakens its store.
WEAKENED = """
import sys
import fusisd.daemon
from fusisd.__main__ import main
pragma, opened = sys.argv.pop(1), fusisd.daemon.open_database
def weakened(path):
    database = opened(path)
    database.execute(pragma)
    return database
fusisd.daemon.open_database = weakened
sys.exit(main(sys.argv[1:]))
"""

Holds = Callable[[Intent], bool]


@dataclass
class Clients:
    """Requests of several clients at once, and what must be stored before each is answered, by the request's number."""

    dry: Dry
    expected: dict[int, Holds] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def ask(self, number: int, method: str, path: str, body: Any, holds: Holds) -> None:
        """One change."""
        status, answer = self.dry.ask(method, path, body, headers={"X-Number": f"<{number}>"})
        if not 200 <= status < 300:
            self.refused.append(f"{method} {path}: {status} {answer!r}")
        self.expected[number] = holds

    def run(self, life: Callable[[int], None]) -> None:
        """`life(client)` in a thread for each client, all at once."""
        threads = [threading.Thread(target=life, args=(client,)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)

    def seed(self, client: int) -> None:
        """A service's life by the routes of 2016."""
        name, one = f"seed{client}", f"/services/seed{client}"
        web = {"Name": name, "Host": f"10.0.1.{client}", "Port": 80, "Protocol": "tcp", "Scheduler": "rr"}
        rs = {"Name": "rs", "Host": "10.0.0.11", "Port": 80, "Mode": "nat"}
        first = 100 * client
        self.ask(first, "POST", "/services", web, lambda intent: name in intent.services)
        for weight in (1, 2):
            holds = weighs(name, weight)
            self.ask(first + weight, "POST", f"{one}/destinations", {**rs, "Weight": weight}, holds)
        gone = weighs(name, None)
        self.ask(first + 3, "DELETE", f"{one}/destinations/rs?now=1", None, gone)
        self.ask(first + 4, "DELETE", f"{one}?now=1", None, lambda intent: name not in intent.services)

    def native(self, client: int) -> None:
        """The same by /v1."""
        name, one = f"v1-{client}", f"/v1/services/v1-{client}"
        web = {"name": name, "protocol": "tcp", "address": f"10.0.2.{client}", "port": 80}
        rs = {"address": "10.0.0.11", "port": 80, "method": "nat", "weight": 1}
        first = 100 * client + 50
        self.ask(first, "POST", "/v1/services", {**web, "destinations": {"rs": rs}}, weighs(name, 1))
        patch = {"destinations": {"rs": {"weight": 2}}}
        self.ask(first + 1, "PATCH", one, patch, weighs(name, 2))
        self.ask(first + 2, "PUT", f"{one}/destinations/rs", {**rs, "weight": 3}, weighs(name, 3))
        self.ask(first + 3, "DELETE", f"{one}/destinations/rs?now=1", None, weighs(name, None))
        self.ask(first + 4, "DELETE", f"{one}?now=1", None, lambda intent: name not in intent.services)


def weighs(name: str, weight: int | None) -> Holds:
    """Whether the service is there, and its destination has this weight (None: is gone)."""

    def holds(intent: Intent) -> bool:
        service = intent.services.get(name)
        if service is None:
            return False
        row = service.destinations.get("rs")
        return row.weight == weight if row is not None else weight is None

    return holds


@dataclass
class Traced:
    """A traced daemon's end: what strace saw, what its clients expect, and its log."""

    seen: list[Call]
    clients: Clients
    log: str

    def early(self, home: Path) -> Iterator[str]:
        """The requests that were answered 2xx while what they changed was not durable."""
        for number, answer in enumerate(answers(self.seen)):
            match = re.search(rb"X-Number: <(\d+)>", answer.request)
            if match is None or not 200 <= answer.status < 300:
                continue
            holds = self.clients.expected.pop(int(match[1]))
            if not holds(stored(left(self.seen, self.clients.dry.state_dir, answer.began), home / str(number))):
                yield answer.request.split(b"\r\n", 1)[0].decode()


def stored(files: dict[str, bytes], directory: Path) -> Intent:
    """What fusisd would find there after the loss of power."""
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    database = open_database(directory / "fusisd.db")
    intent = SqliteIntents(database, directory / "fusisd.db").load()
    database.close()
    return intent


def traced(home: Path, lives: list[str], python: tuple[str, ...] = ("-m", "fusisd")) -> Traced:
    """A daemon under strace, from its start to its end."""
    dry, trace = Dry(home), home / "trace"
    dry.start(command(trace, *dry.command(python=python), inject=SLOW, size=1 << 16, beside=True))
    try:
        clients = Clients(dry)
        for life in lives:
            clients.run(getattr(clients, life))
        dry.end()
        poll(lambda: re.search(r"exited with 0 \+\+\+\n\Z", trace.read_text()), what="the end of the trace")
    finally:
        dry.close()
    assert clients.refused == []
    return Traced(calls(trace.read_text()), clients, dry.log.read_text())


@pytest.mark.parametrize("life", ["seed", "native"])
def test_every_change_is_on_disk_before_the_first_byte_of_its_answer(tmp_path: Path, life: str) -> None:
    found = traced(tmp_path, [life])
    assert len(found.clients.expected) == 5 * CLIENTS
    assert list(found.early(tmp_path)) == []
    assert found.clients.expected == {}, "every answer was seen in the trace"
    revisions = re.findall(r"accepted .* revision=(\d+)", found.log)
    assert len(set(revisions)) < 5 * CLIENTS <= len(revisions), "several changes shared a commit"


@pytest.mark.parametrize("level", ["OFF", "NORMAL"])
def test_the_test_above_would_see_a_daemon_that_does_not_sync(tmp_path: Path, level: str) -> None:
    found = traced(tmp_path, ["seed", "native"], ("-c", WEAKENED, f"PRAGMA synchronous={level}"))
    assert len(list(found.early(tmp_path))) > 5 * CLIENTS
