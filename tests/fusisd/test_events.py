"""Events: the ring and its cursors; each sort of thing that happens becomes one, with its cause, where it is known."""

from __future__ import annotations

import errno
import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusisd import logs
from fusisd.commands import AddDestination, AddService, EndDrain
from fusisd.errors import Invalid, StoreError, Unavailable
from fusisd.events import Event, Ring
from fusisd.inbox import Beginning, MembersSeen, ProbeChanged, SerfState
from fusisd.journal import OPS_AT_ONCE, Journal
from fusisd.model import HostSeen, Intent
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from tests.fusisd.test_committer import Whole, whole  # noqa: F401
from tests.fusisd.test_control import INTENT, OURS, serving
from tests.fusisd.web_helpers import TOKEN, MemoryCore, call
from tests.fusisd.world import VIP, Clock, Daemon, alone, at, down, member, web


def fill(ring: Ring, *services: str) -> Ring:
    for service in services:
        number = ring.next_number
        ring.add(Event(ring.epoch, number, 1e9 + number, number, "op", f"text {number}", service=service))
    return ring


def numbers(events: Any) -> list[int]:
    return [event.number for event in events]


# The ring.


def test_an_event_has_an_id_and_the_time_of_both_clocks() -> None:
    (event,) = fill(Ring("5e"), "web").page(None, 9).events
    assert (event.id, event.time, event.at_s) == ("5e-1", "2001-09-09T01:46:41.000Z", 1.0)


def test_a_cursor_reads_everything_once_in_pages() -> None:
    ring = fill(Ring("a"), *"xyxyx")
    first = ring.page("a-0", 2)
    assert (numbers(first.events), first.next, first.missed) == ([1, 2], "a-2", False)
    rest = ring.page(first.next, 9)
    assert (numbers(rest.events), rest.next, rest.missed) == ([3, 4, 5], "a-5", False)
    assert ring.page(rest.next, 9).next == rest.next
    assert numbers(fill(ring, "z").page(rest.next, 9).events) == [6]
    assert (numbers(ring.page(None, 2).events), ring.page(None, 2).next) == ([5, 6], "a-6")
    assert Ring("a").page(None, 2).next == "a-0"


def test_of_one_service_the_cursor_moves_past_the_others_too() -> None:
    page = fill(Ring("a"), *"xyxyy").page("a-0", 9, "x")
    assert (numbers(page.events), page.next) == ([1, 3], "a-5")
    assert numbers(fill(Ring("a"), *"xyxyy").page(None, 1, "x").events) == [3]


@pytest.mark.parametrize("cursor", ["a-0", "a-4", "b-7", "a-99"])
def test_who_reads_too_late_or_of_another_run_is_told_that_something_is_missing(cursor: str) -> None:
    page = fill(Ring("a", 4), *"xxxxxxxxx").page(cursor, 9)
    assert (numbers(page.events), page.missed, page.next) == ([6, 7, 8, 9], True, "a-9")


def test_the_oldest_that_is_kept_is_no_loss() -> None:
    assert fill(Ring("a", 4), *"xxxxxxxxx").page("a-5", 9).missed is False


@pytest.mark.parametrize("cursor", ["", "a", "a-", "-1", "a-x", "a-1-", "a--1", "a-²", "a-" + "9" * 99])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid) as caught:
        Ring("a").page(cursor, 1)
    assert caught.value.field == "after"


@given(st.lists(st.sampled_from("xyz"), max_size=30), st.integers(1, 9), st.integers(0, 30), st.integers(1, 5))
def test_pages_give_what_a_plain_list_would(services: list[str], size: int, begin: int, limit: int) -> None:
    ring = fill(Ring("a", size), *services)
    kept = list(range(max(1, len(services) - size + 1), len(services) + 1))
    begin = min(begin, len(services))
    cursor, found, missed = f"a-{begin}", list[int](), False
    while (page := ring.page(cursor, limit, "x")).next != cursor:
        assert len(page.events) <= limit
        found, cursor, missed = found + numbers(page.events), page.next, missed or page.missed
    assert found == [number for number in kept if number > begin and services[number - 1] == "x"]
    assert missed is (bool(kept) and begin + 1 < kept[0])


