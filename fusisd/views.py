"""What readers see, built from what we know: the frozen snapshot and the lines of the log about nodes. Pure but for the log.

A service of ours shows the names that operators and nodes gave, with the weights that the kernel has; a foreign one shows
what the kernel shows and no name. A service of ours that is on its way out is shown no more.
Does not: decide, read a clock, or format JSON (the web rooms do).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fusisd.drains import Drain
from fusisd.judge import Verdict
from fusisd.membership import Nodes
from fusisd.model import CheckTarget, Health, Node, Service
from fusisd.ports import DestinationView, KernelService, ServiceView, Snapshot
from fusisd.target import Target, TargetService, World
from pyipvs import ServiceKey

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What happened since the start; control counts, readers see the figures in the status."""

    ops: int = 0
    op_errors: int = 0
    turn_errors: int = 0
    drift: int = 0
    """Services of ours that somebody else changed in the kernel, found and repaired."""
    turns: int = 0
    longest_turn_s: float = 0.0
    reactions_s: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

    def copy(self) -> Counts:
        """As it is now."""
        return replace(self, reactions_s=self.reactions_s.copy())

    def turned(self, seconds: float) -> None:
        """Note a turn of the loop."""
        self.turns += 1
        self.longest_turn_s = max(self.longest_turn_s, seconds)

    def shown(self) -> dict[str, object]:
        """The figures, for the status."""
        figures = {"ops": self.ops, "op_errors": self.op_errors, "turn_errors": self.turn_errors, "drift": self.drift}
        longest_ms = round(self.longest_turn_s * 1e3, 1)
        return {**figures, "turns": self.turns, "longest_turn_ms": longest_ms, "reaction_ms": self.reaction_ms()}

    def reacted(self, seconds: float | None) -> None:
        """Note the time from a value observed to the kernel changed; None when no value caused the change."""
        if seconds is not None:
            self.reactions_s.append(seconds)

    def reaction_ms(self) -> dict[str, float | int]:
        """Median, 99th percentile and maximum of the last thousand reactions in milliseconds."""
        if not self.reactions_s:
            return {"count": 0}
        ordered = sorted(self.reactions_s)
        at = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99), "max": len(ordered) - 1}
        return {"count": len(ordered), **{name: round(ordered[i] * 1e3, 3) for name, i in at.items()}}


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
    counting_down: bool = False
    """Something in it changes with the time alone (a drain's)."""


