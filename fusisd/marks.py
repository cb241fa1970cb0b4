"""The hidden services of path checks kept up to date: which firewall mark stands for which path, and what it leads to.

A mark is chosen once, noted in the local store as ours before it is used, and stays until nobody wants its path; so a
restart finds the marks in use and does nothing. In the kernel a path is a service by firewall mark with one destination,
planned, applied and repaired as every other; no reader is shown it. A path whose mark cannot be noted, or for which none is
free, is not checked until that is otherwise, and says so.
Where nobody wants a path, nothing here costs more than a comparison.
Does not: decide which paths are wanted (paths.py says for each destination), note anything, or probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pyipvs
from fusisd.judge import Candidate, Verdict
from fusisd.model import CheckTarget, Destination, Path
from fusisd.ports import KernelService
from fusisd.target import TargetService, World
from pyipvs import Family, ServiceFlags, ServiceKey

RETRY_S = 5.0  # how soon a mark that could not be noted is tried to be noted again

NOT_FREE = "no mark is free"


class Followed(NamedTuple):
    """Marks chosen for paths that have none, to be noted first; and the keys that are wanted no more."""

    chosen: Mapping[ServiceKey, Path] = MappingProxyType({})
    over: frozenset[ServiceKey] = frozenset()


NOTHING = Followed()


class Marks:
    """Who has which mark, and the services that follow. Lives on the loop."""

    def __init__(self, known: Mapping[ServiceKey, Path], marks: range) -> None:
        """`known` is what was noted before our start; `marks` those that may be chosen."""
        self.range = marks
        self.services: dict[ServiceKey, TargetService] = {key: _service(key, path) for key, path in known.items()}
        self._keys = {path: key for key, path in known.items()}
        self._asked: dict[Path, ServiceKey] = {}
        self._failed: dict[Path, tuple[float, str]] = {}
        self._wanted: frozenset[Path] = frozenset()
        self._owned: frozenset[ServiceKey] = frozenset()
        self._given: tuple[object, object] = (None, None)
        self._askable: frozenset[CheckTarget] = frozenset()

    def mark(self, path: Path) -> int | None:
        """The mark that a probe on this path has to carry, None: there is none yet."""
        key = self._keys.get(path)
        return None if key is None else key.mark

    def follow(self, wanted: frozenset[Path], world: World, now_s: float, keep: bool) -> Followed:
        """Take in which paths are wanted. `keep`: none is given up yet."""
        settled = not self._failed and len(wanted) == len(self._keys)
        if settled and wanted == self._wanted and world.owned is self._owned:
            return NOTHING
        self._wanted, self._owned = wanted, world.owned
        self._failed = {path: row for path, row in self._failed.items() if path in wanted}
        over = {path: key for path, key in self._keys.items() if self._is_over(path, key, world, keep)}
        for path, key in over.items():
            del self._keys[path], self.services[key]
        due = {path for path, (at_s, _) in self._failed.items() if now_s >= at_s + RETRY_S}
        new = (wanted - self._keys.keys() - self._failed.keys() | due) - self._asked.keys()
        chosen = self._chosen(sorted(new, key=str), world, now_s) if new else {}
        self._asked |= {path: key for key, path in chosen.items()}
        return Followed(chosen, frozenset(over.values()))

    def noted(self, rows: Mapping[ServiceKey, Path], problem: str, now_s: float) -> frozenset[ServiceKey]:
        """These marks were noted, or could not be; the keys that are ours from now on."""
        for key, path in rows.items():
            self._asked.pop(path, None)
            self._failed.pop(path, None)
            if problem:
                self._failed[path] = (now_s, problem)
            else:
                self._keys[path], self.services[key] = key, _service(key, path)
        return frozenset() if problem else frozenset(rows)

    def impossible(self, world: World) -> Mapping[Path, str]:
        """The wanted paths that cannot be checked, and why; the very mapping that the world has when it is the same."""
        no_path = world.host.no_path
        found = {path: no_path[path] for path in self._wanted if path in no_path} if no_path else {}
        found |= {path: why for path, (_, why) in self._failed.items()}
        return world.no_path if found == world.no_path else found

    def askable(self, checks: frozenset[CheckTarget], world: World) -> frozenset[CheckTarget]:
        """Of these, what can be asked: without its service in the kernel a marked probe would reach any server of the VIP.
        The very same set when there is no path among them, or nothing changed."""
        if not self._wanted:
            return checks
        possible = self._wanted & world.host.paths - world.no_path.keys()
        ready = frozenset(path for path in possible if self._leads(self._keys.get(path), path, world))
        if (checks, ready) != self._given:
            self._given = (checks, ready)
            self._askable = frozenset(check for check in checks if check.path is None or check.path in ready)
        return self._askable

    def shown(self, world: World) -> dict[str, object]:
        """For the status: how many services are hidden, and which paths cannot be checked, with the reason."""
        not_checked = {str(path): why for path, why in sorted(world.no_path.items(), key=str)}
        return {"services": len(self.services), "not_checked": not_checked}

    def _leads(self, key: ServiceKey | None, path: Path, world: World) -> bool:
        there: KernelService | None = world.table.get(key) if key is not None and key in world.owned else None
        rows = () if there is None else there.destinations.values()
        return [(row.destination.address, row.destination.method) for row in rows] == [(path.address, path.method)]

    def _is_over(self, path: Path, key: ServiceKey, world: World, keep: bool) -> bool:
        """Wanted no more, or its mark turned out to be somebody else's."""
        return key not in world.owned or (path not in self._wanted and not keep)

    def _chosen(self, paths: Iterable[Path], world: World, now_s: float) -> dict[ServiceKey, Path]:
        free = self._free(world)
        chosen: dict[ServiceKey, Path] = {}
        for path in paths:
            mark = next(free, None)
            if mark is None:
                why = f"{NOT_FREE} of {self.range.start} to {self.range.stop - 1}: give more by --path-marks"
                self._failed[path] = (now_s, why)
            else:
                chosen[ServiceKey.fwmark(mark, Family.INET6 if ":" in path.address else Family.INET)] = path
        return chosen

    def _free(self, world: World) -> Iterator[int]:
        """Marks that nobody has, in order; of neither family, for /proc/net/ip_vs does not tell one from the other."""
        services = (service.key for service in world.intent.services.values())
        keys = (*world.table, *world.owned, *services, *self._asked.values())
        used = {key.mark for key in keys if key.mark is not None}
        return (mark for mark in self.range if mark not in used)


def _service(key: ServiceKey, path: Path) -> TargetService:
    """By UDP each packet for itself: an entry would last 5 minutes, and a later probe from the same port, on another path,
    would follow it. (By TCP the ports are taken in turn, asking.py.)"""
    service = pyipvs.Service(key, "rr", ServiceFlags.ONE_PACKET)
    destination = Destination(f"the path to {path}", path.address, 0, 1, path.method, tunnel=path.tunnel)
    return TargetService(destination.name, service, (Verdict(Candidate(destination), 1, "checked"),), hidden=True)


def with_impossible(world: World, marks: Marks) -> tuple[World, frozenset[Path]]:
    """The world with what cannot be checked now, and the paths for which that changed."""
    found = marks.impossible(world)
    if found is world.no_path:
        return world, frozenset()
    return replace(world, no_path=found), frozenset(found.keys() ^ world.no_path.keys())
