"""One destination: who asked for it, and what should become of it. Pure.

For each destination of each service that is ours `judge` says which weight it should have (None: not in the kernel), in
which state it is, why, and when to think again. The rules, in the order they are tried:

    draining    an operator's DELETE, its node left, its tags dropped the service or say drain: weight 0, out when no
                connection is active any more, at its deadline at the latest (UDP, and tags that say maint: out at once)
    says down   its own check fails: as down, whatever ours says
    no check    in, unless Serf calls the node failed; as the kernel has it until Serf has spoken after our restart
    up          in; a node that Serf calls failed stays, flagged (absence of gossip is not evidence, an answer is)
    unknown     as the kernel has it: our own restart moves no traffic, a new destination waits for its first pass
    down        TCP and SCTP weight 0, out after LINGER_S; out at once when UDP or when Serf calls the node failed too

UDP never lingers at weight 0: traffic refreshes the kernel's connection entry for ever (kubernetes#71514).
Does not: see a service's other destinations (target.py does), or read a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import pyipvs
from fusisd.drains import TABLE, Drain, DrainKey, Phase, sight_of, wake_s
from fusisd.limits import cannot_forward, kernel_destination
from fusisd.membership import claim
from fusisd.model import (
    CheckKind,
    CheckSpec,
    CheckState,
    CheckTarget,
    Destination,
    DestinationKey,
    Health,
    Masquerade,
    Node,
    NodeStatus,
    Offer,
    OfferState,
    Service,
)
from fusisd.nodes import DRAINS
from fusisd.paths import path_check
from fusisd.ports import KernelDestination
from pyipvs import ForwardingMethod, Protocol, ServiceKey

LINGER_S = 30.0  # established TCP connections get this long at weight 0 before their failed destination is deleted
DRAIN_LIMIT_S = 60.0  # and this long when its node leaves

UNKNOWN = Health()
NO_CHECK = CheckSpec(CheckKind.NONE)
_SAID = {
    OfferState.READY: "its tags dropped the service",
    OfferState.DRAIN: "its tags say drain",
    OfferState.MAINT: "its tags say maintenance",
}


class Candidate(NamedTuple):
    """A destination that somebody asked for: an operator (`node` None) or a node's tags."""

    destination: Destination
    node: Node | None = None
    check: CheckTarget | None = None
    drain: Drain | None = None
    drained_by: str = ""
    problem: str = ""
    path: CheckTarget | None = None
    """What it is asked through the VIP besides (paths.py)."""
    offer: Offer | None = None
    down_s: float | None = None
    """Since when its own server says that it does not answer."""


class Verdict(NamedTuple):
    """What should become of a candidate. `weight` None: not in the kernel. `wake_s`: when the answer may change."""

    candidate: Candidate
    weight: int | None
    state: str
    reason: str = ""
    wake_s: float | None = None
    since_s: float | None = None
    """Since when it is down; None: it is not."""
    path_rests: bool = False
    """Its own address does not answer: it need not be asked through the VIP, and is at once when it answers again."""

    def as_kernel(self) -> pyipvs.Destination:
        """The destination to have in the kernel; only for a verdict with a weight."""
        return kernel_destination(self.candidate.destination, self.weight or 0)


class Judged(NamedTuple):
    """A candidate's verdict and the two things that it hangs on besides the time."""

    candidate: Candidate
    health: Health
    present: KernelDestination | None
    verdict: Verdict


def judge(
    candidate: Candidate, protocol: Protocol | None, health: Health, present: KernelDestination | None, now_s: float
) -> Verdict:
    """The verdict on one candidate alone; `present` is what the kernel has of it now, None when it is not there."""
    if candidate.problem:
        return Verdict(candidate, None, "refused", candidate.problem)
    if (drain := candidate.drain) is not None:
        if TABLE[sight_of(drain, protocol, present, now_s)] is Phase.OVER:
            return Verdict(candidate, None, "drained", candidate.drained_by)
        return Verdict(candidate, 0, "draining", candidate.drained_by, wake_s(drain, present, now_s))
    lingers = present is not None and protocol is not Protocol.UDP
    if candidate.down_s is not None:
        return _down(candidate, candidate.down_s, "its server says that it does not answer", lingers, now_s)
    node, weight = candidate.node, candidate.destination.weight
    failed = node is not None and node.status is NodeStatus.FAILED
    if candidate.check is None:
        return _unchecked(candidate, present)
    if health.state is CheckState.UP:
        return Verdict(candidate, weight, "up", "Serf says failed, but its check passes" if failed else "")
    if health.state is CheckState.UNKNOWN:
        there = None if present is None else present.destination.weight
        return Verdict(candidate, there, "checking", health.reason or "waiting for its first check")
    if failed:
        return Verdict(candidate, None, "down", f"{health.reason}; Serf says failed too", since_s=health.since_s)
    return _down(candidate, health.since_s, health.reason, lingers, now_s)


def _down(candidate: Candidate, since_s: float, reason: str, lingers: bool, now_s: float) -> Verdict:
    """Weight 0 for a while, for the connections that there are, then out."""
    until_s = since_s + LINGER_S
    if lingers and now_s < until_s:
        return Verdict(candidate, 0, "down", reason, until_s, since_s)
    return Verdict(candidate, None, "down", reason, since_s=since_s)


