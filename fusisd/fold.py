"""Values into the world: what is told or observed enters as it is, and it is said which services that concerns. Pure.

Does not: decide what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from fusisd import membership, target, targets
from fusisd.admission import Policy
from fusisd.inbox import Committed
from fusisd.model import CheckTarget, Health, HostSeen, HostWanted
from fusisd.ports import KernelService
from fusisd.target import TargetService, World
from pyipvs import ServiceKey

Folded = tuple[World, set[str]]
"""The world after, and the names of the services to think of again."""


def committed(world: World, value: Committed) -> Folded:
    """Intent, ownership and drains as they are on disk now."""
    touched = targets.touched_by_intent(world.intent, value.intent)
    drains = world.drains if value.drains is None or value.drains == world.drains else value.drains
    if drains is not world.drains:  # a drain that is asked for again has another deadline, under the same key
        touched |= {service for (service, _), _ in drains.items() ^ world.drains.items()}
    same = value.claimed <= world.owned and not value.let_go
    owned = world.owned if same else (world.owned | value.claimed) - value.let_go
    withdrawn = world.withdrawn if value.withdrawn is None else value.withdrawn
    return replace(world, intent=value.intent, owned=owned, drains=drains, withdrawn=withdrawn), touched


def members(
    world: World, seen: Iterable[membership.Member], now_s: float, serving: Callable[[], Collection[str]] = frozenset
) -> Folded:
    """Serf's member list; `serving` names the nodes whose destinations get connections."""
    nodes = membership.update(world.nodes, seen, now_s, world.policy, serving)
    touched = targets.touched_by_nodes(world.nodes, nodes)
    if not touched and nodes == world.nodes:
        same = all(world.nodes[name] is node for name, node in nodes.items())
        return (world if same else replace(world, nodes=nodes)), touched  # the same, and it is known what they were told
    return replace(world, nodes=nodes, offers=target.offered(nodes)), touched


def policy(world: World, wanted: Policy) -> Folded:
    """Who may join from now on: what nodes tell is read anew with the next list, in 10 s at the latest."""
    return replace(world, policy=wanted, nodes={name: replace(node, told=None) for name, node in world.nodes.items()}), set()


def health(world: World, found: Mapping[CheckTarget, Health], watchers: set[str]) -> Folded:
    """What checks came to; `watchers` are the services that want them."""
    return replace(world, health={**world.health, **found}), watchers


def told_host(world: World, wanted: HostWanted) -> World:
    """The host has another wish to work off. A masquerade rule that it leaves out counts as gone from here on, for the
    host may take it away at any moment: a server that comes back meanwhile waits for it anew."""
    return replace(world, host=replace(_wanted_rules(world.host, wanted), settled=False))


def host(world: World, seen: HostSeen, wanted: HostWanted, services: Mapping[ServiceKey, TargetService]) -> Folded:
    """What the host has, of what it was told last to have."""
    seen = _wanted_rules(seen, wanted)
    return replace(world, host=seen), targets.touched_by_host(world.host, seen, services)


def _wanted_rules(seen: HostSeen, wanted: HostWanted) -> HostSeen:
    return replace(seen, masquerades=seen.masquerades & wanted.masquerades)


def kernel(world: World, seen: Mapping[ServiceKey, KernelService | None]) -> Folded:
    """Services as they were read from the kernel, None for one that is not there."""
    if not seen:
        return world, set()
    table: dict[ServiceKey, KernelService] = dict(world.table)
    for key, service in seen.items():
        if service is None:
            table.pop(key, None)
        else:
            table[key] = service
    return replace(world, table=table), targets.touched_by_keys(seen, world.intent.services.values())
