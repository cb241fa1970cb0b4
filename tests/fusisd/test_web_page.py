"""The status page: what it says of how things stand, that nothing in it is HTML but ours, and how it is shared and sent."""

from __future__ import annotations

import gzip
import json
import shlex
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest
from bottle import Bottle

import pyipvs
from fusisd.events import Event
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.model import Service
from fusisd.ports import DestinationView, Reading, ServiceView, Snapshot
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.page import room
from fusisd.web.page.figures import number, plot, span
from fusisd.web.page.markup import Markup, joined, tag
from fusisd.web.page.room import StatusPage
from fusisd.web.page.standing import Level, Overview, overview, standing
from fusisd.web.page.trends import KEPT_S, STEP_S, Trends
from pyipvs import ForwardingMethod, ServiceKey, Stats
from pyipvs.ruleset import Entry
from pyipvs.testing import FakeKernel
from tests.fusisd.web_helpers import TOKEN, Answer, MemoryCore, call
from tests.fusisd.world import Clock
from tests.lab.expect import poll

HOSTILE = "<img src=x onerror='alert(1)'>\"&"
KEY = ServiceKey.parse("tcp/10.0.0.1:80")
NOTHING = Reading(0.0)


def row(name: str, state: str = "up", weight: int = 1, reason: str = "", **more: Any) -> DestinationView:
    more = {"wanted": weight, "origin": "operator", **more}
    where = (name, "10.0.0.9", 80, weight, ForwardingMethod.NAT)
    return DestinationView(*where, state=state, reason=reason, applied=True, **more)


def view(*rows: DestinationView, name: str = "web", **more: Any) -> ServiceView:
    plain = ServiceView(name, KEY, "rr", 0, False, True, "", rows, Service(name, KEY))
    return replace(plain, **more)


def look(
    *services: ServiceView, status: dict[str, Any] | None = None, now_s: float = 0.0, reading: Reading = NOTHING
) -> Overview:
    return overview(Snapshot(1, 0.0, services, tell_status=lambda: status or {}), reading, now_s)


# How it stands.

UP, FAILING = row("rs1"), row("rs2", "down", 0, "connection refused")
KEPT = row("rs2", "down", 1, "timeout; kept: nothing else serves")


@pytest.mark.parametrize(
    ("service", "level", "word", "text"),
    [
        (view(UP, row("rs2")), "well", "up", ""),
        (view(UP, row("rs2", "standby", 0)), "well", "up", ""),
        (view(UP, row("rs2", "draining", 0)), "well", "up", ""),
        (view(UP, FAILING), "attention", "partly", "1 of 2 destinations failing: rs2 (connection refused)"),
        (view(FAILING), "down", "down", "no destination takes connections; 1 of 1 destination failing: rs2 "
         "(connection refused)"),
        (view(row("rs1", weight=0)), "down", "down", "no destination takes connections"),
        (view(KEPT, reason="the last good are kept"), "down", "down", "the last good are kept; 1 of 1 destination failing: "
         "rs2 (timeout; kept: nothing else serves)"),
        (view(UP, reason="not asked through the VIP"), "attention", "partly", "not asked through the VIP"),
        (view(), "attention", "empty", "it has no destination"),
        (view(row("rs1", "checking", 0)), "attention", "checking", "no destination has passed its first check yet"),
        (view(UP, applied=False, reason="the kernel refuses"), "attention", "not applied", "the kernel refuses"),
        (view(FAILING, applied=False, reason="the kernel refuses"), "down", "not applied", "the kernel refuses"),
        (view(row("rs1", weight=1, wanted=3)), "attention", "partly", "the kernel has another weight than is wanted: rs1"),
        (view(FAILING, service=Service("web", KEY, drain_s=9.0)), "well", "draining",
         "it is deleted when its connections have ended"),
    ],
)  # fmt: skip
def test_a_service_stands_by_its_destinations(service: ServiceView, level: str, word: str, text: str) -> None:
    found = standing(service)
    assert (found.level.value, found.word, found.text) == (level, word, text)


def test_many_that_fail_are_counted_and_a_few_named() -> None:
    rows = [row(f"rs{number}", "failed", 0) for number in range(6)]
    assert standing(view(UP, *rows)).text == "6 of 7 destinations failing: rs0, rs1, rs2 and 3 more"