def _unchecked(candidate: Candidate, present: KernelDestination | None) -> Verdict:
    """Without a check Serf's word is all there is, and after our start there is none until it has spoken."""
    status = candidate.node.status if candidate.node is not None else NodeStatus.ALIVE
    if status is NodeStatus.FAILED:
        return Verdict(candidate, None, "failed", "Serf says failed")
    if status is NodeStatus.REMEMBERED:
        there = None if present is None else present.destination.weight
        return Verdict(candidate, there, "checking", "waiting for Serf's word")
    return Verdict(candidate, candidate.destination.weight, "up")


def candidates(
    service: Service,
    offers: Sequence[Node],
    drains: Mapping[DrainKey, Drain],
    known: Mapping[str, Judged] = MappingProxyType({}),
) -> Iterator[tuple[Candidate, Judged | None]]:
    """Operators' destinations first: where a node offers the same name or address, the operator's word counts.

    `known` are operators' destinations as they were judged before, by name, from a service with the same check that drains
    as little: the same destination makes the same candidate, which comes with that verdict.
    """
    for destination in service.destinations.values():
        before = known.get(destination.name)
        if before is not None and before.candidate.destination is destination and destination.drain_s is None:
            yield before.candidate, before
            continue
        spec = destination.check or service.check or NO_CHECK
        drain, by = _drain_of(service, destination, drains)
        path = path_check(service.key, destination, spec)
        yield Candidate(destination, None, _check(destination, spec), drain, by, path=path), None
    coming = [(node, _offered(service, node)) for node in offers if node.name not in service.destinations]
    holders = _holders(service, coming)
    for node, destination in coming:
        yield _from_node(service, node, destination, holders[destination.key], drains), None


def _offered(service: Service, node: Node) -> Destination:
    """The destination that a node's tags ask for."""
    offer = node.offers[service.name]
    return Destination(
        node.name,
        offer.address or node.address,
        offer.port,
        offer.weight,
        offer.method,
        tunnel=offer.tunnel,
        tier=offer.tier,
    )


def _holders(service: Service, coming: Sequence[tuple[Node, Destination]]) -> Mapping[DestinationKey, str]:
    """Whose an address and port is: an operator's destination, or of several nodes the one that has the best claim."""
    nodes: dict[DestinationKey, Node] = {}
    for node, destination in coming:
        other = nodes.get(destination.key)
        if other is None or _claim(service, node) < _claim(service, other):
            nodes[destination.key] = node
    return {key: node.name for key, node in nodes.items()} | {one.key: one.name for one in service.destinations.values()}


def _claim(service: Service, node: Node) -> tuple[bool, bool, bool, float, str]:
    return claim(node, service.name, node.name in service.excluded)


def _from_node(
    service: Service, node: Node, destination: Destination, holder: str, drains: Mapping[DrainKey, Drain]
) -> Candidate:
    offer = node.offers[service.name]
    problem = cannot_forward(service.key, destination)
    if destination.address == service.key.address:
        problem = f"{destination.address} is the VIP itself"
    if holder != node.name:
        problem = f"{destination.address}:{offer.port} is destination {holder} already"
    # A TCP connect says nothing about a UDP or SCTP port, so those have Serf's word only unless a check is given.
    implied = CheckSpec() if service.key.protocol is Protocol.TCP else NO_CHECK
    spec = (service.check or implied) if offer.checked and not problem else NO_CHECK
    drain, by = _leaving(service, node, drains)
    path = path_check(service.key, destination, spec)
    down_s = node.withdrawn.get(service.name) if offer.state is OfferState.DOWN else None
    return Candidate(destination, node, _check(destination, spec), drain, by, problem, path, offer, down_s)


def _check(destination: Destination, spec: CheckSpec) -> CheckTarget | None:
    if spec.kind is CheckKind.NONE:
        return None
    return CheckTarget(destination.address, spec.port or destination.port, spec)


def _drain_of(service: Service, destination: Destination, drains: Mapping[DrainKey, Drain]) -> tuple[Drain | None, str]:
    """The drain of an operator's destination. One without a row of this boot has no connections left to wait for."""
    if destination.drain_s is not None:
        return drains.get((service.name, destination.name), Drain(0.0, 0.0)), "an operator deleted it"
    if service.drain_s is not None:
        return drains.get((service.name, None), Drain(0.0, 0.0)), "its service is being deleted"
    return None, ""


def _leaving(service: Service, node: Node, drains: Mapping[DrainKey, Drain]) -> tuple[Drain | None, str]:
    """The drain of a destination that Serf brought."""
    if node.name in service.excluded:
        return drains.get((service.name, node.name), Drain(0.0, 0.0)), "an operator deleted it"
    if node.status in DRAINS:
        return Drain(node.since_s, DRAIN_LIMIT_S), f"its node is {node.status.value}"
    state = node.offers[service.name].state
    if (dropped_s := node.withdrawn.get(service.name)) is not None and state is not OfferState.DOWN:
        limit_s = 0.0 if state is OfferState.MAINT else DRAIN_LIMIT_S
        return Drain(dropped_s, limit_s), _SAID[state]
    if service.drain_s is not None:
        return drains.get((service.name, None), Drain(0.0, 0.0)), "its service is being deleted"
    return None, ""


def masquerade(key: ServiceKey, candidate: Candidate) -> Masquerade | None:
    """The rule that a destination needs, whether it serves already or not; None when it needs none."""
    destination = candidate.destination
    if candidate.problem or destination.method is not ForwardingMethod.NAT:
        return None
    if candidate.offer is not None and candidate.offer.routes_back:
        return None
    if key.protocol is None or key.address is None or not key.port:
        return None
    return Masquerade(key.protocol, key.address, key.port, destination.address, destination.port)
