"""What readers see, built from what we know: the frozen snapshot. Pure.

A service of ours shows the names that operators and nodes gave, with the weights that the kernel has; a foreign one shows
what the kernel shows and no name. A service of ours that is on its way out is shown no more.
Does not: decide, read a clock, or format JSON (the web rooms do).
"""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

from fusisd import why
from fusisd.counts import Counts
from fusisd.drains import Drain
from fusisd.judge import Verdict
from fusisd.mappings import changed
from fusisd.model import Node, Service
from fusisd.ports import DestinationView, KernelDestination, KernelService, KernelTable, ServiceView, Snapshot
from fusisd.target import Target, TargetService, World
from pyipvs import Family, ServiceKey

WITHDRAWN = "withdrawn: the VIPs that fusisd manages are off this host until fusisctl withdraw --undo"
STRANGERS = 10  # of services at our marks, that many are named: the rest is named when these are gone


@dataclass(frozen=True, slots=True)
class Known:
    """All that a snapshot shows; nothing in it is changed once it was handed over."""

    world: World
    target: Target
    refusals: Mapping[ServiceKey, str]
    problems: tuple[str, ...]
    """What else is wrong, as whole sentences."""
    counts: Counts
    facts: Mapping[str, object]
    counting: frozenset[str] = frozenset()
    """The services in which something changes with the time alone (a drain's)."""
    held: str = ""
    """Why nothing is changed in the kernel at present; "" = it is."""
    hidden: Container[ServiceKey] = ()
    """Services that are ours and nobody's wish: those of path checks."""
    kept: range = range(0)
    """The firewall marks that are kept for these."""


class Parts(NamedTuple):
    """What the views of all services are made of; none of these is ever changed in place."""

    services: Mapping[str, Service]
    targets: Mapping[ServiceKey, TargetService]
    table: KernelTable
    owned: frozenset[ServiceKey]
    failures: Mapping[str, str]
    refusals: Mapping[ServiceKey, str]
    held: str


class Row(NamedTuple):
    """A view of a destination, and what it was made of."""

    verdict: Verdict
    there: KernelDestination | None
    view: DestinationView


class Shown(NamedTuple):
    """A view of a service of ours, and what it was made of."""

    service: Service
    target: TargetService | None
    seen: KernelService | None
    reason: str
    rows: tuple[Row, ...]
    view: ServiceView