def test_what_is_wrong_comes_first() -> None:
    well, partly, down = view(UP, name="a"), view(UP, FAILING, name="b"), view(FAILING, name="c")
    found = look(well, partly, down, status={"problems": ["serf: gone"]})
    assert [one.view.name for one in found.services] == ["c", "b", "a"]
    assert [one.name for one in found.services[1].rows] == ["rs2", "rs1"]
    assert (found.level, found.headline) == (Level.DOWN, "c does not serve")
    assert [trouble.text.partition(":")[0] for trouble in found.troubles] == ["c", "b", "serf"]


@pytest.mark.parametrize(
    ("found", "level", "headline"),
    [
        (look(), "well", "No service yet"),
        (look(view(UP)), "well", "All is well"),
        (look(view(UP, FAILING)), "attention", "1 thing is wrong"),
        (look(view(UP, FAILING), status={"problems": ["serf: gone"]}), "attention", "2 things are wrong"),
        (look(view(FAILING, name="a"), view(FAILING, name="b")), "down", "2 services do not serve"),
        (look(view(UP), now_s=30.0), "down", "fusisd does not answer"),
        (look(view(UP), reading=Reading(0.0, problem="no module")), "attention", "1 thing is wrong"),
    ],
)
def test_the_headline_says_it_all(found: Overview, level: str, headline: str) -> None:
    assert (found.level.value, found.headline) == (level, headline)


def test_what_the_status_says_of_a_service_is_told_once() -> None:
    problems = ["service web: kept", f"{KEY}: refused", "nat: no iptables"]
    services = (view(KEPT, reason="kept"), view(UP, name="b", applied=False, reason="refused"))
    found = look(*services, status={"problems": problems})
    assert [trouble.text for trouble in found.troubles if not trouble.service] == ["nat: no iptables"]


# Figures.


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(0, "B/s", "0"), (7, "", "7"), (9999, "", "9999"), (10_000, "", "10.0 k"), (1500, "B/s", "1.50 kB/s"),
     (0.25, "/s", "0.2 /s"), (2.5e9, "B/s", "2.50 GB/s"), (123_456, "", "123 k")],
)  # fmt: skip
def test_numbers_are_short(value: float, unit: str, shown: str) -> None:
    assert number(value, unit) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(-1, "0 s"), (59.9, "60 s"), (60, "1 min"), (7300, "2 h"), (90_000, "1 d")])
