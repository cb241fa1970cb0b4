"""Why a service, or a destination, is as it is: every input to the decision, which one decided, by which rule. Pure.

The rules are judge.py's and target.py's, put into words; what happened before is in the ring of events. Times are seconds
before now, so that they mean something to a person.
Does not: decide anything, or know what is shown in which form (plain data for JSON comes out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusisd.judge import LINGER_S, Candidate, Verdict
from fusisd.model import CheckState, CheckTarget, Health, Node, NodeStatus, Service, Tier
from fusisd.ports import KernelDestination, KernelService
from fusisd.target import Target, TargetService, World
from pyipvs import Protocol, ServiceKey

Document = dict[str, object]

_RULES: Mapping[str, tuple[str, str]] = {
    "refused": ("configuration", "it cannot be balanced so, and is not in the kernel"),
    "draining": ("drain", "it drains: weight 0 until no connection is active, at its deadline at the latest"),
    "drained": ("drain", "it has drained, and is not in the kernel"),
    "preparing": ("host", "a new destination by NAT waits for its masquerade rule"),
    "standby": ("tier", "a backup destination has weight 0 while a primary one serves"),
    "failed": ("serf", "it has no check, and Serf calls its node failed: not in the kernel"),
}
"""The states that are decided in one way only: by which input, and the rule."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What it is told from. `held`: why nothing is changed in the kernel at present, "" = it is."""

    world: World
    target: Target
    refusals: Mapping[ServiceKey, str]
    held: str
    now_s: float


def of_service(facts: Facts, name: str) -> Document | None:
    """A service as it is wanted and as it stands, with a row for each destination; None when there is none of ours."""
    service = facts.world.intent.services.get(name)
    if service is None:
        return None
    built, seen = facts.target.services.get(service.key), facts.world.table.get(service.key)
    verdicts = () if built is None else built.verdicts
    reason = not_applied(service, built, facts.world, facts.refusals, facts.held)
    return {
        "service": name,
        "key": str(service.key),
        "desired": {"scheduler": service.scheduler, "draining": service.drain_s is not None},
        "kernel": None if built is None or seen is None else {"scheduler": seen.service.scheduler},
        "applied": not reason,
        "reason": reason,
        "vip": _vip(facts, service, built),
        "conflict": name in facts.target.conflicts,
        "refusal": facts.refusals.get(service.key, ""),
        "warning": "" if built is None else built.warning,
        "hold": facts.held,
        "destinations": [_row(facts, verdict, _present(seen, verdict), service.key.protocol) for verdict in verdicts],
    }


def of_destination(facts: Facts, name: str, destination: str) -> Document | None:
    """A destination, likewise; None when nobody asks for one of this name."""
    service = facts.world.intent.services.get(name)
    built = facts.target.services.get(service.key) if service is not None else None
    if service is None or built is None:
        return None
    seen = facts.world.table.get(service.key)
    for verdict in built.verdicts:
        if verdict.candidate.destination.name == destination:
            return {"service": name, **_explained(facts, service.key, verdict, _present(seen, verdict))}
    return None


def not_applied(
    service: Service, built: TargetService | None, world: World, refusals: Mapping[ServiceKey, str], held: str
) -> str:
    """Why the service is not in the kernel and on the host as it is wanted; "" when it is."""
    if built is None:
        return f"{service.key} exists in the kernel and is not ours: adopt it, delete it there, or delete this service"
    if refusal := refusals.get(service.key):
        return refusal
    seen = world.table.get(service.key)
    if (seen is None) is not built.over or (seen is not None and seen.service != built.service):
        return held or "not applied yet"
    return world.host.failures.get(f"vip {service.key.address}", "")


def decided(verdict: Verdict, protocol: Protocol | None) -> tuple[str, str]:
    """Which input decided a weight, and the rule in words."""
    candidate, weight = verdict.candidate, verdict.weight
    if verdict.state in ("down", "failed") and weight:
        return "last good", "nothing of the service would serve: whoever has weight keeps it"
    if verdict.state == "up":
        return _serves(candidate)
    if verdict.state == "checking":
        waits = "Serf has not spoken" if candidate.check is None else "its check has come to no conclusion"
        return "kernel", f"{waits} yet: it stays as the kernel has it, and a new one waits"
    if verdict.state == "down":
        return _fails(candidate, weight, protocol)
    return _RULES.get(verdict.state, ("", verdict.reason))