class Views:
    """Builds snapshots; remembers the view of each service and destination that nothing has changed for."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._own: dict[str, Shown] = {}
        self._names: dict[ServiceKey, str] = {}
        self._foreign: dict[ServiceKey, tuple[KernelService, ServiceView]] = {}
        self._parts: Parts | None = None
        self._views: tuple[ServiceView, ...] = ()

    def snapshot(self, known: Known, generation: int, now_s: float) -> Snapshot:
        """The snapshot of this moment."""
        world = known.world
        settled = (world.owned, world.host.failures, known.refusals, known.held)
        parts = Parts(world.intent.services, known.target.services, world.table, *settled)
        if known.counting or self._parts is None or any(map(operator.is_not, parts, self._parts)):
            names = self._touched(parts, known.counting)
            if names is None:
                self._look_at_all(known, now_s)
            else:
                self._own.update({name: self._own_view(parts.services[name], known, now_s) for name in names})
            self._parts = parts
            views = (*(row.view for row in self._own.values()), *(view for _, view in self._foreign.values()))
            if len(views) != len(self._views) or any(map(operator.is_not, views, self._views)):
                self._views = views  # else the very same, so that readers keep what they made of them
        counts = known.counts.copy()
        tell_why = partial(_why, known, now_s)
        return Snapshot(generation, now_s, self._views, world.intent, lambda: _status(known, counts, now_s), tell_why)

    def _touched(self, parts: Parts, counting: frozenset[str]) -> set[str] | None:
        """The services of ours that may look another way, when that is all that changed; else None."""
        old = self._parts
        if old is None or parts.owned is not old.owned or parts[4:] != old[4:]:
            return None
        if len(parts.services) != len(old.services):
            return None
        names = changed(old.services, parts.services)
        keys = _changed_or_gone(old.targets, parts.targets) | _changed_or_gone(old.table, parts.table)
        rekeyed = any(self._names.get(parts.services[name].key) != name for name in names)
        if rekeyed or any(key not in self._names for key in keys):
            return None
        return names | counting | {self._names[key] for key in keys}

    def _look_at_all(self, known: Known, now_s: float) -> None:
        intent, table = known.world.intent, known.world.table
        self._own = {name: self._own_view(service, known, now_s) for name, service in intent.services.items()}
        self._names = {service.key: name for name, service in intent.services.items()}
        named = self._names.keys() | known.world.owned
        self._foreign = {key: self._foreign_view(key, seen) for key, seen in table.items() if key not in named}

    def _own_view(self, service: Service, known: Known, now_s: float) -> Shown:
        target, seen = known.target.services.get(service.key), known.world.table.get(service.key)
        reason = why.not_applied(service, target, known.world, known.refusals, known.held)
        made_of = (service, target, seen, reason)
        before = self._own.get(service.name)
        still = service.name not in known.counting
        same = before is not None and before.reason == reason and not any(map(operator.is_not, before[:3], made_of))
        if before is not None and same and still:
            return before
        rows = _rows(target, seen, now_s, () if before is None else before.rows)
        return Shown(*made_of, rows, _own_service(service, target, seen, reason, rows))

    def _foreign_view(self, key: ServiceKey, seen: KernelService) -> tuple[KernelService, ServiceView]:
        cached = self._foreign.get(key)
        return cached if cached is not None and cached[0] is seen else (seen, _foreign_service(key, seen))


def _changed_or_gone(before: Mapping[ServiceKey, object], after: Mapping[ServiceKey, object]) -> set[ServiceKey]:
    return set() if before is after else changed(before, after) | (before.keys() - after.keys())


def _own_service(
    service: Service,
    target: TargetService | None,
    seen: KernelService | None,
    reason: str,
    rows: tuple[Row, ...],
) -> ServiceView:
    return ServiceView(
        service.name,
        service.key,
        service.scheduler,
        service.persistence_s,
        foreign=False,
        applied=not reason,
        reason=reason or (target.warning if target is not None else ""),
        destinations=tuple(row.view for row in rows),
        service=service,
        kernel=seen.service if seen is not None else None,
    )


def _rows(
    target: TargetService | None, seen: KernelService | None, now_s: float, before: tuple[Row, ...]
) -> tuple[Row, ...]:
    """A view of each destination that has not drained; the one from `before` when nothing changed for it."""
    if target is None:
        return ()
    there = {} if seen is None else seen.destinations
    found = [(v, there.get(v.candidate.destination.key)) for v in target.verdicts if v.state != "drained"]
    return tuple(
        old
        if old is not None and old.verdict is verdict and old.there is seen_now and verdict.candidate.drain is None
        else Row(verdict, seen_now, _destination(verdict, seen_now, now_s))
        for (verdict, seen_now), old in zip_longest(found, before[: len(found)])
    )


def _destination(verdict: Verdict, there: KernelDestination | None, now_s: float) -> DestinationView:
    candidate = verdict.candidate
    wanted = candidate.destination
    return DestinationView(
        wanted.name,
        wanted.address,
        wanted.port,
        there.destination.weight if there is not None else 0,
        wanted.method,
        origin="operator" if candidate.node is None else "serf",
        state=verdict.state,
        reason=verdict.reason,
        applied=there is not None and there.destination.weight == verdict.weight,
        active=there.active if there is not None else 0,
        inactive=there.inactive if there is not None else 0,
        drain_left_s=None if candidate.drain is None else max(0.0, candidate.drain.until_s - now_s),
        wanted=verdict.weight,
        destination=wanted,
        since_s=verdict.since_s,
    )


def _foreign_service(key: ServiceKey, seen: KernelService) -> ServiceView:
    destinations = tuple(
        DestinationView(
            "",
            there.destination.address,
            there.destination.port,
            there.destination.weight,
            there.destination.method,
            origin="foreign",
            state="",
            reason="",
            applied=True,
            active=there.active,
            inactive=there.inactive,
        )
        for there in seen.destinations.values()
    )
    service = seen.service
    return ServiceView(
        "", key, service.scheduler, service.persistence_s, True, True, "", destinations, kernel=service
    )


def _status(known: Known, counts: Counts, now_s: float) -> dict[str, object]:
    world = known.world
    problems = [f"{key}: {text}" for key, text in world.host.failures.items()]
    problems += [f"{key}: {text}" for key, text in known.refusals.items()]
    problems += [f"service {t.name}: {t.warning}" for t in known.target.services.values() if t.warning]
    problems += [f"service {name}: its key exists in the kernel and is not ours" for name in known.target.conflicts]
    problems += known.problems
    problems += [WITHDRAWN] if world.withdrawn else []
    problems += [f"node {node.name}: {text}" for node in world.nodes.values() for text in node.problems]
    return {
        **known.facts,
        "ok": not problems,
        "problems": problems,
        "warnings": [*world.host.warnings, *_strangers(known)],
        "nodes": [_node(node, now_s) for node in world.nodes.values()],
        "withdrawn": world.withdrawn,
        "vips": sorted(world.host.vips),
        "external_vips": sorted(world.host.external),
        "host": dict(world.host.counts),
        "revision": world.intent.revision,
        "orphans": sum(key in world.table and not _wanted(key, known) for key in world.owned),
        "drains": [_drain(*key, drain, now_s) for key, drain in world.drains.items() if _still_drains(known, *key)],
        **counts.shown(),
    }


def _strangers(known: Known) -> tuple[str, ...]:
    """The sentence that names services at marks kept for path checks that are not noted as ours. A store that was lost
    leaves them, and nothing tells them from what somebody else made: to delete them is the operator's to decide."""
    marked = (key for key in known.world.table if key.mark is not None)  # `None in range` looks at the whole range
    keys = sorted(key for key in marked if key.mark in known.kept and key not in known.world.owned)
    if not keys:
        return ()
    named = ((key.mark, " -6" if key.family is Family.INET6 else "") for key in keys[:STRANGERS])
    commands = "; ".join(f"ipvsadm -D -f {mark}{family}" for mark, family in named)
    count = f"{len(keys)} services have" if len(keys) > 1 else "1 service has"
    return (
        f"{count} a firewall mark of those for path checks (--path-marks) and not noted as ours, as a lost store"
        f" leaves them: left alone; when nobody else made them, {commands}",
    )


