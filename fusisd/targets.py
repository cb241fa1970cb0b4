"""The target kept up to date: only what a change touches is built anew.

A table of 10,000 destinations takes a tenth of a second to build whole; one probe's result concerns one destination. So
whoever changes the world says which services that touches, and `Targets` builds those, and those whose time has come. The
result is always that of `target.build` on the same world (a property test holds it to that).
Does not: decide (target.py does), read a clock, or touch the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from fusisd import target
from fusisd.drains import DrainKey
from fusisd.mappings import changed
from fusisd.membership import Nodes
from fusisd.model import CheckTarget, HostSeen, HostWanted, Intent, Path, Service
from fusisd.target import Target, TargetService, Wishes, World
from pyipvs import ServiceKey

_SETTLED = frozenset({"up", "standby", "refused"})


class Targets:
    """The services as they should be, with who watches which check and who must be thought of when."""

    def __init__(self) -> None:
        """Empty, until the first `update` names every service."""
        self.services: dict[ServiceKey, TargetService] = {}
        self.conflicts: frozenset[str] = frozenset()
        self._keys: dict[str, ServiceKey] = {}
        self._wishes: dict[str, Wishes] = {}
        self._watchers: dict[CheckTarget, set[str]] = {}
        self._wakes: dict[str, float] = {}
        self._drained: dict[str, tuple[DrainKey, ...]] = {}
        self._counting: set[str] = set()
        self._checks: frozenset[CheckTarget] | None = frozenset()
        self._host: HostWanted | None = HostWanted()
        self._foreign = self._withdrawn = False

    @property
    def target(self) -> Target:
        """All of it as one value."""
        return Target(self.services, self.conflicts, self.host, self.checks)

    @property
    def checks(self) -> frozenset[CheckTarget]:
        """What all services together want probed."""
        if self._checks is None:
            self._checks = frozenset(self._watchers)
        return self._checks

    @property
    def host(self) -> HostWanted:
        """What all services together want of the host."""
        if self._host is None:
            self._host = target.host_wanted(self._wishes.values(), self._foreign, self._withdrawn)
        return self._host

    @property
    def wake_s(self) -> float | None:
        """When `due` will name somebody."""
        return min(self._wakes.values(), default=None)

    @property
    def counting(self) -> frozenset[str]:
        """The services of which readers see something else with the time alone: a drain."""
        return frozenset(self._counting)

    def draining(self) -> set[ServiceKey]:
        """The services with a destination whose connections are waited for."""
        services = [self.services[self._keys[name]] for name in self._wakes]  # whatever drains has a deadline
        return {s.service.key for s in services if any(verdict.state == "draining" for verdict in s.verdicts)}

    def due(self, now_s: float) -> set[str]:
        """The services that must be thought of again by now."""
        return {name for name, wake_s in self._wakes.items() if wake_s <= now_s}

    def watchers(self, checks: Iterable[CheckTarget]) -> set[str]:
        """The services that any of these checks concerns."""
        return {name for check in checks for name in self._watchers.get(check, ())}

    def places(self, checks: Collection[CheckTarget]) -> dict[CheckTarget, list[tuple[str, str]]]:
        """The destinations that each of these checks is of, with their services, by name."""
        places: dict[CheckTarget, list[tuple[str, str]]] = {}
        for name in self.watchers(checks):
            for verdict in self.services[self._keys[name]].verdicts:
                for check in (verdict.candidate.check, verdict.candidate.path):
                    if check is not None and check in checks:
                        places.setdefault(check, []).append((name, verdict.candidate.destination.name))
        return places

    def serving(self) -> set[str]:
        """The nodes of which a destination gets connections."""
        verdicts = (verdict for service in self.services.values() for verdict in service.verdicts)
        return {v.candidate.node.name for v in verdicts if v.weight and v.candidate.node is not None}

    def name_of(self, key: ServiceKey) -> str:
        """The name of the service of ours with this key, "" when there is none any more."""
        service = self.services.get(key)
        return "" if service is None else service.name

    def led_to(self, paths: Iterable[Path]) -> set[str]:
        """The services whose destinations any of these paths leads to."""
        wanted = frozenset(paths)
        return {name for name, wishes in self._wishes.items() if wishes.paths & wanted} if wanted else set()

    def unsettled(self, keys: Iterable[ServiceKey]) -> set[str]:
        """Of these, the services for which it matters what the kernel has: more than destinations that simply serve."""
        found = (service for key in keys if (service := self.services.get(key)) is not None)
        return {s.name for s in found if s.warning or any(v.state not in _SETTLED for v in s.verdicts)}

    def drained(self) -> Iterator[DrainKey]:
        """What has drained and is still in the intent."""
        return (key for keys in self._drained.values() for key in keys)

    def update(self, world: World, touched: Iterable[str], now_s: float) -> set[ServiceKey]:
        """Build these services anew; the keys under which something may have to be done in the kernel."""
        services, keys, conflicts = dict(self.services), set[ServiceKey](), set(self.conflicts)
        for name in touched:
            before = services.get(self._keys[name]) if name in self._keys else None
            before = before if before is not None and before.name == name else None  # its key may be another's by now
            wanted = world.intent.services.get(name)
            ours = wanted is not None and wanted.key in world.owned
            after = target.build_service(wanted, world, now_s, before) if wanted is not None and ours else None
            (conflicts.discard if ours or wanted is None else conflicts.add)(name)
            keys.update(service.service.key for service in (before, after) if service is not None)
            if before is not None and (after is None or after.service.key != before.service.key):
                del services[before.service.key]
            if after is not None:  # in its old place, so that `changed` finds it alone
                services[after.service.key] = after
            self._note(name, before, after)
        self.services, self.conflicts = services, frozenset(conflicts)
        return keys

    def look_at_foreign(self, world: World) -> None:
        """After the set of services in the kernel or the ownership changed."""
        foreign = any(key not in world.owned for key in world.table)
        if foreign is not self._foreign:
            self._foreign, self._host = foreign, None

    def withdraw(self, withdrawn: bool) -> None:
        """Whether the VIPs are to leave the host; the same again costs nothing."""
        if withdrawn is not self._withdrawn:
            self._withdrawn, self._host = withdrawn, None

    def _note(self, name: str, before: TargetService | None, after: TargetService | None) -> None:
        """Who must be thought of when, and what is wanted of checks and host."""
        self._keys.pop(name, None)
        self._wakes.pop(name, None)
        self._drained.pop(name, None)
        self._counting.discard(name)
        if after is not None:
            self._keys[name] = after.service.key
            if (wake_s := after.wake_s) is not None:
                self._wakes[name] = wake_s
            if any(verdict.candidate.drain is not None for verdict in after.verdicts):
                self._counting.add(name)
            if drained := tuple(_drained(after)):
                self._drained[name] = drained
        if before is None or after is None or not after.wishes_as(before):
            self._wish(name, after.wishes if after is not None else None)

    def _wish(self, name: str, new: Wishes | None) -> None:
        """These are a service's wishes now; None: it has none any more."""
        old = self._wishes.pop(name, Wishes())
        if new is not None:
            self._wishes[name] = new
        else:
            new = Wishes()
        if old[1:] != new[1:]:
            self._host = None
        for check in old.checks - new.checks:
            self._watchers[check].discard(name)
            if not self._watchers[check]:
                del self._watchers[check]
                self._checks = None
        for check in new.checks - old.checks:
            self._watchers.setdefault(check, set()).add(name)
            self._checks = None


