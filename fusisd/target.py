"""What the kernel and the host should have, from everything we know: pure functions, one service at a time.

judge.py says of each destination alone which weight it should have. Here are the rules for all of a service together:
backup destinations get weight only while no primary one would have any; when nothing would serve, those that fail keep the
weight they have in the kernel (the last good set), flagged; a new destination by NAT waits for its masquerade rule.
Does not: read a clock (`now_s` is handed in), or know how any of it is made so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pyipvs
from fusisd.admission import Policy
from fusisd.drains import Drain, DrainKey
from fusisd.judge import UNKNOWN, Candidate, Judged, Verdict, candidates, judge, masquerade
from fusisd.limits import kernel_service
from fusisd.membership import Nodes
from fusisd.model import (
    Announce,
    CheckState,
    CheckTarget,
    DestinationKey,
    Health,
    HostSeen,
    HostWanted,
    Intent,
    Masquerade,
    Node,
    Path,
    Service,
    Tier,
)
from fusisd.paths import both
from fusisd.ports import KernelDestination, KernelService, KernelTable
from pyipvs import ForwardingMethod, ServiceKey


class Basis(NamedTuple):
    """What the verdicts of a service were made from; as long as the first three are the same, so are the candidates."""

    service: Service
    offers: tuple[Node, ...]
    drains: Mapping[DrainKey, Drain]
    judged: tuple[Judged, ...]


class Wishes(NamedTuple):
    """What a service wants besides its place in the kernel: probes, its address on the interface, masquerade rules, and
    the ways to its destinations that are checked, now or as soon as there is sense in it."""

    checks: frozenset[CheckTarget] = frozenset()
    vip: str | None = None
    masquerades: frozenset[Masquerade] = frozenset()
    paths: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class TargetService:
    """A service as it should be in the kernel, with the verdict on each of its candidates.

    `over`: it drained and is to leave the kernel. `vip`: the address that must stand on the interface for it. `drain`: that
    of the whole service. `hidden`: a path check's (marks.py). `basis`: what it was built from, to build the next from what
    changed alone.
    """

    name: str
    service: pyipvs.Service
    verdicts: tuple[Verdict, ...]
    warning: str = ""
    over: bool = False
    vip: str | None = None
    drain: Drain | None = None
    basis: Basis | None = field(default=None, compare=False)
    hidden: bool = False

    def destinations(self) -> dict[DestinationKey, Verdict]:
        """The verdicts that put a destination into the kernel, by its key there."""
        return {v.candidate.destination.key: v for v in self.verdicts if v.weight is not None}

    @property
    def wake_s(self) -> float | None:
        """When it must be thought of again though nothing happens."""
        times = [verdict.wake_s for verdict in self.verdicts if verdict.wake_s is not None]
        times += [self.drain.until_s] if self.drain is not None and not self.over else []
        return min(times, default=None)

    @property
    def wishes(self) -> Wishes:
        """What it wants besides its place in the kernel."""
        checks, masquerades, paths = set[CheckTarget](), set[Masquerade](), set[Path]()
        for verdict in self.verdicts:
            check, through, row = _wishes(self.service.key, verdict)
            if check is not None:
                checks.add(check)
            if through is not None and through.path is not None:
                paths.add(through.path)
                if not verdict.path_rests:
                    checks.add(through)
            if row is not None:
                masquerades.add(row)
        return Wishes(frozenset(checks), self.vip, frozenset(masquerades), frozenset(paths))

    def wishes_as(self, before: TargetService) -> bool:
        """Whether its wishes are those of `before`, found by a look at the verdicts that are others: after most changes
        all but one are the same."""
        key, pairs = self.service.key, zip(self.verdicts, before.verdicts, strict=False)
        if len(self.verdicts) != len(before.verdicts) or self.vip != before.vip or key != before.service.key:
            return False
        others = [(now, then) for now, then in pairs if now is not then]
        return all(a.path_rests == b.path_rests and _wishes(key, a) == _wishes(key, b) for a, b in others)


@dataclass(frozen=True, slots=True)
class Target:
    """Everything that should be so. `conflicts` are services of the intent that exist in the kernel and are not ours."""

    services: Mapping[ServiceKey, TargetService] = field(default_factory=dict)
    conflicts: frozenset[str] = frozenset()
    host: HostWanted = field(default_factory=HostWanted)
    checks: frozenset[CheckTarget] = frozenset()


@dataclass(frozen=True, slots=True)
class World:
    """All that a target is made from. `offers` are the nodes that offer a service, by its name (`offered(nodes)`)."""

    intent: Intent = field(default_factory=Intent)
    nodes: Nodes = field(default_factory=dict)
    health: Mapping[CheckTarget, Health] = field(default_factory=dict)
    table: KernelTable = field(default_factory=dict)
    owned: frozenset[ServiceKey] = frozenset()
    host: HostSeen = field(default_factory=HostSeen)
    drains: Mapping[DrainKey, Drain] = field(default_factory=dict)
    offers: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)
    no_path: Mapping[Path, str] = field(default_factory=dict)
    """Paths that cannot be checked, and why: there the check of the server's own address decides alone."""
    policy: Policy = Policy()
    withdrawn: bool = False
    """An operator took this balancer out: no VIP of ours is wanted on the host, and all else stays."""


