"""The difference between what should be in IPVS and what is, as an ordered list of operations with reasons: pure.

Order: what adds capacity comes before what takes it away, so that no moment has fewer places to go than both the old and
the new state. Only keys that are ours are ever touched. A service that must go waits until its VIP has left the host:
a client then meets silence and its retry another balancer, not a reset.
Applying the operations and asking again gives an empty list (tests/fusisd/test_plan.py holds it to that).
Does not: talk to a kernel; `after` says what the table is once operations succeeded.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import pyipvs
from fusisd.judge import Verdict
from fusisd.model import DestinationKey
from fusisd.ports import KernelDestination, KernelService, KernelTable
from fusisd.target import TargetService
from pyipvs import Change, ForwardingMethod, ServiceKey

_IPIP = pyipvs.Tunnel()
DestinationChange = pyipvs.AddDestination | pyipvs.UpdateDestination | pyipvs.DeleteDestination
OpKey = tuple[type[Change], ServiceKey, DestinationKey | None]
_ORDER: Mapping[type[Change], int] = {
    kind: position
    for position, kind in enumerate(
        (
            pyipvs.AddService,
            pyipvs.UpdateService,
            pyipvs.AddDestination,
            pyipvs.UpdateDestination,
            pyipvs.DeleteDestination,
            pyipvs.DeleteService,
        )
    )
}


class Op(NamedTuple):
    """One change to the kernel's table, why it is made, and the names of what it is of ("" where it has none)."""

    change: Change
    reason: str = ""
    service: str = ""
    destination: str = ""

    @property
    def key(self) -> OpKey:
        """What tells a repeated try of the same operation from another operation."""
        return key_of(self.change)

    def __str__(self) -> str:
        return str(self.change)


def key_of(change: Change) -> OpKey:
    """What tells a repeated try of the same change from another."""
    destination = getattr(change, "destination", None)
    return (type(change), change.key, None if destination is None else destination.key)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What limits a plan: the keys that are ours, our addresses that are on the host still (a service with one of them,
    wanted by no other, is not deleted yet), those wanted there, and, after our start until Serf has told who is there,
    `keep_unknown`: destinations that nobody asked for stay."""

    owned: frozenset[ServiceKey]
    held_vips: frozenset[str] = frozenset()
    wanted_vips: frozenset[str] = frozenset()
    keep_unknown: bool = False


def diff(
    keys: Iterable[ServiceKey], services: Mapping[ServiceKey, TargetService], table: KernelTable, bounds: Bounds
) -> tuple[Op, ...]:
    """The operations that make `table` equal to `services` under these keys, in order; none for a key that is not ours."""
    ops: list[Op] = []
    for key in keys:
        if key not in bounds.owned:
            continue
        wanted = services.get(key)
        if wanted is not None and not wanted.over:
            ops.extend(_service_ops(key, wanted, table.get(key), bounds.keep_unknown and not wanted.hidden))
        elif key in table and not _still_announced(key, bounds):
            ops.append(Op(pyipvs.DeleteService(key), "no longer wanted"))
    return tuple(sorted(ops, key=lambda op: _ORDER[type(op.change)]))


def after(table: KernelTable, changes: Iterable[Change]) -> KernelTable:
    """The table once these changes were applied to it."""
    tables: dict[ServiceKey, KernelService] = dict(table)
    for key, group in groupby(changes, operator.attrgetter("key")):
        known = tables.get(key)
        rows = {} if known is None else dict(known.destinations)
        service = None if known is None else known.service
        for change in group:
            if isinstance(change, pyipvs.AddService | pyipvs.UpdateService):
                service = change.service
            elif isinstance(change, pyipvs.DeleteService):
                service, rows = None, {}
            else:
                _change_destination(rows, change)
        if service is not None:
            tables[key] = KernelService(service, rows)  # in its old place, so that `mappings.changed` finds it alone
        else:
            tables.pop(key, None)
    return tables


def _change_destination(rows: dict[DestinationKey, KernelDestination], change: DestinationChange) -> None:
    destination = change.destination
    key = destination.key
    if isinstance(change, pyipvs.DeleteDestination):
        rows.pop(key, None)
    else:
        seen = rows.get(key)
        rows[key] = KernelDestination(destination) if seen is None else seen._replace(destination=destination)


def _still_announced(key: ServiceKey, bounds: Bounds) -> bool:
    return key.mark is None and key.address in bounds.held_vips and key.address not in bounds.wanted_vips


def _service_ops(key: ServiceKey, wanted: TargetService, seen: KernelService | None, keep_unknown: bool) -> Iterator[Op]:
    if seen is None:
        yield Op(pyipvs.AddService(wanted.service), f"service {wanted.name} is wanted", wanted.name)
        seen = KernelService(wanted.service)
    elif seen.service != wanted.service:
        yield Op(pyipvs.UpdateService(wanted.service), f"the kernel has {_settings(seen.service)}", wanted.name)
    verdicts = wanted.destinations()
    for at, verdict in verdicts.items():
        there = seen.destinations.get(at)
        if there is None:
            yield Op(pyipvs.AddDestination(key, verdict.as_kernel()), _why(verdict), wanted.name, _name(verdict))
        elif not _is_so(there.destination, verdict):
            yield Op(pyipvs.UpdateDestination(key, verdict.as_kernel()), _why(verdict), wanted.name, _name(verdict))
    if seen.destinations.keys() == verdicts.keys():
        return
    others = {v.candidate.destination.key: v for v in wanted.verdicts}
    for at, there in seen.destinations.items():
        if at in verdicts or (at not in others and keep_unknown):
            continue
        reason, name = (_why(others[at]), _name(others[at])) if at in others else ("nobody asked for it", "")
        yield Op(pyipvs.DeleteDestination(key, there.destination), reason, wanted.name, name)


def _is_so(there: pyipvs.Destination, verdict: Verdict) -> bool:
    """Whether the kernel's destination is as the verdict wants it, without making a value of pyipvs' own for each."""
    wanted = verdict.candidate.destination
    tunnel = wanted.tunnel or (_IPIP if wanted.method is ForwardingMethod.TUNNEL else None)
    return (
        there.weight == (verdict.weight or 0)
        and there.method is wanted.method
        and there.tunnel == tunnel
        and there.upper_threshold == wanted.upper_threshold
        and there.lower_threshold == wanted.lower_threshold
    )


def _settings(service: pyipvs.Service) -> str:
    return f"{service.scheduler} persistence_s={service.persistence_s} flags={int(service.flags):#x}"


def _why(verdict: Verdict) -> str:
    return f"{_name(verdict)} {verdict.state}" + (f": {verdict.reason}" if verdict.reason else "")


def _name(verdict: Verdict) -> str:
    return verdict.candidate.destination.name