class Views:
    """Builds snapshots; remembers the view of each service that nothing has changed for."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._own: dict[str, tuple[tuple[object, ...], ServiceView]] = {}
        self._foreign: dict[ServiceKey, tuple[KernelService, ServiceView]] = {}
        self._parts: tuple[object, ...] = ()
        self._refusals: Mapping[ServiceKey, str] = {}
        self._views: tuple[ServiceView, ...] = ()

    def snapshot(self, known: Known, generation: int, now_s: float) -> Snapshot:
        """The snapshot of this moment."""
        parts = _parts(known)
        same = self._refusals == known.refusals and list(map(id, parts)) == list(map(id, self._parts))
        if not same or known.counting_down:
            self._parts, self._refusals, self._views = parts, known.refusals, self._all(known, now_s)
        counts = known.counts.copy()
        return Snapshot(
            generation, now_s, self._views, known.world.intent, lambda: _status(known, counts, now_s)
        )

    def _all(self, known: Known, now_s: float) -> tuple[ServiceView, ...]:
        intent, table = known.world.intent, known.world.table
        own = {name: self._own_view(service, known, now_s) for name, service in intent.services.items()}
        named = {service.key for service in intent.services.values()} | known.world.owned
        foreign = {key: self._foreign_view(key, seen) for key, seen in table.items() if key not in named}
        self._own, self._foreign = own, foreign
        return (*(view for _, view in own.values()), *(view for _, view in foreign.values()))

    def _own_view(self, service: Service, known: Known, now_s: float) -> tuple[tuple[object, ...], ServiceView]:
        target, seen = known.target.services.get(service.key), known.world.table.get(service.key)
        reason = _not_applied(service, target, known)
        made_of = (service, target, seen, reason)
        cached = self._own.get(service.name)
        still = target is None or target.wake_s is None  # nothing in it that counts down
        if cached is not None and still and all(old is new for old, new in zip(cached[0], made_of, strict=True)):
            return cached
        return made_of, _own_service(service, target, seen, reason, now_s)

    def _foreign_view(self, key: ServiceKey, seen: KernelService) -> tuple[KernelService, ServiceView]:
        cached = self._foreign.get(key)
        return cached if cached is not None and cached[0] is seen else (seen, _foreign_service(key, seen))


def _parts(known: Known) -> tuple[object, ...]:
    """What the views of all services are made of; none of these is ever changed in place."""
    world = known.world
    return (world.intent.services, known.target.services, world.table, world.owned, world.host.failures)


def log_node_changes(before: Nodes, after: Nodes) -> None:
    """One line for each node that came, changed its status or offers bad tags."""
    for name, node in after.items():
        old = before.get(name)
        if old is None or old.status is not node.status or old.address != node.address:
            log.info("node %s %s %s was=%s", name, node.status.value, node.address, old.status.value if old else "-")
        if node.problems and (old is None or old.problems != node.problems):
            log.warning("node %s: %s", name, "; ".join(node.problems))


def log_health(check: CheckTarget, before: Health | None, after: Health) -> None:
    """One line when a check says something else; another reason for the same is for the debug log."""
    level = logging.INFO if before is None or before.state is not after.state else logging.DEBUG
    log.log(level, "check %s:%d %s %s", check.address, check.port, after.state.value, after.reason)


def _own_service(
    service: Service, target: TargetService | None, seen: KernelService | None, reason: str, now_s: float
) -> ServiceView:
    verdicts = target.verdicts if target is not None else ()
    shown = [verdict for verdict in verdicts if verdict.state != "drained"]
    return ServiceView(
        service.name,
        service.key,
        service.scheduler,
        service.persistence_s,
        foreign=False,
        applied=seen is not None and target is not None and not reason,
        reason=reason or (target.warning if target is not None else ""),
        destinations=tuple(_destination(verdict, seen, now_s) for verdict in shown),
        service=service,
        kernel=seen.service if seen is not None else None,
    )


def _not_applied(service: Service, target: TargetService | None, known: Known) -> str:
    if target is None:
        return f"{service.key} exists in the kernel and is not ours: adopt it, delete it there, or delete this service"
    if refusal := known.refusals.get(service.key):
        return refusal
    return known.world.host.failures.get(f"vip {service.key.address}", "")


def _destination(verdict: Verdict, seen: KernelService | None, now_s: float) -> DestinationView:
    candidate = verdict.candidate
    wanted = candidate.destination
    there = seen.destinations.get(wanted.key) if seen is not None else None
    return DestinationView(
        wanted.name,
        wanted.address,
        wanted.port,
        there.destination.weight if there is not None else 0,
        wanted.method,
        origin="operator" if candidate.node is None else "serf",
        state=verdict.state,
        reason=verdict.reason,
        applied=there is not None,
        active=there.active if there is not None else 0,
        inactive=there.inactive if there is not None else 0,
        drain_left_s=None if candidate.drain is None else max(0.0, candidate.drain.until_s - now_s),
        wanted=verdict.weight,
        destination=wanted,
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
    problems += [f"node {node.name}: {text}" for node in world.nodes.values() for text in node.problems]
    return {
        **known.facts,
        "ok": not problems,
        "problems": problems,
        "warnings": list(world.host.warnings),
        "nodes": [_node(node, now_s) for node in world.nodes.values()],
        "vips": sorted(world.host.vips),
        "external_vips": sorted(world.host.external),
        "revision": world.intent.revision,
        "drains": [_drain(*key, drain, now_s) for key, drain in world.drains.items() if _still_drains(known, *key)],
        **counts.shown(),
    }


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