def test_spans_are_coarse(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def test_a_plot_has_now_at_its_right_end_and_says_what_it_shows() -> None:
    drawn = plot([(KEPT_S, 0.0), (0.0, 30.0)], "connections a second", "/s", 102, 13)
    assert 'points="1,11.5 101,1.5"' in drawn
    assert "connections a second, last 5 minutes: now 30 /s, at most 30 /s" in drawn
    assert "polyline" not in plot([(0.0, 1.0)], "too little")
    still = [plot([(age_s, 0.0) for age_s in ages], "nothing") for ages in ((10.0, 5.1, 0.0), (10.0, 4.9, 0.0))]
    assert still[0] == still[1], "a line at rest is the same from one look to the next"


def counted(at_s: float, connections: int, volume: int = 0) -> Reading:
    stats = Stats(connections=connections, bytes_in=volume)
    return Reading(at_s, 0.0, {KEY: Entry(pyipvs.Service(KEY), stats, [])})


def test_trends_are_what_happened_between_two_readings() -> None:
    trends = Trends()
    for at_s, connections, volume in ((0.0, 100, 0), (2.0, 110, 0), (10.0, 150, 5000), (15.0, 150, 5000), (20.0, 20, 0)):
        trends.note(counted(at_s, connections, volume), [KEY])
    assert trends.past.of(KEY) == [(10.0, 5.0), (5.0, 0.0)], "2 s are too soon; counters that went back begin anew"
    assert trends.past.volume() == [(10.0, 500.0), (5.0, 0.0), (0.0, 0.0)]


def test_trends_keep_minutes_and_no_more() -> None:
    trends = Trends()
    for step in range(200):
        trends.note(counted(step * STEP_S, step), [KEY])
    ages = [age_s for age_s, _ in trends.past.connections()]
    assert (ages[0], ages[-1], len(ages)) == (KEPT_S, 0.0, KEPT_S / STEP_S + 1)


# HTML.


def test_everything_is_escaped_but_markup() -> None:
    element = tag("b", "<", tag("i", 1), None, title='"', hidden=True, lang=None)
    assert element == '<b title="&quot;" hidden>&lt;<i>1</i></b>'
    assert joined(["&", Markup("<br>")]) == "&amp;<br>"


class Elements(HTMLParser):
    """What elements and attributes a document has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def event(number: int, text: str, **about: Any) -> Event:
    return Event("7f", number, 1.8e9 + number, float(number), "health", text, **about)


@dataclass
class Stage:
    """The page over a core in memory, and a clock."""

    core: MemoryCore
    clock: Clock
    app: Any

    @classmethod
    def of(cls, *services: ServiceView, **status: Any) -> Stage:
        core, clock = MemoryCore(), Clock(1000.0)
        stage = cls(core, clock, make_app(core, WritePolicy.for_token(TOKEN), clock))
        stage.publish(*services, **status)
        return stage

    def publish(self, *services: ServiceView, **status: Any) -> None:
        """Something else from now on; a second later."""
        self.clock.now_s += 1.0
        self.core.published = Snapshot(1, self.clock.now_s, services, tell_status=lambda: status)

    def get(self, query: str = "", path: str = "/", **environ: Any) -> Answer:
        return call(self.app, "GET", path, QUERY_STRING=query, **environ)

    def elements(self, query: str = "") -> Elements:
        return Elements(self.get(query).body.decode())


def node(name: str, status: str = "alive", *problems: str) -> dict[str, Any]:
    return {"name": name, "address": "10.0.0.9", "status": status, "missing": False, "since_s": 70.0, "services": ["web"],
            "problems": list(problems)}  # fmt: skip


def test_what_strangers_say_is_text_everywhere() -> None:
    drain = {"service": HOSTILE, "destination": HOSTILE, "left_s": 9.0}
    foreign = ServiceView("", KEY, HOSTILE, 0, True, True, "", ())
    stage = Stage.of(view(row(HOSTILE, "down", 0, HOSTILE), reason=HOSTILE, name=HOSTILE, scheduler=HOSTILE), foreign,
                     problems=[HOSTILE], warnings=[HOSTILE], nodes=[node(HOSTILE, HOSTILE, HOSTILE)], drains=[drain],
                     version=HOSTILE, iface=HOSTILE)  # fmt: skip
    stage.core.events.add(event(1, HOSTILE, cause=HOSTILE, who=HOSTILE, node=HOSTILE))
    for query in ("", f"q={quote(HOSTILE)}", f"service={quote(HOSTILE)}"):
        page = stage.elements(query)
        assert page.of("img") == []
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        assert page.said.count(HOSTILE) > 5
        assert len(page.of("script")) == 1
        if not query.startswith("q="):
            copied = shlex.join(["fusisctl", "why", f"{HOSTILE}/{HOSTILE}"])
            assert copied in page.said, "whoever copies it runs nothing else"


def test_a_name_that_is_no_text_does_not_stop_the_page() -> None:
    assert b"a?b" in Stage.of(nodes=[node("a\udcffb")]).get().body


def test_the_page_shows_every_part() -> None:
    foreign = ServiceView("", ServiceKey.parse("udp/10.9.9.9:53"), "rr", 0, True, True, "", ())
    drain = {"service": "web", "destination": "rs3", "left_s": 75.0}
    stage = Stage.of(view(UP, FAILING, row("rs3", "draining", 0, "deleted", drain_left_s=75.0)), foreign,
                     nodes=[node("rs1"), node("rs2", "failed")], drains=[drain], vips=["10.0.0.1"], version="1.2.3",
                     warnings=["FORWARD drops"])  # fmt: skip
    stage.core.events.add(event(1, "down", service="web", destination="rs2", cause="connection refused"))
    page = stage.elements()
    assert [attributes["id"] for attributes in page.of("section")] == [
        "glance", "services", "drains", "nodes", "foreign", "events",
    ]  # fmt: skip
    for words in ("1 thing is wrong", "1.2.3", "FORWARD drops", "fusisctl why web/rs2", "cut in 1 min", "udp/10.9.9.9:53",
                  "fusisctl adopt udp/10.9.9.9:53 NAME", "fusisctl undrain web/rs3", "✕ failed", "▽ draining",
                  "1 of 2", "connection refused"):  # fmt: skip
        assert words in page.said


def reading_of(at_s: float, **traffic: int) -> Reading:
    """What the kernel would say of web's rs1."""
    fake = FakeKernel()
    ipvs = pyipvs.IPVS(transport=fake)
    ipvs.add_service(KEY, scheduler="rr")
    ipvs.add_destination(KEY, "10.0.0.9:80", method="nat")
    fake.traffic(str(KEY), "10.0.0.9:80", **traffic)
    return Reading(at_s, 0.0, {entry.service.key: entry for entry in IpvsKernel(ipvs, None).scan()})


def test_figures_are_the_kernels() -> None:
    stage = Stage.of(view(row("rs1", origin="serf")))
    for at_s, connections in ((0.0, 0), (10.0, 500), (20.0, 1500)):
        stage.core.reading = reading_of(at_s, active=12, inactive=34, connections=connections, bytes_in_per_s=56_000)
        stage.publish(view(row("rs1", origin="serf")))
        page = stage.elements()
    assert page.said.count("56.0 kB/s") == 3, "of all, the service and the destination"
    assert page.said.count("1234") == 2, "active and inactive, of the service and the destination"
    assert "by Serf" in page.said
    assert "web: connections a second, last 5 minutes: now 100, at most 100" in page.said
    assert len(page.of("svg")) == 3


def test_what_is_too_much_is_counted() -> None:
    wrong = [view(UP, FAILING, name=f"s{number:02}") for number in range(20)]
    foreign = [ServiceView("", ServiceKey.fwmark(mark + 1), "rr", 0, True, True, "", ()) for mark in range(130)]
    page = Stage.of(*wrong, *foreign, nodes=[node(f"n{number}") for number in range(140)]).elements()
    for words in ("and 8 more, below", "and 30 more", "and 40 more"):
        assert words in page.said


def test_a_form_only_asks() -> None:
    page = Stage.of(view(UP)).elements()
    assert [(form["method"], form["action"]) for form in page.of("form")] == [("get", "/")]
    assert all(button["type"] == "button" for button in page.of("button"))


# Large tables.


def many(count: int = 300, size: int = 10) -> list[ServiceView]:
    """Well, but for one destination of the last."""
    rows = tuple(row(f"rs{number}") for number in range(size))
    services = [view(*rows, name=f"s{number:03}") for number in range(count - 1)]
    return [*services, view(*rows[:-1], FAILING, name=f"s{count - 1:03}")]


def rows_of(page: Elements, kind: str) -> int:
    return sum(attributes.get("class") == kind for attributes in page.of("tr"))


def test_of_a_large_table_a_page_shows_services_and_what_is_wrong() -> None:
    stage = Stage.of(*many())
    page = stage.elements()
    assert (rows_of(page, "service"), rows_of(page, "destination")) == (100, 2), "the one that fails, and a link to the rest"
    assert [body["id"] for body in page.of("tbody")][0] == "s-s299"
    assert "and 9 more" in page.said
    assert "1–100 of 300 services" in page.said
    last = stage.elements("page=3")
    assert "201–300 of 300" in last.said
    assert "next" not in last.said
    assert "201–300 of 300" in stage.elements("page=99").said


def test_a_service_alone_shows_all_of_its_destinations_by_pages() -> None:
    stage = Stage.of(*many(3, 250))
    assert rows_of(stage.elements("service=s001"), "destination") == 200
    assert rows_of(stage.elements("service=s001&page=2"), "destination") == 50


@pytest.mark.parametrize(("text", "found"), [("s00", 10), ("S007", 1), ("rs3", 300), ("partly", 1), ("nowhere", 0)])
def test_what_is_searched_for_is_found(text: str, found: int) -> None:
    assert f"Services with “{text}”: {found}" in Stage.of(*many()).elements(f"q={text}").said


@pytest.mark.parametrize("query", ["page=0", "page=-1", "page=x", "page=%C2%B2", f"page={'9' * 20}", "q=%ff", "nonsense=1"])
def test_a_query_without_meaning_is_passed_over(query: str) -> None:
    assert Stage.of(view(UP)).get(query).status == 200


def test_a_service_that_is_not_there_is_404_and_says_so() -> None:
    answer = Stage.of(view(UP)).get("service=other")
    assert answer.status == 404
    assert "There is no service other." in Elements(answer.body.decode()).said


# How it is sent.


def test_a_page_that_looks_the_same_is_not_sent_again() -> None:
    stage = Stage.of(view(UP))
    first = stage.get()
    again = stage.get(HTTP_IF_NONE_MATCH=first.headers["Etag"])
    assert (again.status, again.body, again.headers["Etag"]) == (304, b"", first.headers["Etag"])
    stage.publish(view(UP))
    assert stage.get(HTTP_IF_NONE_MATCH=first.headers["Etag"]).status == 304, "the hour alone is no news"
    stage.publish(view(UP, FAILING))
    news = stage.get(HTTP_IF_NONE_MATCH=first.headers["Etag"])
    assert (news.status, news.headers["Etag"] != first.headers["Etag"]) == (200, True)


@pytest.mark.parametrize("path", ["/", "/status.js", "/status.css", "/status-well.svg"])
def test_it_is_packed_and_carries_its_policy(path: str) -> None:
    stage = Stage.of(view(UP))
    plain, packed = stage.get(path=path), stage.get(path=path, HTTP_ACCEPT_ENCODING="gzip, br")
    assert gzip.decompress(packed.body) == plain.body
    assert packed.headers["Content-Encoding"] == "gzip"
    policy = plain.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert stage.get(path=path, HTTP_IF_NONE_MATCH=plain.headers["Etag"]).status == 304
    head = call(stage.app, "HEAD", path)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(plain.body)))