def _why(known: Known, now_s: float, service: str, destination: str | None) -> dict[str, object] | None:
    facts = why.Facts(known.world, known.target, known.refusals, known.held, now_s)
    return why.of_service(facts, service) if destination is None else why.of_destination(facts, service, destination)


def _wanted(key: ServiceKey, known: Known) -> bool:
    return key in known.target.services or key in known.hidden


def _still_drains(known: Known, service: str, name: str | None) -> bool:
    """Whether there is something left of it: the row of an excluded destination stays as long as the exclusion does."""
    intent = known.world.intent.services.get(service)
    built = known.target.services.get(intent.key) if intent is not None else None
    if built is None or name is None:
        return built is not None and not built.over
    return any(row.state == "draining" and row.candidate.destination.name == name for row in built.verdicts)


def _drain(service: str, name: str | None, drain: Drain, now_s: float) -> dict[str, object]:
    return {"service": service, "destination": name, "left_s": round(max(0.0, drain.until_s - now_s), 1)}


def _node(node: Node, now_s: float) -> dict[str, object]:
    return {
        "name": node.name,
        "address": node.address,
        "status": node.status.value,
        "missing": node.missing,
        "since_s": round(now_s - node.since_s, 1),
        "services": sorted(node.offers),
        "problems": list(node.problems),
    }
