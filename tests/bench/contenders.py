"""Every contender with the same verbs on the same table; each verb gives seconds by the name of what was measured.

Values (and ipvsadm's text files) are made and handles opened before the clock starts, but for `read_cold`: the first
read of a process, the opening of its handle (or ipvsadm's whole start) included. `read_warm` is the median of later
ones. `pair` is the mean of many round trips of one add and one delete of a destination. Reads are counted by what
they gave; what a write did is checked by measure.py.
Does not: make network namespaces, or run more than once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from tests.bench.table import PORT, REAL_PORT, Shape

LIMIT = Path(__file__).parents[2] / "build/bench/limit"
NEW_WEIGHT = 2  # after update
EDITS, EDITED_WEIGHT, EDIT_ROUNDS = 10, 3, 6  # an even number of rounds: back and forth; the first two grow the heap
Seconds = dict[str, float]


class WrongCount(Exception):
    """A contender did or saw something else than the whole table."""


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds it took, and what it gave."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


class Contender(ABC):
    """One way to speak to IPVS. What a contender needs is imported when one is made."""

    name: ClassVar[str]
    slow: ClassVar[bool] = False  # may do fewer runs of large tables
    warm_reads: ClassVar[int] = 3
    pairs: ClassVar[int] = 2000

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part, or None."""
        return None

    @abstractmethod
    def load(self) -> Seconds:
        """The whole table into an empty kernel."""

    @abstractmethod
    def read(self) -> Seconds:
        """The whole table with every field and statistics, as far as the contender gives them."""

    @abstractmethod
    def update(self) -> Seconds:
        """Another weight for every destination."""

    @abstractmethod
    def pair(self) -> Seconds:
        """Add and delete one further destination, each awaited, many times."""

    @abstractmethod
    def delete(self) -> Seconds:
        """Every destination, then every service, each by a command of its own."""

    def expect(self, services: int, destinations: int) -> None:
        """Raises WrongCount when a read gave other numbers than the table's."""
        wanted = (self.shape.services, self.shape.destinations)
        if (services, destinations) != wanted:
            raise WrongCount(f"{self.name} read {services} services and {destinations} destinations instead of {wanted}")

    def cold_and_warm(self, name: str, read: Callable[[], Any], count: Callable[[Any], tuple[int, int]]) -> Seconds:
        """The first call and the median of the later ones, each counted."""
        seconds = []
        for _ in range(1 + self.warm_reads):
            took, seen = clock(read)
            self.expect(*count(seen))
            seconds.append(took)
            del seen
        return {f"{name}_cold": seconds[0], f"{name}_warm": median(seconds[1:])}


class Ipvsadm(Contender):
    """Debian's ipvsadm as a process: `-R` takes any command lines; its start is inside its figures."""

    name = "ipvsadm"
    slow = True
    pairs = 1000

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self._services = [self._endpoint(shape.service(number), PORT) for number in range(shape.services)]
        self._reals = [self._endpoint(shape.real(number), REAL_PORT) for number in range(shape.destinations + 1)]

    def load(self) -> Seconds:
        services = (f"-A -t {service} -s rr" for service in self._services)
        return {"load": self._restore(itertools.chain(services, self._each("-a", "-m -w 1")))}

    def read(self) -> Seconds:
        saved, rules = self._run("-Sn")
        self.expect(rules.count("\n-A ") + rules.startswith("-A "), rules.count("\n-a "))
        listed, text = self._run("-ln", "--stats", "--exact")
        self.expect(text.count("\nTCP "), text.count("\n  -> ") - 1)  # without the title
        return {"read_cold": saved, "list_stats": listed}

    def update(self) -> Seconds:
        return {"update": self._restore(self._each("-e", f"-m -w {NEW_WEIGHT}"))}

    def pair(self) -> Seconds:
        place = f"-t {self._services[0]} -r {self._reals[-1]}"
        lines = [f"-a {place} -m -w 1", f"-d {place}"] * self.pairs
        return {"pair": self._restore(lines) / self.pairs}

    def delete(self) -> Seconds:
        services = (f"-D -t {service}" for service in self._services)
        return {"delete": self._restore(itertools.chain(self._each("-d", ""), services))}

    def _each(self, command: str, settings: str) -> Iterable[str]:
        for service, real in self.shape.pairs():
            yield f"{command} -t {self._services[service]} -r {self._reals[real]} {settings}"

    def _restore(self, lines: Iterable[str]) -> float:
        path = self._directory / "rules"
        path.write_text("".join(f"{line}\n" for line in lines))
        with path.open("rb") as rules:
            took, done = clock(lambda: subprocess.run(["ipvsadm", "-R"], stdin=rules, capture_output=True))
        if done.returncode or done.stderr:
            raise WrongCount(f"ipvsadm -R: status {done.returncode}, {done.stderr.decode()[-300:]}")
        return took

    def _run(self, *words: str) -> tuple[float, str]:
        path = self._directory / "out"
        with path.open("wb") as out:
            took, _ = clock(lambda: subprocess.run(["ipvsadm", *words], stdout=out, check=True))
        return took, path.read_text()

    def _endpoint(self, address: str, port: int) -> str:
        return f"[{address}]:{port}" if self.shape.ipv6 else f"{address}:{port}"