def offered(nodes: Nodes) -> Mapping[str, tuple[Node, ...]]:
    """The nodes that offer a service, by its name; each list in the order of their names."""
    offers: dict[str, list[Node]] = {}
    for node in sorted(nodes.values(), key=lambda node: node.name):
        for service in node.offers:
            offers.setdefault(service, []).append(node)
    return {service: tuple(found) for service, found in offers.items()}


def build(world: World, now_s: float) -> Target:
    """What should be so, given the world; `targets.Targets` keeps the same up to date change by change."""
    services: dict[ServiceKey, TargetService] = {}
    conflicts = set()
    for service in world.intent.services.values():
        if service.key not in world.owned:
            conflicts.add(service.name)
            continue
        services[service.key] = build_service(service, world, now_s)
    wishes = [service.wishes for service in services.values()]
    foreign = any(key not in world.owned for key in world.table)
    return Target(services, frozenset(conflicts), host_wanted(wishes, foreign, world.withdrawn), checks_wanted(wishes))


def checks_wanted(wishes: Collection[Wishes]) -> frozenset[CheckTarget]:
    """What all services together want probed."""
    return frozenset[CheckTarget]().union(*(wish.checks for wish in wishes))


def host_wanted(wishes: Collection[Wishes], foreign: bool, withdrawn: bool) -> HostWanted:
    """What all services together want of the host; `foreign`: the kernel has services of others, too."""
    vips = frozenset(wish.vip for wish in wishes if wish.vip is not None)
    masquerades = frozenset[Masquerade]().union(*(wish.masquerades for wish in wishes))
    paths = frozenset[Path]().union(*(wish.paths for wish in wishes))
    return HostWanted(vips, masquerades, foreign, paths, withdrawn)


def _wishes(key: ServiceKey, verdict: Verdict) -> tuple[CheckTarget | None, CheckTarget | None, Masquerade | None]:
    """A destination's check, its check through the VIP, and its masquerade rule; none of what has drained."""
    if verdict.state == "drained":
        return (None, None, None)
    candidate = verdict.candidate
    return (candidate.check, candidate.path, masquerade(key, candidate))


def build_service(service: Service, world: World, now_s: float, before: TargetService | None = None) -> TargetService:
    """One service of ours as it should be; `before` is what it was, and spares judging anew what did not change."""
    kernel = world.table.get(service.key)
    basis = _judged(service, world, kernel, before.basis if before is not None else None, now_s)
    verdicts = [row.verdict for row in basis.judged]
    if any(verdict.candidate.destination.method is ForwardingMethod.NAT for verdict in verdicts):
        verdicts = [_after_masquerade(verdict, service.key, kernel, world.host) for verdict in verdicts]
    verdicts, warning = _last_good(_tiered(verdicts), kernel)
    drain = world.drains.get((service.name, None))
    over = _is_over(service, verdicts, drain, now_s)
    vip = _vip(service, verdicts, over)
    same = before is not None and before.basis is not None and before.basis.service is service
    wanted = before.service if before is not None and same else kernel_service(service)
    return TargetService(service.name, wanted, tuple(verdicts), warning, over, vip, drain, basis=basis)


def _judged(service: Service, world: World, kernel: KernelService | None, basis: Basis | None, now_s: float) -> Basis:
    """Every candidate with its verdict."""
    offers, there = world.offers.get(service.name, ()), {} if kernel is None else kernel.destinations

    def judged(candidate: Candidate, before: Judged | None) -> Judged:
        health = heard(candidate, world)
        present = there.get(candidate.destination.key)
        if before is not None and health is before.health and present is before.present and _lasts(before.verdict, now_s):
            return before
        verdict = judge(candidate, service.key.protocol, health, present, now_s)
        verdict = verdict._replace(path_rests=True) if _rests(verdict, world) else verdict
        return Judged(candidate, health, present, verdict)

    if basis is not None and basis.service is service and basis.offers is offers and basis.drains is world.drains:
        return Basis(service, offers, world.drains, tuple([judged(row.candidate, row) for row in basis.judged]))
    rows = [judged(*found) for found in candidates(service, offers, world.drains, _known(service, basis))]
    return Basis(service, offers, world.drains, tuple(rows))


