"""From target and table to operations: ordered, only on what is ours, and done when done."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fusisd import plan, target
from fusisd.model import Intent
from fusisd.plan import Bounds
from fusisd.ports import KernelDestination, KernelService, KernelTable
from fusisd.target import Target, World
from pyipvs import (
    AddDestination,
    AddService,
    Change,
    DeleteDestination,
    DeleteService,
    Destination,
    ForwardingMethod,
    Service,
    ServiceKey,
    UpdateDestination,
    UpdateService,
)
from tests.fusisd.world import ROUTE, VIP, WEB_KEY, at, web

FOREIGN = ServiceKey.parse("tcp/10.9.9.9:80")


def wanted(*numbers: int, weight: int = 1) -> Target:
    destinations = {f"d{n}": at(n, weight=weight) for n in numbers}
    return target.build(World(Intent({"web": web(destinations=destinations)}), owned=frozenset({WEB_KEY})), 0.0)


def table(*rows: tuple[int, int], key: ServiceKey = WEB_KEY, scheduler: str = "rr") -> dict[ServiceKey, KernelService]:
    destinations = [Destination(f"10.0.0.{10 + n}", 80, weight, ROUTE) for n, weight in rows]
    return {key: KernelService(Service(key, scheduler), {d.key: KernelDestination(d) for d in destinations})}


def verbs(ops: tuple[plan.Op, ...]) -> list[type[Change]]:
    return [type(op.change) for op in ops]


def diff(target: Target, table: KernelTable, bounds: Bounds) -> tuple[plan.Op, ...]:
    return plan.diff({*target.services, *table}, target.services, table, bounds)


OURS = Bounds(frozenset({WEB_KEY}))


def test_an_empty_kernel_gets_service_then_destinations() -> None:
    ops = diff(wanted(1, 2), {}, OURS)
    assert verbs(ops) == [AddService, AddDestination, AddDestination]


def test_capacity_is_added_before_it_is_taken() -> None:
    ops = diff(wanted(2, 3, weight=5), table((1, 1), (2, 1)), OURS)
    assert verbs(ops) == [AddDestination, UpdateDestination, DeleteDestination]


def test_what_is_equal_needs_nothing() -> None:
    assert diff(wanted(1), table((1, 1)), OURS) == ()


def test_a_changed_scheduler_is_an_update() -> None:
    assert verbs(diff(wanted(1), table((1, 1), scheduler="wrr"), OURS)) == [UpdateService]


def test_foreign_services_are_never_touched() -> None:
    assert diff(Target(), table((1, 1), key=FOREIGN), Bounds(frozenset())) == ()
    assert diff(wanted(), {**table(key=FOREIGN), **table()}, OURS) == ()


def test_a_destination_that_nobody_asked_for_goes_unless_serf_has_not_spoken_yet() -> None:
    (op,) = diff(wanted(1), table((1, 1), (9, 1)), OURS)
    assert (type(op.change), op.reason) == (DeleteDestination, "nobody asked for it")
    assert diff(wanted(1), table((1, 1), (9, 1)), replace(OURS, keep_unknown=True)) == ()


def test_a_service_goes_after_its_vip_unless_another_service_has_the_vip() -> None:
    assert diff(Target(), table(), replace(OURS, held_vips=frozenset({VIP}))) == ()
    assert verbs(diff(Target(), table(), OURS)) == [DeleteService]
    shared = replace(OURS, held_vips=frozenset({VIP}), wanted_vips=frozenset({VIP}))
    assert verbs(diff(Target(), table(), shared)) == [DeleteService]


def test_an_operation_reads_like_a_sentence() -> None:
    *_, op = diff(wanted(1), {}, OURS)
    assert str(op) == "add destination 10.0.0.11:80 to tcp/10.0.0.1:80 (route, weight 1)"
    assert op.reason == "d1 up"


destinations = st.builds(
    Destination,
    st.sampled_from([f"10.0.0.{n}" for n in range(11, 16)]),
    st.just(80),
    st.integers(0, 5),
    st.sampled_from([ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL, ForwardingMethod.NAT]),
)
KEYS = [ServiceKey.parse(text) for text in ("tcp/10.0.0.1:80", "tcp/10.0.0.2:80", "udp/10.0.0.1:80")]
services = st.builds(
    lambda key, scheduler, rows: (key, KernelService(Service(key, scheduler), {r.key: KernelDestination(r) for r in rows})),
    st.sampled_from(KEYS),
    st.sampled_from(["rr", "wlc"]),
    st.lists(destinations, max_size=5),
)
tables = st.lists(services, max_size=3).map(dict)
numbers = st.sets(st.integers(1, 5), max_size=4)


@given(tables, st.dictionaries(st.sampled_from(KEYS), numbers), st.sets(st.sampled_from(KEYS)))
def test_applying_a_plan_and_asking_again_gives_nothing(
    before: KernelTable, wishes: dict[ServiceKey, set[int]], others: set[ServiceKey]
) -> None:
    """The invariant: after the operations our part equals the target, and what is not ours is untouched."""
    intent = Intent({
        f"s{i}": web(f"s{i}", str(key), destinations={f"d{n}": at(n) for n in chosen})
        for i, (key, chosen) in enumerate(wishes.items())
    })  # fmt: skip
    owned = frozenset(KEYS) - others
    built = target.build(World(intent, table=before, owned=owned), 0.0)
    ops = diff(built, before, Bounds(owned))
    assert {op.change.key for op in ops} <= owned
    now = plan.after(before, [op.change for op in ops])
    assert diff(built, now, Bounds(owned)) == ()
    assert {key: now.get(key) for key in others} == {key: before.get(key) for key in others}