def test_another_thread_may_read_while_events_are_added() -> None:
    ring, over, wrong = Ring("a", 8), threading.Event(), list[Any]()

    def read() -> None:
        cursor, last = "a-0", 0
        while not over.is_set():
            page = ring.page(cursor, 5)
            found = numbers(page.events)
            if found != sorted(set(found)) or (found and found[0] <= last):
                wrong.append((last, found))
            last, cursor = (found or [last])[-1], page.next

    reader = threading.Thread(target=read)
    reader.start()
    fill(ring, *["x"] * 20_000)
    over.set()
    reader.join(30)
    assert (wrong, reader.is_alive()) == ([], False)


# What becomes one.


def told(daemon: Daemon, kind: str) -> list[tuple[str, ...]]:
    """Place, text and cause of the events of a kind."""
    events = daemon.control.journal.ring.page(None, 1000).events
    return [
        ("/".join(filter(None, (e.service, e.destination, e.node))), e.text, e.cause) for e in events if e.kind == kind
    ]


def test_nodes_checks_and_what_is_done_about_them() -> None:
    daemon = serving(1, 2)
    daemon.turn(ProbeChanged(alone(1), down(daemon.clock())), MembersSeen((member(1, "failed"), member(2))))
    serf = "Serf's list of members"
    assert told(daemon, "node") == [
        ("rs1", "alive at 10.0.0.11", serf),
        ("rs2", "alive at 10.0.0.12", serf),
        ("rs1", "failed at 10.0.0.11, was alive", serf),
    ]
    text = "tcp check of 10.0.0.11:80 says down, was up"
    assert told(daemon, "health")[-1] == ("web/rs1", text, "connection refused")
    place, text, cause = told(daemon, "op")[-1]
    assert (place, "10.0.0.11" in text, cause) == ("web/rs1", True, "rs1 down: connection refused; Serf says failed too")
    before = len(told(daemon, "health"))
    daemon.turn(ProbeChanged(alone(1), down(daemon.clock())))
    assert len(told(daemon, "health")) == before, "it says the same as before"


def test_tags_that_mean_nothing_are_told_once() -> None:
    daemon = Daemon(Beginning(INTENT, OURS))
    for _ in range(3):
        daemon.turn(MembersSeen((member(1, tags={"role": "agent", "s:web": "x"}),)))
    assert [(place, cause) for place, _, cause in told(daemon, "node")][1:] == [("rs1", "its tags")]


def test_drift_refusals_and_serf_s_state() -> None:
    daemon = serving(1, 2)
    daemon.ipvs.update_destination("tcp/10.0.0.1:80", "10.0.0.11:80", method="route", weight=9)
    daemon.clock.now_s += 2
    daemon.turn()
    ((place, _, cause),) = told(daemon, "drift")
    assert (place, cause) == ("web", "somebody else changed it")
    daemon.fake.fail_next(errno.ENOMEM)
    daemon.turn(ProbeChanged(alone(1), down(daemon.clock())), MembersSeen((member(1, "failed"), member(2))))
    ((place, _, cause),) = told(daemon, "refused")
    assert (place, "memory" in cause) == ("web/rs1", True)
    for problem in ("", "gone", "gone", ""):
        daemon.turn(SerfState(problem))
    assert [row[1:] for row in told(daemon, "serf")] == [("connected", ""), ("not connected", "gone"), ("connected", "")]


