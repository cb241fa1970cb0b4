"""What the kernel and the host should have, from everything we know: one pure function.

For each destination of each service that is ours `judge` says which weight it should have (None: not in the kernel), in
which state it is, why, and when to think again. The rules, in the order they are tried:

    leaving     its node left, or its tags dropped the service: weight 0, out after LINGER_S (UDP: out at once)
    no check    in, unless Serf calls the node failed
    up          in; a node that Serf calls failed stays, flagged (absence of gossip is not evidence, an answer is)
    unknown     as the kernel has it: our own restart moves no traffic, a new destination waits for its first pass
    down        TCP and SCTP weight 0, out after LINGER_S; out at once when UDP or when Serf calls the node failed too

UDP never lingers at weight 0: traffic refreshes the kernel's connection entry for ever (kubernetes#71514). When nothing
of a service would serve, those that fail keep the weight they have in the kernel (the last good set), flagged.
Does not: read a clock (`now_s` is handed in), or know how any of it is made so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pyipvs
from fusisd.membership import Nodes
from fusisd.model import (
    CheckState,
    CheckTarget,
    Destination,
    DestinationKey,
    Health,
    HostSeen,
    HostWanted,
    Intent,
    Masquerade,
    Node,
    NodeStatus,
    Service,
)
from fusisd.ports import KernelService, KernelTable
from fusisd.state import cannot_forward
from pyipvs import ForwardingMethod, Protocol, ServiceKey

LINGER_S = 30.0  # established TCP connections get this long at weight 0 before their destination is deleted

UNKNOWN = Health()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A destination that somebody asked for: an operator (`node` None) or a node's tags."""

    destination: Destination
    node: Node | None = None
    check: CheckTarget | None = None
    withdrawn_s: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What should become of a candidate. `weight` None: not in the kernel. `wake_s`: when the answer may change."""

    candidate: Candidate
    weight: int | None
    state: str
    reason: str = ""
    wake_s: float | None = None

    def as_kernel(self) -> pyipvs.Destination:
        """The destination to have in the kernel; only for a verdict with a weight."""
        wanted = self.candidate.destination
        return pyipvs.Destination(wanted.address, wanted.port, weight=self.weight or 0, method=wanted.method)


@dataclass(frozen=True, slots=True)
class TargetService:
    """A service as it should be in the kernel, with the verdict on each of its candidates."""

    name: str
    service: pyipvs.Service
    verdicts: tuple[Verdict, ...]
    warning: str = ""

    def destinations(self) -> dict[DestinationKey, Verdict]:
        """The verdicts that put a destination into the kernel, by its key there."""
        return {v.candidate.destination.key: v for v in self.verdicts if v.weight is not None}


@dataclass(frozen=True, slots=True)
class Target:
    """Everything that should be so. `conflicts` are services of the intent that exist in the kernel and are not ours."""

    services: Mapping[ServiceKey, TargetService] = field(default_factory=dict)
    conflicts: frozenset[str] = frozenset()
    host: HostWanted = field(default_factory=HostWanted)
    checks: frozenset[CheckTarget] = frozenset()
    wake_s: float | None = None


@dataclass(frozen=True, slots=True)
class World:
    """All that a target is made from."""

    intent: Intent = field(default_factory=Intent)
    nodes: Nodes = field(default_factory=dict)
    health: Mapping[CheckTarget, Health] = field(default_factory=dict)
    table: KernelTable = field(default_factory=dict)
    owned: frozenset[ServiceKey] = frozenset()
    host: HostSeen = field(default_factory=HostSeen)


def build(world: World, now_s: float) -> Target:
    """What should be so, given the world."""
    services: dict[ServiceKey, TargetService] = {}
    conflicts = set()
    for service in world.intent.services.values():
        if service.key not in world.owned:
            conflicts.add(service.name)
            continue
        services[service.key] = _build_service(service, world, now_s)
    verdicts = [verdict for built in services.values() for verdict in built.verdicts]
    return Target(
        services=services,
        conflicts=frozenset(conflicts),
        host=_host(services),
        checks=frozenset(v.candidate.check for v in verdicts if v.candidate.check is not None),
        wake_s=min((v.wake_s for v in verdicts if v.wake_s is not None), default=None),
    )


def judge(
    candidate: Candidate, protocol: Protocol | None, health: Health, present: int | None, now_s: float
) -> Verdict:
    """The verdict on one candidate alone; `present` is its weight in the kernel now, None when it is not there."""
    if candidate.problem:
        return Verdict(candidate, None, "refused", candidate.problem)
    node = candidate.node
    lingers = protocol is not Protocol.UDP and present is not None
    if node is not None and (candidate.withdrawn_s is not None or node.status in (NodeStatus.LEAVING, NodeStatus.LEFT)):
        since_s = node.since_s if candidate.withdrawn_s is None else candidate.withdrawn_s
        reason = f"its node is {node.status.value}" if candidate.withdrawn_s is None else "its tags dropped the service"
        return _linger(candidate, "leaving", reason, since_s, lingers, now_s)
    weight = candidate.destination.weight
    failed = node is not None and node.status is NodeStatus.FAILED
    if candidate.check is None:
        return Verdict(candidate, None, "failed", "Serf says failed") if failed else Verdict(candidate, weight, "up")
    if health.state is CheckState.UP:
        return Verdict(candidate, weight, "up", "Serf says failed, but its check passes" if failed else "")
    if health.state is CheckState.UNKNOWN:
        return Verdict(candidate, present, "checking", "waiting for its first check")
    if failed:
        return Verdict(candidate, None, "down", f"{health.reason}; Serf says failed too")
    return _linger(candidate, "down", health.reason, health.since_s, lingers, now_s)


def _after_masquerade(verdict: Verdict, key: ServiceKey, kernel: KernelService | None, host: HostSeen) -> Verdict:
    """A new destination by NAT waits for its masquerade rule, or the first connections would find no way back.

    It does not wait when NAT cannot be set up at all: the servers may route back through us.
    """
    row = _masquerade(key, verdict.candidate)
    if verdict.weight is None or row is None or _present(kernel, verdict.candidate) is not None:
        return verdict
    if row in host.masquerades or "nat" in host.failures:
        return verdict
    return replace(verdict, weight=None, state="preparing", reason="waiting for its masquerade rule")


def _linger(candidate: Candidate, state: str, reason: str, since_s: float, lingers: bool, now_s: float) -> Verdict:
    """Weight 0 until LINGER_S after `since_s`, then out; at once when it may not linger. Never puts anything in."""
    until_s = since_s + LINGER_S
    if lingers and now_s < until_s:
        return Verdict(candidate, 0, state, reason, wake_s=until_s)
    return Verdict(candidate, None, state, reason)


def _build_service(service: Service, world: World, now_s: float) -> TargetService:
    kernel = world.table.get(service.key)
    protocol = service.key.protocol
    verdicts = []
    for candidate in _candidates(service, world.nodes):
        health = world.health.get(candidate.check, UNKNOWN) if candidate.check else UNKNOWN
        verdict = judge(candidate, protocol, health, _present(kernel, candidate), now_s)
        verdicts.append(_after_masquerade(verdict, service.key, kernel, world.host))
    verdicts, warning = _last_good(verdicts, kernel)
    wanted = pyipvs.Service(service.key, scheduler=service.scheduler, persistence_s=service.persistence_s)
    return TargetService(service.name, wanted, tuple(verdicts), warning)


def _candidates(service: Service, nodes: Nodes) -> Iterator[Candidate]:
    """Operators' destinations first: where a node offers the same name or address, the operator's word counts."""
    taken_names = set(service.destinations)
    taken_keys = {destination.key: destination.name for destination in service.destinations.values()}
    for destination in service.destinations.values():
        yield Candidate(destination)
    for node in sorted(nodes.values(), key=lambda node: node.name):
        offer = node.offers.get(service.name)
        if offer is None or node.name in service.excluded or node.name in taken_names:
            continue
        destination = Destination(node.name, node.address, offer.port, offer.weight, offer.method)
        problem = cannot_forward(service.key, destination)
        if destination.key in taken_keys:
            problem = f"{node.address}:{offer.port} is destination {taken_keys[destination.key]} already"
        else:
            taken_keys[destination.key] = node.name
        # A TCP connect says nothing about a UDP or SCTP port, so those have Serf's word only.
        checked = offer.checked and service.key.protocol is Protocol.TCP
        check = CheckTarget(node.address, offer.port) if checked and not problem else None
        yield Candidate(destination, node, check, node.withdrawn.get(service.name), problem)


def _present(kernel: KernelService | None, candidate: Candidate) -> int | None:
    if kernel is None:
        return None
    seen = kernel.destinations.get(candidate.destination.key)
    return None if seen is None else seen.destination.weight


def _last_good(verdicts: list[Verdict], kernel: KernelService | None) -> tuple[list[Verdict], str]:
    """Fail open: when nothing would serve, whoever fails its check but still has weight in the kernel keeps it."""
    if any(verdict.weight for verdict in verdicts):
        return verdicts, ""
    kept = []
    for verdict in verdicts:
        present = _present(kernel, verdict.candidate)
        if verdict.state in ("down", "failed") and present:
            verdict = replace(
                verdict, weight=present, reason=f"{verdict.reason}; kept: nothing else serves", wake_s=None
            )
        kept.append(verdict)
    if not any(verdict.weight for verdict in kept):
        return verdicts, "no destination can serve" if verdicts else ""
    return kept, "every check fails: the last good destinations are kept"


def _host(services: Mapping[ServiceKey, TargetService]) -> HostWanted:
    vips = {key.address for key in services if key.address is not None}
    masquerades = {
        row
        for key, service in services.items()
        for verdict in service.verdicts
        if (row := _masquerade(key, verdict.candidate)) is not None
    }
    return HostWanted(frozenset(vips), frozenset(masquerades))


def _masquerade(key: ServiceKey, candidate: Candidate) -> Masquerade | None:
    """The rule that a destination needs, whether it serves already or not; None when it needs none."""
    destination = candidate.destination
    if candidate.problem or destination.method is not ForwardingMethod.NAT:
        return None
    if key.protocol is None or key.address is None or key.port is None:
        return None
    return Masquerade(key.protocol, key.address, key.port, destination.address, destination.port)
