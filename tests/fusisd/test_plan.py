"""From target and table to operations: ordered, only on what is ours, and done when done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusisd import plan, target
from fusisd.model import HostWanted, Intent
from fusisd.plan import Verb
from fusisd.ports import KernelDestination, KernelService, KernelTable
from fusisd.target import Target, World
from pyipvs import Destination, ForwardingMethod, Service, ServiceKey
from tests.fusisd.world import ROUTE, VIP, WEB_KEY, at, web

FOREIGN = ServiceKey.parse("tcp/10.9.9.9:80")


def wanted(*numbers: int, weight: int = 1) -> Target:
    destinations = {f"d{n}": at(n, weight=weight) for n in numbers}
    return target.build(World(Intent({"web": web(destinations=destinations)}), owned=frozenset({WEB_KEY})), 0.0)


def table(*rows: tuple[int, int], key: ServiceKey = WEB_KEY, scheduler: str = "rr") -> dict[ServiceKey, KernelService]:
    destinations = [Destination(f"10.0.0.{10 + n}", 80, weight, ROUTE) for n, weight in rows]
    return {key: KernelService(Service(key, scheduler), {d.key: KernelDestination(d) for d in destinations})}


def verbs(ops: tuple[plan.Op, ...]) -> list[Verb]:
    return [op.verb for op in ops]


OURS = frozenset({WEB_KEY})


def test_an_empty_kernel_gets_service_then_destinations() -> None:
    ops = plan.diff(wanted(1, 2), {}, OURS)
    assert verbs(ops) == [Verb.ADD_SERVICE, Verb.ADD_DESTINATION, Verb.ADD_DESTINATION]


def test_capacity_is_added_before_it_is_taken() -> None:
    ops = plan.diff(wanted(2, 3, weight=5), table((1, 1), (2, 1)), OURS)
    assert verbs(ops) == [Verb.ADD_DESTINATION, Verb.UPDATE_DESTINATION, Verb.DELETE_DESTINATION]


def test_what_is_equal_needs_nothing() -> None:
    assert plan.diff(wanted(1), table((1, 1)), OURS) == ()


def test_a_changed_scheduler_is_an_update() -> None:
    assert verbs(plan.diff(wanted(1), table((1, 1), scheduler="wrr"), OURS)) == [Verb.UPDATE_SERVICE]


def test_foreign_services_are_never_touched() -> None:
    assert plan.diff(Target(), table((1, 1), key=FOREIGN), frozenset()) == ()
    assert plan.diff(wanted(), {**table(key=FOREIGN), **table()}, OURS) == ()


def test_a_destination_that_nobody_asked_for_goes_unless_serf_has_not_spoken_yet() -> None:
    (op,) = plan.diff(wanted(1), table((1, 1), (9, 1)), OURS)
    assert (op.verb, op.reason) == (Verb.DELETE_DESTINATION, "nobody asked for it")
    assert plan.diff(wanted(1), table((1, 1), (9, 1)), OURS, keep_unknown=True) == ()


def test_a_service_goes_after_its_vip_unless_another_service_has_the_vip() -> None:
    assert plan.diff(Target(), table(), OURS, held_vips=frozenset({VIP})) == ()
    assert verbs(plan.diff(Target(), table(), OURS)) == [Verb.DELETE_SERVICE]
    shared = Target(host=HostWanted(frozenset({VIP})))
    assert verbs(plan.diff(shared, table(), OURS, held_vips=frozenset({VIP}))) == [Verb.DELETE_SERVICE]


def test_an_operation_reads_like_a_sentence() -> None:
    *_, op = plan.diff(wanted(1), {}, OURS)
    assert str(op) == "add destination tcp/10.0.0.1:80 10.0.0.11:80 weight 1 route"
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
    now = before
    for op in plan.diff(built, before, owned):
        assert op.key in owned
        now = plan.after(now, op)
    assert plan.diff(built, now, owned) == ()
    assert {key: now.get(key) for key in others} == {key: before.get(key) for key in others}
