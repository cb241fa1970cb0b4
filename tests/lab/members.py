"""Servers that join, change their weight, leave and fail by real Serf, and backends of checked destinations that stop and
start: one thing at a time, chosen at random, and a model of what must become of it.

Two services: `pool`, whose destinations Serf brings, and `checked`, whose destinations an operator gave with a TCP check.
The first server of both never changes, so that something always passes. What has gone may stand at weight 0 for a while:
it drains, or lingers in case that it comes back.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType

from tests.lab.backends import Backend
from tests.lab.fusis import Balancer
from tests.lab.topology import VIP, Host

POOL_PORT, CHECKED_PORT, CHECKED_WEIGHT = 81, 82, 2
Act = tuple[str, Callable[[], None]]  # its name, and what does it
GONE_S = 60.0  # a server that left or failed is out of the kernel by then


class Member:
    """A server with a backend and a Serf agent that offers it to `pool`."""

    def __init__(self, host: Host, home: Path) -> None:
        self.host, self.weight = host, 1
        self.gone_s: float | None = None  # since when
        self._backend = Backend(host)
        self._settings = home / f"{host.name}.json"
        self._process: subprocess.Popen[bytes] | None = None

    def join(self, balancer: Balancer, weight: int) -> None:
        """Start both; returns before it has joined."""
        if self._process is not None:
            self._process.wait(30)  # it may still be leaving
        self._backend.stop()
        self._backend.start()
        settings = {
            "node_name": self.host.name,
            "bind": f"{self.host.address}:7946",
            "encrypt_key": (balancer.state_dir / "serf" / "key").read_text().strip(),
            "tags": {"role": "agent", "s:pool": f"80/nat/{weight}"},
            "retry_join": [balancer.host.address],
            "retry_interval": "1s",
            "disable_coordinates": True,
        }
        self._settings.write_text(json.dumps(settings))
        self._process = self.host.popen("serf", "agent", f"-config-file={self._settings}")
        self.weight, self.gone_s = weight, None

    def weigh(self, weight: int) -> None:
        """Another weight by its tags."""
        self.host.run("serf", "tags", "-set", f"s:pool=80/nat/{weight}")
        self.weight = weight

    def leave(self) -> None:
        """Begin to leave the cluster, with a goodbye; the backend goes on."""
        self._signal(signal.SIGINT)

    def fail(self) -> None:
        """The machine dies."""
        self._signal(signal.SIGKILL)
        self._backend.kill()

    def stop(self) -> None:
        """End whatever runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
        self._backend.stop()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self.gone_s = time.monotonic()


class Members:
    """All of them; a context manager that makes both services and ends what it started."""

    def __init__(self, hosts: list[Host], home: Path, balancer: Balancer, dice: random.Random) -> None:
        self._balancer, self._dice = balancer, dice
        self._members = [Member(host, home) for host in hosts]
        self._backends = {host: Backend(host, CHECKED_PORT) for host in hosts}
        self._down: set[Host] = set()
        self.done: Counter[str] = Counter()

    def __enter__(self) -> Members:
        rows = {
            host.name: {"address": host.address, "port": CHECKED_PORT, "method": "nat", "weight": CHECKED_WEIGHT}
            for host in self._backends
        }
        self._add("pool", POOL_PORT)
        self._add("checked", CHECKED_PORT, check={"kind": "tcp", "interval_s": 1}, destinations=rows)
        for backend in self._backends.values():
            backend.start()
        for member in self._members:
            member.join(self._balancer, self._weight())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self._members:
            member.stop()
        for backend in self._backends.values():
            backend.stop()

    def act(self) -> None:
        """One thing that can be, of those that were done least often."""
        acts = self._possible()
        least = min(self.done[name] for name, _ in acts)
        name, run = self._dice.choice([act for act in acts if self.done[act[0]] == least])
        run()
        self.done[name] += 1

    def come_back(self) -> None:
        """Whoever is gone, and what is down."""
        for member in self._members:
            if member.gone_s is not None:
                member.join(self._balancer, self._weight())
        for host in sorted(self._down, key=lambda host: host.name):
            self._start(host)

    def lines(self) -> tuple[set[str], set[str]]:
        """What `ipvsadm -Sn` must print of both services, and what it may."""
        must = {f"-A -t {VIP}:{POOL_PORT} -s rr", f"-A -t {VIP}:{CHECKED_PORT} -s rr"}
        may: set[str] = set()
        for member in self._members:
            line = f"-a -t {VIP}:{POOL_PORT} -r {member.host.address}:80 -m -w"
            if member.gone_s is None:
                must.add(f"{line} {member.weight}")
            elif time.monotonic() - member.gone_s < GONE_S:
                may.add(f"{line} 0")
        for host in self._backends:
            line = f"-a -t {VIP}:{CHECKED_PORT} -r {host.address}:{CHECKED_PORT} -m -w"
            if host in self._down:  # each restart of fusisd begins its 30 s anew
                may.add(f"{line} 0")
            else:
                must.add(f"{line} {CHECKED_WEIGHT}")
        return must, may

    def _possible(self) -> list[Act]:
        first, *others = self._members
        acts: list[Act] = [("weigh", partial(first.weigh, self._weight()))]
        for member in others:
            if member.gone_s is None:
                acts += [("weigh", partial(member.weigh, self._weight())), ("leave", member.leave), ("fail", member.fail)]
            else:
                acts.append(("join", partial(member.join, self._balancer, self._weight())))
        for host in list(self._backends)[1:]:
            acts.append(("start", partial(self._start, host)) if host in self._down else ("stop", partial(self._stop, host)))
        return acts

    def _stop(self, host: Host) -> None:
        self._backends[host].kill()
        self._down.add(host)

    def _start(self, host: Host) -> None:
        self._backends[host].start()
        self._down.remove(host)

    def _add(self, name: str, port: int, **more: object) -> None:
        body = {"name": name, "protocol": "tcp", "address": VIP, "port": port, **more}
        self._balancer.client().send("POST", "/v1/services", body)

    def _weight(self) -> int:
        return self._dice.randrange(1, 50)
