"""Operators that change services at random while fusisd is killed under them, and a model of what was acknowledged.

A change that was answered with 200 is in the model. One whose answer never came, or was the 503 of a machine too busy to
wait for, may have been made or not: after the restart either is right, and the model takes what is there.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.topology import VIP

NAMES, HOSTS, FIRST_PORT = 5, 4, 8001
SCHEDULERS = ("rr", "wrr", "lc")


@dataclass(frozen=True)
class Wanted:
    """A service as the operators left it: its scheduler, and destination number to weight."""

    scheduler: str
    weights: dict[int, int] = field(default_factory=dict)


Model = dict[int, Wanted]  # by the service's number


class Connection(http.client.HTTPConnection):
    """HTTP over fusisd's Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("fusisd", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


class Operators:
    """Changes at random, one after the other, in a thread, until `stop`; `model` is what was acknowledged."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._random = path, random.Random(seed)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.model: Model = {}
        self.unanswered: tuple[int, Wanted | None] | None = None
        self.acknowledged = 0

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends with the change in hand, whose answer will not come."""
        assert self._thread is not None
        self._stop.set()
        self._thread.join(30)

    def settle(self, found: Model) -> None:
        """After a restart: the change without an answer was made, or it was not."""
        if self.unanswered is not None:
            number, after = self.unanswered
            assert found.get(number) in (self.model.get(number), after), "neither what was nor what was asked for"
            self.model = {**self.model, number: found[number]} if number in found else without(self.model, number)
            self.unanswered = None
        assert found == self.model, "an acknowledged change is lost"

    def _run(self) -> None:
        while not self._stop.is_set():
            number = self._random.randrange(NAMES)
            method, path, body, after = self._change(number)
            try:
                answered = self._ask(method, path, body)
            except (OSError, http.client.HTTPException):
                answered = False
            if not answered:
                self.unanswered = (number, after)
                return
            self.model = {**self.model, number: after} if after is not None else without(self.model, number)
            self.acknowledged += 1

    def _change(self, number: int) -> tuple[str, str, dict[str, Any] | None, Wanted | None]:
        known, how = self.model.get(number), self._random.random()
        now = self._random.choice(["", "?now=1"])
        if known is None:
            scheduler = self._random.choice(SCHEDULERS)
            body = {"Name": f"s{number}", "Host": VIP, "Port": FIRST_PORT + number, "Protocol": "tcp"}
            body["Scheduler"] = scheduler
            return "POST", "/services", body, Wanted(scheduler)
        if how < 0.1:
            return "DELETE", f"/services/s{number}{now}", None, None
        host, weight = self._random.randrange(HOSTS), self._random.randrange(1, 50)
        if how < 0.3 and host in known.weights:
            after = Wanted(known.scheduler, without(known.weights, host))
            return "DELETE", f"/services/s{number}/destinations/d{host}{now}", None, after
        body = {"Name": f"d{host}", "Host": address(host), "Port": FIRST_PORT + number, "Weight": weight, "Mode": "route"}
        return "POST", f"/services/s{number}/destinations", body, Wanted(known.scheduler, {**known.weights, host: weight})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> bool:
        """Whether it was done; False: look before you ask again."""
        connection = Connection(self._path)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        busy = answer.status == 503 and b"look before you ask again" in text
        if answer.status != 200 and not busy:
            raise AssertionError(f"{method} {path}: {answer.status} {text!r}")
        return not busy


def without(known: dict[int, Any], number: int) -> dict[int, Any]:
    """A copy that lacks it."""
    return {key: value for key, value in known.items() if key != number}


def address(host: int) -> str:
    """Where nobody listens: no packet is sent there."""
    return f"10.1.0.{50 + host}"


def seen(services: list[dict[str, Any]]) -> Model:
    """What GET /services shows, of the services that the operators play with."""
    return {
        int(row["Name"][1:]): Wanted(
            row["Scheduler"], {int(one["Name"][1:]): one["Weight"] for one in row["Destinations"]}
        )
        for row in services
        if row["Name"].startswith("s")
    }


def lines(model: Model) -> set[str]:
    """What `ipvsadm -Sn` prints for it."""
    found = set()
    for number, wanted in model.items():
        where = f"-t {VIP}:{FIRST_PORT + number}"
        found.add(f"-A {where} -s {wanted.scheduler}")
        for host, weight in wanted.weights.items():
            found.add(f"-a {where} -r {address(host)}:{FIRST_PORT + number} -g -w {weight}")
    return found