class Limit(Contender):
    """limit.c, with its own clock."""

    name = "C limit"

    @classmethod
    def missing(cls) -> str | None:
        return None if LIMIT.exists() else "not built: run tests/bench/setup"

    def load(self) -> Seconds:
        return self._run("load")

    def read(self) -> Seconds:
        return self._run("read")

    def update(self) -> Seconds:
        return self._run("update")

    def pair(self) -> Seconds:
        return self._run("pair")

    def delete(self) -> Seconds:
        return self._run("delete")

    def _run(self, verb: str) -> Seconds:
        shape = self.shape
        words = [str(LIMIT), str(shape.services), str(shape.each), "6" if shape.ipv6 else "4", verb]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise WrongCount(done.stderr.strip())
        seconds: Seconds = {}
        for line in done.stdout.splitlines():
            seconds |= json.loads(line)
        return seconds


class Naive(Contender):
    """naive.py: one libnl call per attribute."""

    name = "naive"
    slow = True

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        from tests.bench import naive

        self._naive = naive
        self._keys = [naive.Key(shape.family, self._packed(shape.service(i)), PORT) for i in range(shape.services)]

    def load(self) -> Seconds:
        ipvs, reals = self._naive.NaiveIPVS(), self._reals(1)

        def work() -> None:
            for key in self._keys:
                ipvs.service(self._naive.NEW_SERVICE, key)
            self._each(ipvs, self._naive.NEW_DEST, reals)

        return {"load": clock(work)[0]}

    def read(self) -> Seconds:
        handles: list[Any] = []

        def work() -> list[tuple[Any, Any]]:
            if not handles:
                handles.append(self._naive.NaiveIPVS())
            rows = handles[0].services()
            return [(row, handles[0].destinations(self._naive.Key(row[1], row[3], row[4]))) for row in rows]

        return self.cold_and_warm("read", work, lambda table: (len(table), sum(len(rows) for _, rows in table)))

    def update(self) -> Seconds:
        ipvs, reals = self._naive.NaiveIPVS(), self._reals(NEW_WEIGHT)
        return {"update": clock(lambda: self._each(ipvs, self._naive.SET_DEST, reals))[0]}

    def pair(self) -> Seconds:
        ipvs, key = self._naive.NaiveIPVS(), self._keys[0]
        real = self._naive.Real(self._packed(self.shape.real(self.shape.destinations)), REAL_PORT, 1)

        def work() -> None:
            for _ in range(self.pairs):
                ipvs.destination(self._naive.NEW_DEST, key, real)
                ipvs.destination(self._naive.DEL_DEST, key, real)

        return {"pair": clock(work)[0] / self.pairs}

    def delete(self) -> Seconds:
        ipvs, reals = self._naive.NaiveIPVS(), self._reals(1)

        def work() -> None:
            self._each(ipvs, self._naive.DEL_DEST, reals)
            for key in self._keys:
                ipvs.service(self._naive.DEL_SERVICE, key)

        return {"delete": clock(work)[0]}

    def _each(self, ipvs: Any, command: int, reals: list[tuple[Any, Any]]) -> None:
        for key, real in reals:
            ipvs.destination(command, key, real)

    def _reals(self, weight: int) -> list[tuple[Any, Any]]:
        make, shape = self._naive.Real, self.shape
        return [(self._keys[i], make(self._packed(shape.real(n)), REAL_PORT, weight)) for i, n in shape.pairs()]

    def _packed(self, address: str) -> bytes:
        return socket.inet_pton(self.shape.family, address).ljust(16, b"\0")