def _serves(candidate: Candidate) -> tuple[str, str]:
    backup = "; it is a backup, and no primary one serves" if candidate.destination.tier is Tier.BACKUP else ""
    if candidate.check is not None:
        failed = _is_failed(candidate.node)
        but = "; Serf calls its node failed, but an answer is evidence and silence is none" if failed else ""
        return "check", f"its check passes: it has the weight that was asked for{but}{backup}"
    if candidate.node is not None:
        return "serf", f"it has no check, and Serf does not call its node failed: it has the weight of its tags{backup}"
    return "operator", f"it has no check: it has the weight that was asked for{backup}"


def _fails(candidate: Candidate, weight: int | None, protocol: Protocol | None) -> tuple[str, str]:
    if candidate.down_s is not None:
        then = f"weight 0 for {LINGER_S:.0f} s, then out of the kernel" if weight == 0 else "out of the kernel"
        return "serf", f"its own server says by its tags that it does not answer: {then}"
    if _is_failed(candidate.node):
        return "check and serf", "its check fails and Serf calls its node failed: out of the kernel at once"
    if weight == 0:
        return "check", f"its check fails: weight 0 for {LINGER_S:.0f} s, then out of the kernel"
    if protocol is Protocol.UDP:
        return "check", "its check fails: by UDP it is out of the kernel at once"
    return "check", f"its check fails, for {LINGER_S:.0f} s or since before it was in the kernel: it is not in it"


def _is_failed(node: Node | None) -> bool:
    return node is not None and node.status is NodeStatus.FAILED


def _explained(facts: Facts, key: ServiceKey, verdict: Verdict, there: KernelDestination | None) -> Document:
    candidate = verdict.candidate
    wanted, drain = candidate.destination, candidate.drain
    settings = {"address": wanted.address, "port": wanted.port, "method": str(wanted.method)}
    left_s = None if drain is None else round(max(0.0, drain.until_s - facts.now_s), 1)
    row = _row(facts, verdict, there, key.protocol)
    return {
        **row,
        "desired": {**settings, "weight": wanted.weight, "tier": wanted.tier.value, "asked_by": _asked_by(candidate)},
        "kernel": None if there is None else {"active": there.active, "inactive": there.inactive, "weight": row["weight"]},
        "serf": None if candidate.node is None else _serf(candidate.node, facts.now_s),
        "drain": None if drain is None else {"reason": candidate.drained_by, "left_s": left_s},
        "hold": "" if row["applied"] else facts.refusals.get(key) or facts.held,
    }


def _row(facts: Facts, verdict: Verdict, there: KernelDestination | None, protocol: Protocol | None) -> Document:
    weight = None if there is None else there.destination.weight
    by, rule = decided(verdict, protocol)
    return {
        "destination": verdict.candidate.destination.name,
        "state": verdict.state,
        "reason": verdict.reason,
        "weight": weight,
        "wanted": verdict.weight,
        "applied": weight == verdict.weight,
        "decided": {"input": by, "rule": rule},
        "health": _health(facts, verdict.candidate.check),
        "path": None if verdict.path_rests else _health(facts, verdict.candidate.path),
    }


def _asked_by(candidate: Candidate) -> str:
    return "operator" if candidate.node is None else "serf"


def _present(seen: KernelService | None, verdict: Verdict) -> KernelDestination | None:
    return None if seen is None else seen.destinations.get(verdict.candidate.destination.key)


def _health(facts: Facts, check: CheckTarget | None) -> Document | None:
    if check is None:
        return None
    found = facts.world.health.get(check, Health())
    since_s = None if found.state is CheckState.UNKNOWN else round(facts.now_s - found.since_s, 1)
    what = {"kind": check.spec.kind.value, "address": check.address, "port": check.port}
    return {"check": what, "state": found.state.value, "reason": found.reason, "since_s": since_s}


def _serf(node: Node, now_s: float) -> Document:
    since_s = round(now_s - node.since_s, 1)
    told = {"node": node.name, "address": node.address, "status": node.status.value, "since_s": since_s}
    return {**told, "missing": node.missing, "problems": list(node.problems)}


def _vip(facts: Facts, service: Service, built: TargetService | None) -> Document | None:
    """How it stands with the address; None for a firewall mark."""
    address, host = service.key.address, facts.world.host
    if address is None:
        return None
    wanted = built is not None and built.vip is not None and not facts.world.withdrawn
    on_host = "ours" if address in host.vips else "external" if address in host.external else ""
    failure = host.failures.get(f"vip {address}", "")
    managed = {"managed": service.vip_managed, "announce": service.announce.value, "withdrawn": facts.world.withdrawn}
    return {"address": address, **managed, "wanted": wanted, "on_host": on_host, "failure": failure}
