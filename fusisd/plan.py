"""The difference between what should be in IPVS and what is, as an ordered list of operations with reasons: pure.

Order: what adds capacity comes before what takes it away, so that no moment has fewer places to go than both the old and
the new state. Only keys that are ours are ever touched. A service that must go waits until its VIP has left the host:
a client then meets silence and its retry another balancer, not a reset.
Applying the operations and asking again gives an empty list (tests/fusisd/test_plan.py holds it to that).
Does not: talk to a kernel; `after` says what the table is once an operation succeeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import pyipvs
from fusisd.model import DestinationKey
from fusisd.ports import KernelDestination, KernelService, KernelTable
from fusisd.target import Target, TargetService
from pyipvs import ServiceKey


class Verb(Enum):
    """What an operation does, in the order in which they are applied."""

    ADD_SERVICE = "add service"
    UPDATE_SERVICE = "update service"
    ADD_DESTINATION = "add destination"
    UPDATE_DESTINATION = "update destination"
    DELETE_DESTINATION = "delete destination"
    DELETE_SERVICE = "delete service"


_ORDER = {verb: position for position, verb in enumerate(Verb)}


@dataclass(frozen=True, slots=True)
class Op:
    """One change to the kernel's table and why it is made."""

    verb: Verb
    key: ServiceKey
    reason: str = ""
    service: pyipvs.Service | None = None
    destination: pyipvs.Destination | None = None

    @property
    def target(self) -> tuple[Verb, ServiceKey, DestinationKey | None]:
        """What tells a repeated try of the same operation from another operation."""
        at = None if self.destination is None else (self.destination.address, self.destination.port)
        return (self.verb, self.key, at)

    def __str__(self) -> str:
        text = f"{self.verb.value} {self.key}"
        if self.service is not None:
            text += f" scheduler {self.service.scheduler}"
        if (destination := self.destination) is not None:
            where = f"[{destination.address}]" if ":" in destination.address else destination.address
            text += f" {where}:{destination.port}"
            if self.verb is not Verb.DELETE_DESTINATION:
                text += f" weight {destination.weight} {destination.method}"
        return text


def diff(
    target: Target,
    table: KernelTable,
    owned: frozenset[ServiceKey],
    held_vips: frozenset[str] = frozenset(),
    keep_unknown: bool = False,
) -> tuple[Op, ...]:
    """The operations that make our part of `table` equal to `target`, in order.

    `held_vips` are our addresses that are on the host still: a service with one of them, wanted by no other service, is
    not deleted yet. With `keep_unknown` destinations that nobody asked for stay: after our start, until Serf has told
    who is there.
    """
    ops: list[Op] = []
    for key, wanted in target.services.items():
        ops.extend(_service_ops(key, wanted, table.get(key), keep_unknown))
    for key in owned:
        if key in table and key not in target.services and not _still_announced(key, target, held_vips):
            ops.append(Op(Verb.DELETE_SERVICE, key, "no longer wanted"))
    return tuple(sorted(ops, key=lambda op: _ORDER[op.verb]))


def after(table: KernelTable, op: Op) -> KernelTable:
    """The table once `op` was applied to it."""
    tables: dict[ServiceKey, KernelService] = dict(table)
    if op.verb is Verb.DELETE_SERVICE:
        tables.pop(op.key, None)
        return tables
    if op.service is not None:
        known = table.get(op.key)
        tables[op.key] = replace(known, service=op.service) if known else KernelService(op.service)
        return tables
    assert op.destination is not None  # every other verb carries one
    destinations = dict(table[op.key].destinations)
    at = (op.destination.address, op.destination.port)
    if op.verb is Verb.DELETE_DESTINATION:
        destinations.pop(at, None)
    else:
        seen = destinations.get(at) or KernelDestination(op.destination)
        destinations[at] = replace(seen, destination=op.destination)
    tables[op.key] = replace(table[op.key], destinations=destinations)
    return tables


def _still_announced(key: ServiceKey, target: Target, held_vips: frozenset[str]) -> bool:
    return key.mark is None and key.address in held_vips and key.address not in target.host.vips


def _service_ops(
    key: ServiceKey, wanted: TargetService, seen: KernelService | None, keep_unknown: bool
) -> Iterator[Op]:
    if seen is None:
        yield Op(Verb.ADD_SERVICE, key, f"service {wanted.name} is wanted", service=wanted.service)
        seen = KernelService(wanted.service)
    elif seen.service != wanted.service:
        yield Op(Verb.UPDATE_SERVICE, key, f"the kernel has {seen.service}", service=wanted.service)
    verdicts = wanted.destinations()
    for at, verdict in verdicts.items():
        there, destination = seen.destinations.get(at), verdict.as_kernel()
        why = f"{verdict.candidate.destination.name} {verdict.state}" + (
            f": {verdict.reason}" if verdict.reason else ""
        )
        if there is None:
            yield Op(Verb.ADD_DESTINATION, key, why, destination=destination)
        elif there.destination != destination:
            yield Op(Verb.UPDATE_DESTINATION, key, why, destination=destination)
    reasons = {
        v.candidate.destination.key: f"{v.candidate.destination.name} {v.state}: {v.reason}" for v in wanted.verdicts
    }
    for at, there in seen.destinations.items():
        if at not in verdicts and (at in reasons or not keep_unknown):
            why = reasons.get(at, "nobody asked for it")
            yield Op(Verb.DELETE_DESTINATION, key, why, destination=there.destination)
