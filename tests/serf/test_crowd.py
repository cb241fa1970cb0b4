"""Many real Serf agents on one machine: all become destinations, and when a quarter is killed only those go.

fusisd runs without a kernel (--dry-run) and follows a real Serf agent; each server is a real Serf agent with the tags that
fusis-agent would set, on an address of its own in 127.0.0.0/8, and a listener there for the balancer's checks (a fusis-agent
each would be a Python process each). AGENTS says how many: 10 here, 150 in `make soak`.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fusisd.model import Offer
from fusisd.tags import encode_all
from tests.fusisd.dry import Dry
from tests.lab.expect import poll
from tests.serf.agents import Agents, address

AGENTS = int(os.environ.get("AGENTS", "10"))
SERVERS = range(2, AGENTS + 2)  # n1 is the balancer's
DEAD = frozenset(list(SERVERS)[: max(2, AGENTS // 4)])
PORT = 8080
LIMIT_S = 60.0
TAGS = tuple(f"{tag}={text}" for tag, text in encode_all([Offer("web", PORT)]).items())


class Listeners:
    """The servers' services: one thread that takes every connection and hangs up."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets = {number: socket.create_server((address(number), PORT), backlog=64) for number in SERVERS}
        for sock in self._sockets.values():
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                try:
                    key.fileobj.accept()[0].close()  # type: ignore[union-attr]
                except OSError:
                    continue  # it was closed meanwhile

    def close(self, number: int) -> None:
        sock = self._sockets.pop(number)
        self._selector.unregister(sock)
        sock.close()

    def end(self) -> None:
        self._over.set()
        self._thread.join(10)
        for number in list(self._sockets):
            self.close(number)
        self._selector.close()


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    running = Listeners()
    yield running
    running.end()


def names(numbers: frozenset[int] | range) -> set[str]:
    return {f"n{number}" for number in numbers}


def status(dry: Dry) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dry.ask("GET", "/status")[1])
    return found


def in_kernel(dry: Dry) -> dict[str, int]:
    """The destinations that the (faked) kernel has of service web, with their weights."""
    rows = json.loads(dry.ask("GET", "/services/web")[1])["Destinations"]
    return {row["Name"]: row["Weight"] for row in rows if row["Weight"]}


WORSE = re.compile(
    r" node (?:name=)?n(\d+) (?:status=)?(?:failed|left|leaving) "
    r"| check [^ ]*127\.7\.\d+\.(\d+):.* (?:state=)?down "
    r"|(?:update|delete) destination 127\.7\.\d+\.(\d+):"
)


def told(log: str) -> set[str]:
    """The servers of which the log says that their node or check became worse, or their destination was changed."""
    return {f"n{next(filter(None, found))}" for found in WORSE.findall(log)}


def test_all_become_destinations_and_of_a_quarter_killed_at_once_only_those_go(
    agents: Agents, dry: Dry, listeners: Listeners
) -> None:
    agents.start(1, "role=balancer")
    dry.start(dry.command("--serf", f"{address(1)}:7373", "--serf-allow", "127.0.0.0/8"))
    service = {"Name": "web", "Host": "10.0.0.1", "Port": 80, "Protocol": "tcp", "Scheduler": "rr"}
    assert dry.ask("POST", "/services", service)[0] == 200
    poll(lambda: status(dry)["serf_connected"], LIMIT_S, "Serf")
    began_s = time.monotonic()
    for number in SERVERS:
        agents.start(number, *TAGS, join=1)
    poll(lambda: in_kernel(dry) == dict.fromkeys(names(SERVERS), 1), LIMIT_S, "all to be destinations")
    joined_s = time.monotonic() - began_s
    before = told(dry.log.read_text())
    assert before == set(), "nobody came and went"
    began_s = time.monotonic()
    for number in DEAD:
        agents.kill(number)
        listeners.close(number)
    survivors = dict.fromkeys(names(SERVERS) - names(DEAD), 1)
    poll(lambda: in_kernel(dry) == survivors, LIMIT_S, "the dead to be out")
    out_s = time.monotonic() - began_s

    def failed() -> set[str]:
        return {node["name"] for node in status(dry)["nodes"] if node["status"] == "failed"}

    poll(lambda: failed() == names(DEAD), LIMIT_S, "Serf to say so too")
    failed_s = time.monotonic() - began_s
    assert in_kernel(dry) == survivors
    assert told(dry.log.read_text()) == names(DEAD), "and nobody else was ever believed to be gone"
    print(f"\n{AGENTS} agents: all destinations after {joined_s:.1f} s; {len(DEAD)} killed: no connections"
          f" after {out_s:.1f} s, failed for Serf after {failed_s:.1f} s")  # fmt: skip