def heard(candidate: Candidate, world: World) -> Health:
    """What its check says, and that through the VIP if there is one."""
    check, through = candidate.check, candidate.path
    if check is None:
        return UNKNOWN
    own = world.health.get(check, UNKNOWN)
    if through is None or through.path in world.no_path:
        return own
    return both(own, world.health.get(through, UNKNOWN), through, check)


def _rests(verdict: Verdict, world: World) -> bool:
    """Its own address does not answer: there is no sense in asking it through the VIP. What has drained is asked nothing."""
    candidate = verdict.candidate
    if candidate.path is None or candidate.check is None or verdict.state == "drained":
        return False
    return world.health.get(candidate.check, UNKNOWN).state is CheckState.DOWN


def _lasts(verdict: Verdict, now_s: float) -> bool:
    """Whether time alone makes no other verdict of it: what drains is thought of anew each time."""
    return verdict.wake_s is None or (verdict.candidate.drain is None and now_s < verdict.wake_s)


def _known(service: Service, basis: Basis | None) -> Mapping[str, Judged]:
    """The operators' destinations as they were judged, when the service differs in nothing that all of them hang on."""
    if basis is None or basis.service.check != service.check or basis.service.key != service.key:
        return {}
    if service.drain_s is not None or basis.service.drain_s is not None:
        return {}
    return {row.candidate.destination.name: row for row in basis.judged if row.candidate.node is None}


def _after_masquerade(verdict: Verdict, key: ServiceKey, kernel: KernelService | None, host: HostSeen) -> Verdict:
    """A new destination by NAT waits for its masquerade rule, or the first connections would find no way back.

    It does not wait when NAT cannot be set up at all: the servers may route back through us.
    """
    row = masquerade(key, verdict.candidate)
    if verdict.weight is None or row is None or _present(kernel, verdict.candidate) is not None:
        return verdict
    if row in host.masquerades or "nat" in host.failures:
        return verdict
    return verdict._replace(weight=None, state="preparing", reason="waiting for its masquerade rule")


def _present(kernel: KernelService | None, candidate: Candidate) -> KernelDestination | None:
    return None if kernel is None else kernel.destinations.get(candidate.destination.key)


def _tiered(verdicts: list[Verdict]) -> list[Verdict]:
    """Backup destinations get weight only while no primary one has any."""
    if all(verdict.candidate.destination.tier is Tier.PRIMARY for verdict in verdicts):
        return verdicts
    primary_serves = any(v.weight for v in verdicts if v.candidate.destination.tier is Tier.PRIMARY)
    return [
        v._replace(weight=0, state="standby", reason="backup: a primary destination serves")
        if primary_serves and v.state == "up" and v.candidate.destination.tier is Tier.BACKUP
        else v
        for v in verdicts
    ]


def _last_good(verdicts: list[Verdict], kernel: KernelService | None) -> tuple[list[Verdict], str]:
    """Fail open: when nothing would serve, whoever fails its check but still has weight in the kernel keeps it."""
    serving = [verdict for verdict in verdicts if verdict.weight]
    if serving:
        backup = all(verdict.candidate.destination.tier is Tier.BACKUP for verdict in serving)
        return verdicts, "only backup destinations serve" if backup else ""
    kept = []
    for verdict in verdicts:
        there = _present(kernel, verdict.candidate)
        present = there.destination.weight if there is not None else 0
        if verdict.state in ("down", "failed") and present:
            reason = f"{verdict.reason}; kept: nothing else serves"
            verdict = verdict._replace(weight=present, reason=reason, wake_s=None)
        kept.append(verdict)
    if not any(verdict.weight for verdict in kept):
        return verdicts, "no destination can serve" if verdicts else ""
    return kept, "every check fails: the last good destinations are kept"


def _is_over(service: Service, verdicts: Iterable[Verdict], drain: Drain | None, now_s: float) -> bool:
    """Whether a service that drains has nothing left to wait for."""
    if service.drain_s is None:
        return False
    return drain is None or now_s >= drain.until_s or all(verdict.weight is None for verdict in verdicts)


def _vip(service: Service, verdicts: Iterable[Verdict], over: bool) -> str | None:
    """The address that must stand on the interface; while anything drains its connections need it."""
    if over or not service.vip_managed:
        return None
    if service.announce is Announce.WHEN_USABLE and not any(v.weight or v.state == "draining" for v in verdicts):
        return None
    return service.key.address