def test_what_it_names_is_served_and_nothing_is_inline() -> None:
    stage = Stage.of(view(UP))
    page = stage.elements()
    named = [link["href"] for link in page.of("link")] + [script["src"] for script in page.of("script")]
    for path in named:
        assert path is not None
        assert stage.get(path=path.partition("?")[0]).status == 200
    assert page.of("style") == []
    assert not any("style" in attributes for _, attributes in page.tags)


def test_nobody_can_change_anything_here() -> None:
    assert call(Stage.of().app, "POST", "/").status == 405


# How it is shared.


class CountedCore(MemoryCore):
    """Counts how often it is asked, and lets a test hold an answer back."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def snapshot(self) -> Snapshot:
        self.asked += 1
        assert self.go_on.wait(30)
        return self.published


@pytest.fixture
def held() -> Iterator[tuple[CountedCore, Clock, Any]]:
    core, clock = CountedCore(), Clock(1000.0)
    yield core, clock, make_app(core, WritePolicy.for_token(TOKEN), clock)
    core.go_on.set()


def test_all_who_look_within_a_second_share_one_drawing(held: tuple[CountedCore, Clock, Any]) -> None:
    core, clock, app = held
    answers = {call(app, "GET", "/").body for _ in range(5)}
    assert (len(answers), core.asked) == (1, 1)
    clock.now_s += 1.0
    call(app, "GET", "/")
    assert core.asked == 2


def test_while_one_draws_the_others_see_the_last(held: tuple[CountedCore, Clock, Any]) -> None:
    core, clock, app = held
    first = call(app, "GET", "/").body
    core.published = Snapshot(2, clock.now_s, (view(UP),), tell_status=dict)
    clock.now_s += 1.0
    core.go_on.clear()
    answers: list[Answer] = []
    drawing = threading.Thread(target=lambda: answers.append(call(app, "GET", "/")))
    drawing.start()
    poll(lambda: core.asked == 2)
    assert call(app, "GET", "/").body == first
    core.go_on.set()
    drawing.join(30)
    assert answers[0].body != first
    assert call(app, "GET", "/").body == answers[0].body


def test_before_there_is_a_first_drawing_one_waits_for_it_a_while(
    held: tuple[CountedCore, Clock, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    core, clock, _ = held
    monkeypatch.setattr(room, "FIRST_LIMIT_S", 0.01)
    app = make_app(core, WritePolicy.for_token(TOKEN), clock)
    core.go_on.clear()
    drawing = threading.Thread(target=lambda: call(app, "GET", "/"))
    drawing.start()
    poll(lambda: core.asked == 1)
    answer = call(app, "GET", "/")
    core.go_on.set()
    drawing.join(30)
    assert (answer.status, json.loads(answer.body)) == (503, {"error": "fusisd is busy; ask again"})


def test_parts_of_an_edition_are_kept_only_so_far() -> None:
    core, clock = MemoryCore(), Clock(1000.0)
    page, app = StatusPage(core, clock), Bottle()
    app.route("/", "GET", page.page)
    for part in range(room.KEPT + 8):
        assert call(app, "GET", "/", QUERY_STRING=f"q={part}").status == 200
    assert page._edition is not None
    assert len(page._edition.parts) == room.KEPT