class Pyroute2(Contender):
    """pyroute2's IPVS, read as its documentation shows."""

    name = "pyroute2"
    slow = True
    warm_reads = 1
    pairs = 200

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        import pyroute2

        self._lib = pyroute2
        # of IPv6 the kernel wants a prefix length in host order, which pyroute2 can say only as an address
        extra = {"netmask": "128.0.0.0"} if shape.ipv6 else {}
        self._services = [
            pyroute2.IPVSService(
                addr=shape.service(number), port=PORT, protocol=socket.IPPROTO_TCP, sched_name="rr", **extra
            )
            for number in range(shape.services)
        ]

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("pyroute2") else "not installed: run tests/bench/setup"

    def load(self) -> Seconds:
        ipvs, reals = self._lib.IPVS(), self._reals(1)

        def work() -> None:
            for service in self._services:
                ipvs.service("add", service=service)
            self._each(ipvs, "add", reals)

        return {"load": clock(work)[0]}

    def read(self) -> Seconds:
        handles: list[Any] = []

        def work() -> list[int]:
            """Counted and not kept. Of 10,000 services it grows all the same, and user-mode Linux, which maps each page
            for itself, kills it at about 290 MB, where the host's vm.max_map_count (65530) is reached (2026-11)."""
            if not handles:
                handles.append(self._lib.IPVS())
            found = []
            for answer in handles[0].service("dump"):
                service = self._lib.IPVSService.from_message(answer)
                rows = handles[0].dest("dump", service=service)
                found.append(len([self._lib.IPVSDest.from_message(row) for row in rows]))
            return found

        return self.cold_and_warm("read", work, lambda found: (len(found), sum(found)))

    def update(self) -> Seconds:
        ipvs, reals = self._lib.IPVS(), self._reals(NEW_WEIGHT)
        return {"update": clock(lambda: self._each(ipvs, "set", reals))[0]}

    def pair(self) -> Seconds:
        ipvs, service = self._lib.IPVS(), self._services[0]
        real = self._real(self.shape.destinations, 1)

        def work() -> None:
            for _ in range(self.pairs):
                ipvs.dest("add", service=service, dest=real)
                ipvs.dest("del", service=service, dest=real)

        return {"pair": clock(work)[0] / self.pairs}

    def delete(self) -> Seconds:
        ipvs, reals = self._lib.IPVS(), self._reals(1)

        def work() -> None:
            self._each(ipvs, "del", reals)
            for service in self._services:
                ipvs.service("del", service=service)

        return {"delete": clock(work)[0]}

    def _each(self, ipvs: Any, command: str, reals: list[tuple[int, Any]]) -> None:
        for service, real in reals:
            ipvs.dest(command, service=self._services[service], dest=real)

    def _reals(self, weight: int) -> list[tuple[int, Any]]:
        return [(service, self._real(number, weight)) for service, number in self.shape.pairs()]

    def _real(self, number: int, weight: int) -> Any:
        return self._lib.IPVSDest(addr=self.shape.real(number), port=REAL_PORT, weight=weight, fwd_method=0)