def test_what_becomes_of_the_host() -> None:
    daemon = serving(1)
    failing = {"nat": "no iptables"}
    daemon.control.enter(HostSeen(frozenset({VIP}), failures=failing, taken=frozenset({VIP}), counts={"nat_restored": 1}))
    daemon.control.enter(HostSeen(frozenset(), counts={"nat_restored": 1}))
    daemon.control.turn()
    assert told(daemon, "vip") == [
        ("", "10.0.0.1 is on the interface", "a service has it"),
        ("", "10.0.0.1 is put back", "somebody took it away from the interface"),
        ("", "10.0.0.1 left the interface", "no service wants it there"),
    ]
    assert [row[1:] for row in told(daemon, "host")] == [
        ("nat cannot be made so", "no iptables"),
        ("nat is as it should be again", ""),
    ]
    assert len(told(daemon, "nat")) == 1


def test_of_many_operations_the_first_are_told_and_then_their_number() -> None:
    service = web(destinations={f"d{number}": at(number) for number in range(OPS_AT_ONCE + 20)})
    daemon = Daemon(Beginning(Intent({"web": service}, 1), OURS, serf_expected=False))
    rows = told(daemon, "op")
    assert (len(rows), rows[-1][1:]) == (OPS_AT_ONCE + 1, ("and 21 more operations", "they came together"))


def test_a_command_is_told_with_who_gave_it(whole: Whole) -> None:  # noqa: F811
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "unix")
        await w.committer.submit(AddDestination("web", at(1)), "tcp 10.0.0.9 token=12345678")
        await w.committer.submit(EndDrain("web", "d1"), "fusisd")
        events = [event for event in w.bridge.events.page(None, 99).events if event.kind == "accepted"]
        assert [(e.service, e.destination, e.text, e.cause, e.who) for e in events] == [
            ("web", "", "AddService revision=1", "", "unix"),
            ("web", "d1", "AddDestination revision=2", "", "tcp 10.0.0.9 token=12345678"),
            ("web", "d1", "EndDrain revision=2", "its drain is over", "fusisd"),
        ]
        w.store_error = StoreError("the disk is full")
        with pytest.raises(Unavailable):
            await w.committer.submit(AddDestination("web", at(2)), "unix")
        (event,) = (event for event in w.bridge.events.page(None, 99).events if event.kind == "store")
        assert (event.cause, event.level) == ("the disk is full", logging.ERROR)

    whole.run(scenario)


def test_a_line_of_the_log_is_made_of_the_event(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(Clock(), epoch="a")
    with caplog.at_level(logging.INFO):
        journal.tell("op", 'a "b"', service="web", cause="it = so\nand \x1b[1m", who="unix")
    assert [logs.TextLines(to_journal=True).format(record) for record in caplog.records] == [
        '<6>op service=web who=unix text="a \\"b\\"" cause="it = so\\nand \\u001b[1m"'
    ]


# The route.


@pytest.fixture
def core() -> MemoryCore:
    core = MemoryCore()
    fill(core.events, "web", "mail", "web")
    return core


@pytest.fixture
def app(core: MemoryCore) -> Any:
    return make_app(core, WritePolicy.for_token(TOKEN))


def test_the_route_pages_by_cursor(app: Any) -> None:
    page = call(app, "GET", "/v1/events", QUERY_STRING="after=7f-0&limit=2").json
    assert page["events"][0] == {
        "id": "7f-1",
        "time": "2001-09-09T01:46:41.000Z",
        "monotonic_s": 1,
        "kind": "op",
        "service": "web",
        "destination": None,
        "node": None,
        "text": "text 1",
        "cause": None,
        "who": None,
    }
    assert (len(page["events"]), page["next"], page["missed"]) == (2, "7f-2", False)
    assert [e["id"] for e in call(app, "GET", "/v1/events", QUERY_STRING="service=web").json["events"]] == ["7f-1", "7f-3"]
    assert call(app, "GET", "/v1/events", QUERY_STRING="after=old-9").json["missed"] is True


@pytest.mark.parametrize("asked", ["after=x", "limit=0", "limit=1001", "limit=-1", "limit=1e3", "service=a/b", "wait=3"])
def test_the_route_refuses_what_it_cannot_take(app: Any, asked: str) -> None:
    answer = call(app, "GET", "/v1/events", QUERY_STRING=asked)
    assert (answer.status, answer.json["field"]) == (422, asked.partition("=")[0])