def _drained(service: TargetService) -> Iterator[DrainKey]:
    """What of it has drained and is still in the intent."""
    if service.over:
        yield (service.name, None)
    for verdict in service.verdicts:
        if verdict.state == "drained" and verdict.candidate.node is None:
            yield (service.name, verdict.candidate.destination.name)


def touched_by_nodes(before: Nodes, after: Nodes) -> set[str]:
    """The services that a node's change concerns."""
    names = [name for name in changed(before, after) if before.get(name) != after[name]]
    names += before.keys() - after.keys()
    nodes = [node for name in names for node in (before.get(name), after.get(name)) if node is not None]
    return {service for node in nodes for service in node.offers}


def touched_by_intent(before: Intent, after: Intent) -> set[str]:
    """The services that operators changed."""
    old, new = before.services, after.services
    came = {name for name in changed(old, new) if old.get(name) is not new[name]}
    return came | (old.keys() - new.keys())


def touched_by_host(before: HostSeen, after: HostSeen, services: Mapping[ServiceKey, TargetService]) -> set[str]:
    """The services whose NAT rules came or went, or whose failure did."""
    if (before.masquerades, "nat" in before.failures) == (after.masquerades, "nat" in after.failures):
        return set()
    return {service.name for service in services.values() if service.wishes.masquerades}


def touched_by_keys(keys: Iterable[ServiceKey], services: Iterable[Service]) -> set[str]:
    """The names of the services that have one of these keys."""
    wanted = set(keys)
    return {service.name for service in services if service.key in wanted} if wanted else set()

