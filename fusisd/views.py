"""What readers see, built from what we know: the frozen snapshot and the lines of the log about nodes. Pure but for the log.

A service of ours shows the names that operators and nodes gave, with the weights that the kernel has; a foreign one shows
what the kernel shows and no name. A service of ours that is on its way out is shown no more.
Does not: decide, read a clock, or format JSON (the web rooms do).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusisd.membership import Nodes
from fusisd.model import Node, Service
from fusisd.ports import DestinationView, KernelService, ServiceView, Snapshot
from fusisd.target import Target, TargetService, Verdict, World
from pyipvs import ServiceKey

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What happened since the start; control counts, readers see the figures in the status."""

    ops: int = 0
    op_errors: int = 0
    turn_errors: int = 0
    reactions_s: deque[float] = field(default_factory=lambda: deque(maxlen=1000))

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
    """All that a snapshot shows."""

    world: World
    target: Target
    refusals: Mapping[ServiceKey, str]
    serf_problem: str
    kernel_problem: str
    counts: Counts
    facts: Mapping[str, object]


def build(known: Known, generation: int, now_s: float) -> Snapshot:
    """The snapshot of this moment."""
    ours = [_own_service(service, known) for service in known.world.intent.services.values()]
    named = {service.key for service in known.world.intent.services.values()} | known.world.owned
    foreign = [_foreign_service(key, seen) for key, seen in known.world.table.items() if key not in named]
    return Snapshot(generation, now_s, (*ours, *foreign), _status(known, now_s))


def log_node_changes(before: Nodes, after: Nodes) -> None:
    """One line for each node that came, changed its status or offers bad tags."""
    for name, node in after.items():
        old = before.get(name)
        if old is None or old.status is not node.status or old.address != node.address:
            log.info("node %s %s %s was=%s", name, node.status.value, node.address, old.status.value if old else "-")
        if node.problems and (old is None or old.problems != node.problems):
            log.warning("node %s: %s", name, "; ".join(node.problems))


def _own_service(service: Service, known: Known) -> ServiceView:
    target, seen = known.target.services.get(service.key), known.world.table.get(service.key)
    reason = _not_applied(service, target, known)
    verdicts = target.verdicts if target is not None else ()
    destinations = tuple(_destination(verdict, seen) for verdict in verdicts)
    if not reason and target is not None and target.warning:
        reason = target.warning
    return ServiceView(
        service.name,
        service.key,
        service.scheduler,
        service.persistence_s,
        foreign=False,
        applied=seen is not None and target is not None and not _not_applied(service, target, known),
        reason=reason,
        destinations=destinations,
    )


def _not_applied(service: Service, target: TargetService | None, known: Known) -> str:
    if target is None:
        return f"{service.key} exists in the kernel and is not ours: delete it there, or delete this service"
    if refusal := known.refusals.get(service.key):
        return refusal
    return known.world.host.failures.get(f"vip {service.key.address}", "")


def _destination(verdict: Verdict, seen: KernelService | None) -> DestinationView:
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
    return ServiceView("", key, service.scheduler, service.persistence_s, True, True, "", destinations)


def _status(known: Known, now_s: float) -> dict[str, object]:
    problems = [f"{key}: {text}" for key, text in known.world.host.failures.items()]
    problems += [f"{key}: {text}" for key, text in known.refusals.items()]
    problems += [f"service {t.name}: {t.warning}" for t in known.target.services.values() if t.warning]
    problems += [f"service {name}: its key exists in the kernel and is not ours" for name in known.target.conflicts]
    problems += [f"serf: {known.serf_problem}"] if known.serf_problem else []
    problems += [f"kernel: {known.kernel_problem}"] if known.kernel_problem else []
    problems += [f"node {node.name}: {text}" for node in known.world.nodes.values() for text in node.problems]
    return {
        **known.facts,
        "ok": not problems,
        "problems": problems,
        "serf_connected": not known.serf_problem,
        "nodes": [_node(node, now_s) for node in known.world.nodes.values()],
        "vips": sorted(known.world.host.vips),
        "external_vips": sorted(known.world.host.external),
        "revision": known.world.intent.revision,
        "ops": known.counts.ops,
        "op_errors": known.counts.op_errors,
        "turn_errors": known.counts.turn_errors,
        "reaction_ms": known.counts.reaction_ms(),
    }


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
