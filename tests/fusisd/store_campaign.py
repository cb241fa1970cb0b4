"""A store written by processes that are killed: `python -m tests.fusisd.store_campaign PATH LIVES SEED`.

Each life opens the file and commits change after change (which change a revision makes is a function of its number),
claims ownership before each, as the committer does, and acknowledges each; it is killed (-9) after a random time. After
each death the file must hold what the first n changes amount to, n being the last acknowledged or the one under way.
Exit status 0 and a line of figures when it always did. The imports are paid once: lives are forked.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from fusisd.model import Destination, Intent, Service
from fusisd.ports import Change
from fusisd.store.sqlite import SqliteIntents, SqliteLocal, open_database
from pyipvs import ServiceKey, Timeouts

MACHINE = "boot namespace"


def change_of(revision: int) -> Change:
    """What the commit that makes this revision changes: of eight services one or two, now and then the globals."""
    number = revision % 8
    rows: dict[str, Service | None] = {f"s{number}": _service(number, revision)}
    if revision % 5 == 0:
        rows[f"s{(number + 3) % 8}"] = None
    if revision % 7 == 0:
        return Change(rows, Timeouts(tcp_s=revision), (f"10.{revision % 200}.0.0/24",))
    return Change(rows)


def _service(number: int, revision: int) -> Service:
    count = revision % 40  # some changes of one page, some of many
    rows = {f"d{row}": Destination(f"d{row}", f"10.1.0.{row + 1}", 80, revision % 60000) for row in range(count)}
    return Service(f"s{number}", ServiceKey.parse(f"tcp/10.0.0.{number + 1}:80"), destinations=rows)


def amounted(intent: Intent, revision: int) -> Intent:
    """Intent after the change that makes this revision."""
    change = change_of(revision)
    services = dict(intent.services)
    for name, row in change.services.items():
        services.pop(name, None)
        if row is not None:
            services[name] = replace(row, revision=revision)
    return Intent(services, revision, change.timeouts or intent.timeouts, change.ranges or intent.ranges)


def live(path: Path, acknowledge: int) -> None:
    """Commit for ever, writing 8 bytes to the descriptor after each."""
    database = open_database(path)
    intents, local = SqliteIntents(database, path), SqliteLocal(database, path, MACHINE)
    revision = intents.load().revision
    while True:
        change = change_of(revision + 1)
        local.claim("service", {str(row.key): name for name, row in change.services.items() if row is not None})
        revision = intents.commit(revision, change)
        os.write(acknowledge, revision.to_bytes(8))


def one_life(path: Path, lifetime_s: float) -> list[int]:
    """The revisions that a process acknowledged before it was killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            live(path, writer)
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(lifetime_s)  # how long it lives is the experiment, not a wait
    os.kill(pid, signal.SIGKILL)
    with open(reader, "rb") as acknowledged:
        data = acknowledged.read()
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "a life ended by itself"
    return [int.from_bytes(data[at : at + 8]) for at in range(0, len(data), 8)]


def check(path: Path, expected: Intent, acknowledged: list[int]) -> Intent:
    """The intent found, which must be that of a prefix of the changes with all that were acknowledged."""
    database = open_database(path)
    found, owned = SqliteIntents(database, path).load(), SqliteLocal(database, path, MACHINE).owned("service")
    database.close()
    last = acknowledged[-1] if acknowledged else expected.revision
    assert found.revision in (last, last + 1), f"{found.revision} is neither {last}, acknowledged, nor the next"
    for revision in range(expected.revision + 1, found.revision + 1):
        expected = amounted(expected, revision)
    assert found == expected, f"revision {found.revision} is not what its changes amount to"
    revisions = {name: row.revision for name, row in found.services.items()}
    assert revisions == {name: row.revision for name, row in expected.services.items()}
    assert {str(row.key) for row in found.services.values()} <= set(owned), "intent without its ownership"
    return found


def main(arguments: list[str]) -> None:
    path, lives = Path(arguments[0]), int(arguments[1])
    dice = random.Random(int(arguments[2]))
    found, mute, ahead = Intent(), 0, 0
    for _ in range(lives):
        acknowledged = one_life(path, dice.uniform(0.0, 0.06))
        found = check(path, found, acknowledged)
        mute += not acknowledged
        ahead += bool(acknowledged) and found.revision > acknowledged[-1]
    print(f"{lives} kills, {found.revision} commits, {mute} before the first, {ahead} between commit and acknowledgement")


if __name__ == "__main__":
    main(sys.argv[1:])
