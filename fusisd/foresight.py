"""What a commit would come to, told before it is made: pure, by the same functions that a turn uses.

The plan of a turn holds back what is not proven yet: a destination waits for its first check or its masquerade rule, a
service that goes waits for its VIP. Told is what all of that leads to: checks that have come to no conclusion pass here.
Does not: change anything, or know what is refused (the committer does).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from fusisd import fold, plan
from fusisd.inbox import Committed
from fusisd.model import CheckState, Health, Intent
from fusisd.ports import Foreseen, Step
from fusisd.target import TargetService, World, build_service
from pyipvs import ServiceKey


def foreseen(world: World, before: Intent, value: Committed, now_s: float, keep_unknown: bool) -> Foreseen:
    """What follows from a commit; `before` is the intent that is on disk, `keep_unknown` as in plan.Bounds."""
    after, touched = fold.committed(world, value)
    keys: set[ServiceKey] = set()
    services: dict[ServiceKey, TargetService] = {}
    for name in sorted(touched):
        keys |= {intent.services[name].key for intent in (world.intent, after.intent) if name in intent.services}
        service = after.intent.services.get(name)
        if service is not None and service.key in after.owned:
            services[service.key] = _settled(build_service(service, after, now_s), after, now_s)
    ops = plan.diff(sorted(keys, key=str), services, after.table, plan.Bounds(after.owned, keep_unknown=keep_unknown))
    steps = [Step(str(op), op.reason, op.service, op.destination) for op in ops]
    return Foreseen(before, after.intent, (*_addresses(world, after, value.let_go), *steps))


def _settled(built: TargetService, world: World, now_s: float) -> TargetService:
    """The service once its checks that are open have passed and its masquerade rules are there."""
    wishes, known = built.wishes, world.health
    passed = {check: Health(CheckState.UP) for check in wishes.checks if _is_open(known.get(check))}
    host = replace(world.host, masquerades=world.host.masquerades | wishes.masquerades)
    service = world.intent.services[built.name]
    return build_service(service, replace(world, health={**known, **passed}, host=host), now_s)


def _is_open(found: Health | None) -> bool:
    return found is None or found.state is CheckState.UNKNOWN


def _addresses(before: World, after: World, let_go: Collection[ServiceKey]) -> Iterator[Step]:
    """VIPs that come and go; one that is on the host already is another's affair, and that of a service that is let go
    stays where it is."""
    old, new = (_vips(world.intent) for world in (before, after))
    stay = {key.address for key in let_go if key.address is not None}
    yield from (Step(f"add address {vip}", "a service has it") for vip in sorted(new - old - before.host.external))
    yield from (Step(f"remove address {vip}", "no service has it any more") for vip in sorted(old - new - stay))


def _vips(intent: Intent) -> set[str]:
    return {one.key.address for one in intent.services.values() if one.vip_managed and one.key.address is not None}