class Pyipvs(Contender):
    """Ours. `names` reads without statistics; `edit` and `memory` are things the others do not have."""

    name = "pyipvs"

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        import pyipvs

        self._lib: Any = pyipvs
        self._keys = [pyipvs.ServiceKey(pyipvs.Protocol.TCP, shape.service(i), PORT) for i in range(shape.services)]
        self._services = [pyipvs.Service(key, scheduler="rr") for key in self._keys]

    @classmethod
    def missing(cls) -> str | None:
        import pyipvs

        changes = ("AddService", "DeleteService", "AddDestination", "UpdateDestination", "DeleteDestination")
        absent = [name for name in (*changes, "Ruleset", "diff") if not hasattr(pyipvs, name)]
        absent += [] if hasattr(pyipvs.IPVS, "apply") else ["IPVS.apply"]
        return f"not there yet: {', '.join(absent)}" if absent else None

    def load(self) -> Seconds:
        lib = self._lib
        changes = [lib.AddService(service) for service in self._services]
        changes += [lib.AddDestination(self._keys[i], self._real(n)) for i, n in self.shape.pairs()]
        return {"load": self._apply(changes)}

    def read(self) -> Seconds:
        return self._snapshots("read", True) | self._objects()

    def names(self) -> Seconds:
        """Names, methods and weights only."""
        return self._snapshots("names", False)

    def edit(self) -> Seconds:
        """A diff of an unchanged table, and read, diff and apply of 10 changes beside the read alone."""
        seconds: Seconds = {}
        tables = self._ruleset(EDITED_WEIGHT), self._ruleset(1)
        with self._lib.IPVS() as ipvs:
            for name, statistics in (("edit", True), ("edit_names", False)):
                ipvs.snapshot(statistics=statistics)
                rounds = [self._edit_once(ipvs, tables[turn % 2], statistics) for turn in range(EDIT_ROUNDS)]
                for what, values in zip(("read", "whole", "alone", "unchanged"), zip(*rounds, strict=True), strict=True):
                    seconds[f"{name}_{what}"] = median(values)
        return seconds

    def update(self) -> Seconds:
        change = self._lib.UpdateDestination
        return {"update": self._apply([change(self._keys[i], self._real(n, NEW_WEIGHT)) for i, n in self.shape.pairs()])}

    def pair(self) -> Seconds:
        key, real = self._keys[0], self._real(self.shape.destinations)
        with self._lib.IPVS() as ipvs:

            def work() -> None:
                for _ in range(self.pairs):
                    ipvs.add_destination(key, real)
                    ipvs.delete_destination(key, real)

            return {"pair": clock(work)[0] / self.pairs}

    def delete(self) -> Seconds:
        lib = self._lib
        changes = [lib.DeleteDestination(self._keys[i], self._real(n)) for i, n in self.shape.pairs()]
        return {"delete": self._apply(changes + [lib.DeleteService(key) for key in self._keys])}

    def memory(self) -> Seconds:
        """How much the process grew, at its peak, by holding one snapshot: in MB, not seconds."""
        with self._lib.IPVS() as ipvs:
            with contextlib.suppress(OSError):  # not in every kernel
                Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident now
            before = _status_kb("VmRSS")
            seen = ipvs.snapshot()
            grown = _status_kb("VmHWM") - before
        self.expect(*self._count(seen))
        return {"memory_mb": grown * 1024 / 1e6}

    def _snapshots(self, name: str, statistics: bool) -> Seconds:
        handles: list[Any] = []

        def work() -> Any:
            if not handles:
                handles.append(self._lib.IPVS())
            return handles[0].snapshot(statistics=statistics)

        try:
            return self.cold_and_warm(name, work, self._count)
        finally:
            handles[0].close()

    def _objects(self) -> Seconds:
        """A warm read that also makes every object: a snapshot makes them when they are asked for."""
        with self._lib.IPVS() as ipvs:
            took, made = clock(lambda: [list(entry.status) for entry in ipvs.snapshot().values()])
        self.expect(len(made), sum(map(len, made)))
        return {"objects_warm": took}

    def _edit_once(self, ipvs: Any, wanted: Any, statistics: bool) -> tuple[float, float, float, float]:
        diff = self._lib.diff
        alone = clock(lambda: ipvs.snapshot(statistics=statistics))[0]  # not kept: the next finds the same free memory
        begun = time.perf_counter()
        seen = ipvs.snapshot(statistics=statistics)
        read = time.perf_counter()
        changes = diff(seen, wanted)
        ipvs.apply(changes)
        done = time.perf_counter()
        if len(changes) != min(EDITS, self.shape.destinations):
            raise WrongCount(f"pyipvs found {len(changes)} changes instead of {EDITS}")
        after = ipvs.snapshot(statistics=statistics)
        unchanged, rest = clock(lambda: diff(after, wanted))
        if rest:
            raise WrongCount(f"pyipvs: {len(rest)} differences are left after the edit")
        return alone, done - begun, done - read, unchanged

    def _ruleset(self, weight: int) -> Any:
        """The table, with this weight for a few destinations spread over it."""
        shape = self.shape
        edited = {number * shape.destinations // EDITS for number in range(EDITS)}
        rows = [(service, []) for service in self._services]  # type: ignore[var-annotated]
        for service, number in shape.pairs():
            rows[service][1].append(self._real(number, weight if number in edited else 1))
        return self._lib.Ruleset(rows)

    def _apply(self, changes: list[Any]) -> float:
        with self._lib.IPVS() as ipvs:
            return clock(lambda: ipvs.apply(changes))[0]

    def _real(self, number: int, weight: int = 1) -> Any:
        method = self._lib.ForwardingMethod.NAT
        return self._lib.Destination(self.shape.real(number), REAL_PORT, weight=weight, method=method)

    def _count(self, seen: Any) -> tuple[int, int]:
        """By what it would take to make the table from nothing: this needs nothing of a Ruleset but diff."""
        kinds = [type(change) for change in self._lib.diff(self._lib.Ruleset([]), seen)]
        return kinds.count(self._lib.AddService), kinds.count(self._lib.AddDestination)


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


CONTENDERS: dict[str, type[Contender]] = {kind.name: kind for kind in (Ipvsadm, Limit, Pyipvs, Naive, Pyroute2)}
