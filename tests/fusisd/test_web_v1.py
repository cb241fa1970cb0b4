"""The native API: documents, preconditions, problem details, drains, import and export; a few on the whole daemon's core."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from fusisd import state
from fusisd.commands import (
    AddDestination,
    AddService,
    CancelDrain,
    Command,
    DeleteDestination,
    DeleteService,
    Pause,
    Release,
    SetGlobals,
    Together,
    UpdateDestination,
    UpdateService,
)
from fusisd.errors import Conflict, StoreError, Unavailable
from fusisd.inbox import MembersSeen, ProbeChanged
from fusisd.model import CheckKind
from fusisd.ports import DestinationView, ServiceView, Snapshot
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from pyipvs import ForwardingMethod, Protocol, ServiceKey, TunnelType
from tests.fusisd.test_committer import Whole
from tests.fusisd.web_helpers import TOKEN, Answer, MemoryCore, call
from tests.fusisd.world import UP, WEB_KEY, alone, down, member

WEB = {"name": "web", "protocol": "tcp", "address": "10.0.0.1", "port": 80}
WEB_ALONE = {**WEB, "check": {"kind": "tcp", "path_check": False}}
D1 = {"name": "d1", "address": "10.0.0.11", "port": 80}
ONE, INSIDE = "/v1/services/web", "/v1/services/web/destinations"
PROBLEM = "application/problem+json"
FOREIGN = ServiceView(
    "", ServiceKey.parse("tcp/10.9.9.9:80"), "sh", 0, True, True, "",
    (DestinationView("", "10.0.0.2", 80, 3, ForwardingMethod.NAT, "foreign", "", "", True, active=4),),
)  # fmt: skip


class RefusingCore(MemoryCore):
    """A core whose door refuses commands that `refused` names an error for."""

    def __init__(self, refused: Callable[[Command], Exception | None]) -> None:
        super().__init__()
        self.refused = refused

    def submit(self, command: Command, who: str) -> Snapshot:
        if (error := self.refused(command)) is not None:
            raise error
        return super().submit(command, who)


@pytest.fixture
def core() -> MemoryCore:
    return MemoryCore((FOREIGN,))


def app_of(core: Any) -> Any:
    return make_app(core, WritePolicy.for_token(TOKEN))


@pytest.fixture
def app(core: MemoryCore) -> Any:
    return app_of(core)


@pytest.fixture
def web(app: Any) -> Any:
    """An application with service web and its destination d1."""
    assert call(app, "POST", "/v1/services", WEB).status == 201
    assert call(app, "POST", INSIDE, D1).status == 201
    return app


def problem(answer: Answer) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == PROBLEM, answer.body
    told: dict[str, Any] = answer.json
    assert (told["type"], told["status"]) == ("about:blank", answer.status)
    assert told["title"]
    return told


# Services.


def test_a_service_is_made_shown_and_has_a_place_and_a_tag(core: MemoryCore, app: Any) -> None:
    answer = call(app, "POST", "/v1/services", WEB)
    assert (answer.status, answer.headers["Location"], answer.headers["Etag"]) == (201, ONE, '"1"')
    assert answer.json == {
        **WEB,
        "scheduler": "rr",
        "destinations": {},
        "status": {
            "key": "tcp/10.0.0.1:80",
            "revision": 1,
            "applied": True,
            "reason": "",
            "draining": False,
            "excluded": [],
            "destinations": {},
        },
    } | {key: answer.json[key] for key in answer.json.keys() - {*WEB, "scheduler", "destinations", "status"}}
    assert core.seen[0][1] == "unix"
    assert call(app, "GET", ONE).json == answer.json
    assert call(app, "GET", "/v1/services").json == {"services": [answer.json], "next": None}


def test_who_asked_is_told_to_the_core(core: MemoryCore, app: Any) -> None:
    call(app, "POST", "/v1/services", WEB, "127.0.0.1", HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
    assert core.seen[0][1] == f"tcp 127.0.0.1 token={WritePolicy.for_token(TOKEN).fingerprint}"


def test_without_the_token_a_change_is_refused_in_this_room_s_words(core: MemoryCore, app: Any) -> None:
    answer = call(app, "POST", "/v1/services", WEB, "127.0.0.1")
    assert (problem(answer)["status"], core.seen) == (401, [])
    assert answer.headers["Www-Authenticate"].startswith("Bearer")


def test_the_same_again_is_a_success_without_change(core: MemoryCore, web: Any) -> None:
    revision = core.intent.revision, core.intent.services["web"].revision
    for method, path, body in (("POST", "/v1/services", WEB), ("PUT", ONE, WEB), ("PATCH", ONE, {"port": 80})):
        answer = call(web, method, path, body)
        assert (method, answer.status) == (method, 200)
    for method, path in (("POST", INSIDE), ("PUT", f"{INSIDE}/d1"), ("PATCH", f"{INSIDE}/d1")):
        assert (method, call(web, method, path, D1).status) == (method, 200)
    assert (core.intent.revision, core.intent.services["web"].revision) == revision


def test_every_field_goes_in_and_comes_out(core: MemoryCore, app: Any) -> None:
    body: dict[str, Any] = {
        "name": "dns",
        "protocol": "udp",
        "address": "fd00::53",
        "port": 53,
        "scheduler": "mh",
        "flags": ["one_packet", "sched2"],
        "persistence_s": 300,
        "netmask": 64,
        "vip": "external",
        "announce": "when-usable",
        "check": {"kind": "dns", "name": "example.org", "record": "AAAA"},
        "destinations": {
            "d1": {
                "address": "10.0.0.11", "port": 53, "weight": 3, "method": "tunnel", "upper_threshold": 9,
                "lower_threshold": 3, "tunnel": {"type": "gue", "port": 6080}, "tier": "backup",
            }
        },
    }  # fmt: skip
    answer = call(app, "POST", "/v1/services", body)
    assert answer.status == 201, answer.body
    service = core.intent.services["dns"]
    assert (service.key, service.vip_managed, service.netmask) == (ServiceKey.parse("udp/[fd00::53]:53"), False, 64)
    assert service.check is not None
    assert service.check.kind is CheckKind.DNS
    (one,) = service.destinations.values()
    assert one.tunnel is not None
    assert (one.tunnel.type, one.upper_threshold, one.weight) == (TunnelType.GUE, 9, 3)
    shown = answer.json
    assert {name: shown[name] for name in body if name not in ("check", "destinations")} == {
        name: value for name, value in body.items() if name not in ("check", "destinations")
    }
    assert shown["destinations"]["d1"] == body["destinations"]["d1"]
    again = call(app, "PUT", "/v1/services/dns", shown)
    assert (again.status, again.headers["Etag"]) == (200, answer.headers["Etag"]), "what was read can be sent back"


@pytest.mark.parametrize(("family", "key"), [("ipv4", "fwmark/7"), ("ipv6", "fwmark6/7")])
def test_a_firewall_mark_is_a_key_too(core: MemoryCore, app: Any, family: str, key: str) -> None:
    answer = call(app, "POST", "/v1/services", {"name": "m", "fwmark": 7, "family": family})
    assert (answer.status, answer.json["status"]["key"], answer.json["fwmark"]) == (201, key, 7)
    assert call(app, "PUT", "/v1/services/m", answer.json).status == 200
    assert problem(call(app, "POST", "/v1/services", {**WEB, "fwmark": 7}))["field"] == "protocol"


def test_a_key_may_be_given_whole(core: MemoryCore, app: Any) -> None:
    answer = call(app, "PUT", ONE, {"key": "udp/[fd00::1]:53"})
    parts = {"protocol": "udp", "address": "fd00::1", "port": 53}
    assert (answer.status, answer.json | parts) == (201, answer.json)
    assert problem(call(app, "PUT", ONE, {"key": "nonsense"}))["field"] == "key"


@pytest.mark.parametrize(
    ("asked", "address"), [({}, "0.0.0.0"), ({"address": None}, "0.0.0.0"), ({"family": "ipv6"}, "::")]
)
def test_an_address_left_out_is_for_the_door_to_allocate(
    core: MemoryCore, app: Any, asked: dict[str, Any], address: str
) -> None:
    body = {"name": "web", "protocol": "tcp", "port": 80, **asked}
    assert call(app, "POST", "/v1/services", body).status == 201
    (command, _) = core.seen[0]
    assert isinstance(command, AddService)
    assert command.service.key == ServiceKey(Protocol.TCP, address, 80)


def test_a_service_is_replaced_and_keeps_its_destinations_unless_they_are_given(core: MemoryCore, web: Any) -> None:
    answer = call(web, "PUT", ONE, {**WEB, "scheduler": "wlc"})
    assert (answer.status, answer.json["scheduler"], list(answer.json["destinations"])) == (200, "wlc", ["d1"])
    d2 = {"address": "10.0.0.12", "port": 80}
    answer = call(web, "PUT", ONE, {**WEB, "destinations": {"d2": d2}})
    assert answer.json["scheduler"] == "rr", "what is left out is as it is for a new one"
    assert list(answer.json["destinations"]) == ["d2"]
    assert DeleteDestination("web", "d1", 60.0) in state.parts(core.seen[-1][0]), "the rest drains"
    assert answer.json["status"]["destinations"]["d1"]["drain_left_s"] == 60.0


def test_put_makes_a_service_that_is_not_there(app: Any) -> None:
    answer = call(app, "PUT", ONE, {key: value for key, value in WEB.items() if key != "name"})
    assert (answer.status, answer.headers["Location"]) == (201, ONE)


def test_a_patch_changes_what_it_names_and_null_takes_out(core: MemoryCore, web: Any) -> None:
    assert call(web, "PATCH", ONE, {"scheduler": "wrr", "check": {"kind": "http", "path": "/up"}}).status == 200
    patch = {"check": {"path": "/ok"}, "destinations": {"d1": {"weight": 7}, "d2": {"address": "10.0.0.12", "port": 80}}}
    answer = call(web, "PATCH", ONE, patch, CONTENT_TYPE="application/merge-patch+json")
    assert answer.status == 200
    assert (answer.json["scheduler"], answer.json["check"]["kind"], answer.json["check"]["path"]) == ("wrr", "http", "/ok")
    assert [one["weight"] for one in answer.json["destinations"].values()] == [7, 1]
    answer = call(web, "PATCH", ONE, {"check": {"kind": "tcp", "port": 81}})
    assert (answer.json["check"]["port"], "path" in answer.json["check"]) == (81, False), "another kind is another check"
    call(web, "PATCH", f"{INSIDE}/d2", {"check": {"kind": "http", "path": "/up"}})
    answer = call(web, "PATCH", ONE, {"destinations": {"d2": {"check": {"kind": "none"}}}})
    assert answer.json["destinations"]["d2"]["check"]["kind"] == "none"
    for nonsense in (3, {"kind": 3}, {"kind": ["http"]}):
        assert problem(call(web, "PATCH", ONE, {"check": nonsense}))["status"] == 422
        assert problem(call(web, "PATCH", ONE, {"destinations": {"d2": nonsense}}))["status"] == 422
    answer = call(web, "PATCH", ONE, {"check": None, "destinations": {"d1": None}})
    assert "check" not in answer.json
    assert list(answer.json["destinations"]) == ["d2"]
    assert core.intent.services["web"].destinations["d1"].drain_s == 60.0


def test_a_patch_without_a_revision_is_made_again_when_somebody_was_quicker(web: Any, core: MemoryCore) -> None:
    submit = core.submit
    others = [lambda: submit(UpdateService(core.intent.services["web"].__class__("web", WEB_KEY, "lc")), "other")]

    def quicker(command: Command, who: str) -> Snapshot:
        if others:
            others.pop()()
        return submit(command, who)

    core.submit = quicker  # type: ignore[method-assign]
    answer = call(web, "PATCH", ONE, {"persistence_s": 30})
    assert (answer.status, answer.json["scheduler"], answer.json["persistence_s"]) == (200, "lc", 30)


def test_nothing_is_done_when_a_later_part_cannot_be(core: MemoryCore, web: Any) -> None:
    seen, before = len(core.seen), core.intent
    body = {**WEB, "scheduler": "lc", "destinations": {"d2": {"address": "10.0.0.12", "port": 81}}}
    assert problem(call(web, "PUT", ONE, body))["field"] == "destinations.d2.port"
    assert (core.intent, len(core.seen)) == (before, seen)


# Deleting and drains.


def test_delete_drains_a_minute_unless_told_otherwise(core: MemoryCore, web: Any) -> None:
    answer = call(web, "DELETE", f"{INSIDE}/d1", QUERY_STRING="drain_s=5.5")
    assert (answer.status, answer.json["status"]["drain_left_s"]) == (202, 5.5)
    assert core.seen[-1][0] == DeleteDestination("web", "d1", 5.5)
    answer = call(web, "DELETE", ONE)
    assert (answer.status, answer.json["status"]["draining"]) == (202, True)
    assert core.seen[-1][0] == DeleteService("web", 60.0)
    assert call(web, "DELETE", f"{INSIDE}/d1", QUERY_STRING="now=1").status == 204
    answer = call(web, "DELETE", ONE, QUERY_STRING="now=true")
    assert (answer.status, answer.body) == (204, b"")
    assert problem(call(web, "DELETE", ONE))["detail"] == "there is no service 'web'"


@pytest.mark.parametrize(
    ("query", "field"),
    [("drain_s=x", "drain_s"), ("drain_s=nan", "drain_s"), ("drain_s=0", "drain_s"), ("drain_s=-1", "drain_s"),
     ("drain_s=1e9", "drain_s"), ("now=maybe", "now"), ("now=1&drain_s=3", "now"), ("drain=5", "drain"),
     ("now=1&now=1", "now"), ("drain_s=1_0", "drain_s")],
)  # fmt: skip
def test_a_query_that_is_wrong_or_misspelt_deletes_nothing(core: MemoryCore, web: Any, query: str, field: str) -> None:
    before = core.intent
    answer = call(web, "DELETE", ONE, QUERY_STRING=query)
    assert (answer.status, problem(answer)["field"], core.intent) == (422, field, before)


def test_a_drain_is_listed_and_cancelled(core: MemoryCore, web: Any) -> None:
    call(web, "DELETE", f"{INSIDE}/d1")
    (row,) = call(web, "GET", "/v1/drains").json["drains"]
    assert (row["service"], row["destination"], row["left_s"], row["active"]) == ("web", "d1", 60.0, 0)
    assert problem(call(web, "PATCH", f"{INSIDE}/d1", {"weight": 2}))["status"] == 409
    answer = call(web, "DELETE", f"{INSIDE}/d1/drain")
    assert (answer.status, answer.json["status"]["drain_left_s"]) == (200, None)
    assert core.seen[-1][0] == CancelDrain("web", "d1")
    call(web, "DELETE", ONE)
    assert [row["destination"] for row in call(web, "GET", "/v1/drains").json["drains"]] == [None]
    assert problem(call(web, "PATCH", ONE, {"scheduler": "lc"}))["status"] == 409
    assert call(web, "DELETE", f"{ONE}/drain").json["status"]["draining"] is False
    assert call(web, "GET", "/v1/drains").json == {"drains": [], "next": None}
    assert problem(call(web, "DELETE", f"{INSIDE}/d9/drain"))["status"] == 404


def test_what_drains_is_not_in_the_document_and_put_adds_it_again(core: MemoryCore, web: Any) -> None:
    call(web, "DELETE", f"{INSIDE}/d1")
    shown = call(web, "GET", ONE).json
    assert (shown["destinations"], list(shown["status"]["destinations"])) == ({}, ["d1"])
    assert call(web, "PUT", ONE, shown).status == 200
    assert core.intent.services["web"].destinations["d1"].drain_s == 60.0, "sending back what was read changes nothing"
    assert call(web, "PUT", f"{INSIDE}/d1", D1).status == 200
    assert core.intent.services["web"].destinations["d1"].drain_s is None


# Destinations.


def test_a_destination_lives_its_life(core: MemoryCore, web: Any) -> None:
    assert call(web, "GET", f"{INSIDE}/d1").json["status"] == {
        "address": "10.0.0.11", "port": 80, "method": "route", "origin": "operator", "state": "up", "reason": "",
        "applied": True, "weight": 1, "wanted": 1, "active": 0, "inactive": 0, "drain_left_s": None,
    }  # fmt: skip
    answer = call(web, "PATCH", f"{INSIDE}/d1", {"weight": 0})
    assert (answer.status, answer.json["weight"]) == (200, 0)
    assert isinstance(core.seen[-1][0], UpdateDestination)
    answer = call(web, "PUT", f"{INSIDE}/d2", {"address": "10.0.0.12", "port": 8080, "method": "nat"})
    assert (answer.status, answer.headers["Location"]) == (201, f"{INSIDE}/d2")
    assert isinstance(core.seen[-1][0], AddDestination)
    names = [row["name"] for row in call(web, "GET", INSIDE).json["destinations"]]
    assert names == ["d1", "d2"]
    assert problem(call(web, "GET", f"{INSIDE}/d3"))["status"] == 404
    assert problem(call(web, "PATCH", f"{INSIDE}/d3", {}))["status"] == 404
    assert problem(call(web, "GET", "/v1/services/none/destinations"))["status"] == 404


def test_an_address_that_another_destination_has_is_a_conflict_that_names_it(web: Any) -> None:
    told = problem(call(web, "POST", INSIDE, {**D1, "name": "d2"}))
    assert (told["status"], "destination d1 of web" in told["detail"]) == (409, True)


# Preconditions.


def test_changes_made_from_an_older_revision_are_412(core: MemoryCore, web: Any) -> None:
    tag = call(web, "GET", ONE).headers["Etag"]
    assert tag == call(web, "GET", INSIDE).headers["Etag"] == call(web, "GET", f"{INSIDE}/d1").headers["Etag"]
    answer = call(web, "PATCH", ONE, {"scheduler": "lc"}, HTTP_IF_MATCH=tag)
    assert (tag, answer.status, answer.headers["Etag"]) == ('"2"', 200, '"3"')
    before = core.intent
    for method, path, body in [
        ("PUT", ONE, WEB), ("PATCH", ONE, {}), ("DELETE", ONE, None), ("DELETE", f"{ONE}/drain", None),
        ("PUT", f"{INSIDE}/d1", D1), ("PATCH", f"{INSIDE}/d1", {"weight": 4}), ("DELETE", f"{INSIDE}/d1", None),
        ("DELETE", f"{INSIDE}/d1/drain", None), ("PUT", "/v1/services/new", WEB | {"name": "new", "port": 81}),
    ]:  # fmt: skip
        for said in (tag, "W/" + answer.headers["Etag"], "nonsense"):
            told = problem(call(web, method, path, body, HTTP_IF_MATCH=said))
            assert told["status"] == 412, (method, path, said)
    assert core.intent is before
    assert call(web, "PATCH", ONE, {"scheduler": "wlc"}, HTTP_IF_MATCH=f'"1", {answer.headers["Etag"]}').status == 200
    assert call(web, "DELETE", ONE, HTTP_IF_MATCH="*").status == 202


def test_put_can_be_told_to_make_something_new_only(web: Any) -> None:
    assert problem(call(web, "PUT", ONE, WEB, HTTP_IF_NONE_MATCH="*"))["status"] == 412
    assert call(web, "PUT", "/v1/services/b", WEB | {"name": "b", "port": 81}, HTTP_IF_NONE_MATCH="*").status == 201


# Refusals.


BAD_BODIES = [b"", b"{", b"[]", b"null", b'{"a":NaN}', b'{"a":1,"a":2}', b"[" * 100_000, b"\xff", b'{"name":"web"} x']


@pytest.mark.parametrize("body", BAD_BODIES, ids=[repr(body[:20]) for body in BAD_BODIES])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/services"), ("PUT", ONE), ("PATCH", ONE), ("POST", INSIDE), ("PUT", f"{INSIDE}/d1"),
     ("PATCH", f"{INSIDE}/d1"), ("POST", "/v1/adopt"), ("POST", "/v1/pause"), ("PUT", "/v1/settings"),
     ("POST", "/v1/import")],
)  # fmt: skip
def test_what_is_no_json_object_is_400(core: MemoryCore, web: Any, method: str, path: str, body: bytes) -> None:
    before = core.intent
    answer = call(web, method, path, body)
    assert (answer.status, core.intent) == (400, before)
    assert problem(answer)["detail"].startswith("the body")


def test_another_content_type_is_415(app: Any) -> None:
    told = problem(call(app, "POST", "/v1/services", WEB, CONTENT_TYPE="application/x-www-form-urlencoded"))
    assert (told["status"], "set the Content-Type header" in told["detail"]) == (415, True)
    assert call(app, "POST", "/v1/services", WEB, CONTENT_TYPE="application/merge-patch+json").status == 415


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"drain_s": 3}, "drain_s"),
        ({"excluded": []}, "excluded"),
        ({"key": "tcp/10.0.0.1:80"}, "protocol"),
        ({"name": "a/b"}, "name"),
        ({"name": 3}, "name"),
        ({"name": None}, "name"),
        ({"address": "10.0.0.256"}, "address"),
        ({"address": "0.0.0.0"}, "address"),
        ({"address": 1}, "address"),
        ({"address": "fd00::1", "family": "ipv4"}, "family"),
        ({"port": 65536}, "port"),
        ({"port": True}, "port"),
        ({"port": None}, "port"),
        ({"protocol": "TCP"}, "protocol"),
        ({"fwmark": 0, "protocol": None, "address": None, "port": None}, "fwmark"),
        ({"scheduler": "none"}, "scheduler"),
        ({"flags": ["one_packet"]}, "flags"),
        ({"flags": ["red"]}, "flags[0]"),
        ({"persistence_s": -1}, "persistence_s"),
        ({"port": 0}, "persistence_s"),
        ({"netmask": 33}, "netmask"),
        ({"check": {"kind": "http", "name": "x"}}, "check.name"),
        ({"destinations": {"d1": {"address": "10.0.0.11"}}}, "destinations.d1.port"),
        ({"destinations": {"d1": {"address": "10.0.0.11", "port": 80, "drain_s": 1}}}, "destinations.d1.drain_s"),
        ({"destinations": []}, "destinations"),
    ],
)
def test_a_wrong_part_is_422_and_named(core: MemoryCore, app: Any, change: dict[str, Any], field: str) -> None:
    answer = call(app, "POST", "/v1/services", {**WEB, **change})
    assert (answer.status, problem(answer)["field"], core.seen) == (422, field, [])


@pytest.mark.parametrize(
    ("change", "field"),
    [({"weight": 65536}, "weight"), ({"weight": -1}, "weight"), ({"method": "masq"}, "method"), ({"port": 81}, "port"),
     ({"address": "fd00::1"}, "address"), ({"tunnel": {"type": "gue"}}, "tunnel"), ({"drain_s": 1}, "drain_s"),
     ({"lower_threshold": 5}, "lower_threshold"), ({"tunnel": {"type": "l2tp"}}, "tunnel.type"), ({"x": 1}, "x")],
)  # fmt: skip
def test_a_wrong_part_of_a_destination_is_422_and_named(web: Any, change: dict[str, Any], field: str) -> None:
    answer = call(web, "PATCH", f"{INSIDE}/d1", change)
    assert (answer.status, problem(answer)["field"]) == (422, field), answer.body


def test_a_name_that_contradicts_the_path_is_refused(web: Any) -> None:
    assert problem(call(web, "PUT", ONE, {**WEB, "name": "b"}))["field"] == "name"
    assert problem(call(web, "PUT", f"{INSIDE}/d1", {**D1, "name": "b"}))["field"] == "name"


def test_a_clash_is_409_and_names_the_other(web: Any) -> None:
    told = problem(call(web, "POST", "/v1/services", {**WEB, "scheduler": "lc"}))
    assert (told["status"], "service web exists as tcp/10.0.0.1:80" in told["detail"]) == (409, True)
    told = problem(call(web, "PUT", "/v1/services/b", {**WEB, "name": "b"}))
    assert (told["status"], told["detail"]) == (409, "tcp/10.0.0.1:80 is service web already")
    told = problem(call(web, "POST", "/v1/services", {**WEB, "destinations": {"d9": {"address": "10.0.0.9", "port": 80}}}))
    assert (told["status"], "other destinations" in told["detail"]) == (409, True)
    seed = {"Name": "web", "Host": "10.0.0.1", "Port": 80, "Protocol": "tcp", "Scheduler": "lc"}
    assert call(web, "POST", "/services", seed).status == 422, "the seed's routes keep their own status"


def test_not_now_says_when_to_ask_again() -> None:
    app = app_of(RefusingCore(lambda command: Unavailable("the disk is full")))
    answer = call(app, "POST", "/v1/services", WEB)
    assert (problem(answer)["status"], answer.headers["Retry-After"]) == (503, "1")


def test_unknown_routes_and_methods_are_problems_too(app: Any) -> None:
    assert problem(call(app, "GET", "/v1/nothing"))["status"] == 404
    answer = call(app, "PUT", "/v1/services")
    assert (problem(answer)["status"], "POST" in answer.headers["Allow"]) == (405, True)
    assert problem(call(app, "GET", "/v1/services", QUERY_STRING="x=1"))["field"] == "x"
    assert call(app, "GET", "/nothing").json == {"error": "Not found: '/nothing'"}


class Broken(MemoryCore):
    def snapshot(self) -> Snapshot:
        raise ZeroDivisionError


def test_a_bug_of_ours_is_500_without_its_inside(caplog: pytest.LogCaptureFixture) -> None:
    told = problem(call(app_of(Broken()), "GET", "/v1/services"))
    assert (told["status"], "ZeroDivision" in str(told), "ZeroDivision" in caplog.text) == (500, False, True)


# Pages and nodes.


def in_pages(app: Any, path: str, member: str, limit: int) -> list[list[str]]:
    """The names of the rows, page by page."""
    pages: list[list[str]] = []
    after: str | None = ""
    while after is not None:
        found = call(app, "GET", path, QUERY_STRING=f"limit={limit}&after={quote(after, safe='')}").json
        pages.append([row.get("name") or row.get("key") or row["destination"] for row in found[member]])
        after = found["next"]
    return pages


def test_a_collection_comes_in_pages_in_the_order_of_names(app: Any, web: Any) -> None:
    for name in ("c", "a", "b"):
        call(app, "POST", "/v1/services", {"name": name, "protocol": "tcp", "address": "10.0.0.2", "port": ord(name)})
        call(app, "POST", INSIDE, {"name": name, "address": "10.0.0.12", "port": 80 + ord(name), "method": "nat"})
    assert in_pages(app, "/v1/services", "services", 3) == [["a", "b", "c"], ["web"]]
    assert in_pages(app, "/v1/services", "services", 2) == [["a", "b"], ["c", "web"]]
    assert in_pages(app, INSIDE, "destinations", 3) == [["a", "b", "c"], ["d1"]]
    assert in_pages(app, "/v1/foreign", "foreign", 1) == [["tcp/10.9.9.9:80"]]
    call(app, "DELETE", f"{INSIDE}/a")
    call(app, "DELETE", f"{INSIDE}/b")
    assert in_pages(app, "/v1/drains", "drains", 1) == [["a"], ["b"]]
    assert in_pages(app, "/v1/nodes", "nodes", 1) == [[]]
    whole = call(app, "GET", "/v1/services").json
    assert ([one["name"] for one in whole["services"]], whole["next"]) == (["a", "b", "c", "web"], None)


@pytest.mark.parametrize(
    ("query", "field"),
    [(f"limit={said}", "limit") for said in ("0", "1001", "x", "1.5", "1_0", "")] + [("after=%ff", "after")],
)
def test_a_page_that_cannot_be_is_refused(app: Any, query: str, field: str) -> None:
    for path in ("services", "drains", "foreign", "nodes"):
        answer = call(app, "GET", f"/v1/{path}", QUERY_STRING=query)
        assert (answer.status, problem(answer)["field"]) == (422, field)


# The table as a whole.


def test_release_pause_and_settings_are_commands(core: MemoryCore, web: Any) -> None:
    assert call(web, "POST", f"{ONE}/release").json == {"name": "web", "key": "tcp/10.0.0.1:80"}
    assert core.seen[-1][0] == Release("web")
    assert call(web, "POST", "/v1/pause", {"seconds": 30}).json == {"seconds": 30}
    assert core.seen[-1][0] == Pause(30)
    assert problem(call(web, "POST", "/v1/pause", {"seconds": -1}))["field"] == "seconds"
    assert problem(call(web, "POST", "/v1/pause", {}))["field"] == "seconds"
    answer = call(web, "PUT", "/v1/settings", {"timeouts": {"tcp_s": 900}})
    assert answer.json == {"timeouts": {"tcp_s": 900, "tcp_fin_s": 0, "udp_s": 0}, "ranges": []}
    assert core.seen[-1][0] == SetGlobals(single=(("tcp_s", 900),))
    assert call(web, "PUT", "/v1/settings", {"ranges": ["10.0.0.96/27"]}).json["timeouts"]["tcp_s"] == 900
    assert call(web, "GET", "/v1/settings").json["ranges"] == ["10.0.0.96/27"]
    assert problem(call(web, "PUT", "/v1/settings", {"ranges": ["10.0.0.1/27"]}))["field"] == "ranges[0]"
    assert problem(call(web, "PUT", "/v1/settings", {"timeouts": {"x_s": 1}}))["field"] == "timeouts.x_s"


def test_what_is_foreign_is_listed_and_has_no_place(app: Any) -> None:
    (row,) = call(app, "GET", "/v1/foreign").json["foreign"]
    assert (row["key"], row["scheduler"]) == ("tcp/10.9.9.9:80", "sh")
    assert row["destinations"] == [
        {"address": "10.0.0.2", "port": 80, "method": "nat", "weight": 3, "active": 4, "inactive": 0}
    ]
    assert call(app, "GET", "/v1/services").json == {"services": [], "next": None}


def test_adopt_needs_a_name_and_a_key(core: MemoryCore, app: Any) -> None:
    assert problem(call(app, "POST", "/v1/adopt", {"name": "x"}))["field"] == "key"
    assert problem(call(app, "POST", "/v1/adopt", {"name": "x", "key": "tcp/nowhere"}))["field"] == "key"
    assert problem(call(app, "POST", "/v1/adopt", {"name": "x", "key": "tcp/10.9.9.9:80"}))["status"] == 404


def test_status_is_that_of_the_other_room(app: Any) -> None:
    assert call(app, "GET", "/v1/status").json.keys() == call(app, "GET", "/status").json.keys()


def test_an_export_is_imported_whole_and_again_without_change(core: MemoryCore, web: Any) -> None:
    call(web, "PUT", "/v1/settings", {"timeouts": {"udp_s": 60}, "ranges": ["10.0.0.96/27"]})
    file = call(web, "GET", "/v1/export").json
    other = MemoryCore()
    app = app_of(other)
    answer = call(app, "POST", "/v1/import", file)
    assert [(row["service"], row["outcome"]) for row in answer.json["objects"]] == [(None, "changed"), ("web", "created")]
    assert (other.intent.services, other.intent.timeouts) == (core.intent.services, core.intent.timeouts)
    assert call(app, "GET", "/v1/export").json == file
    seen = len(other.seen)
    answer = call(app, "POST", "/v1/import", file)
    assert {row["outcome"] for row in answer.json["objects"]} == {"unchanged"}
    assert len(other.seen) == seen


def test_an_import_changes_adds_and_removes_nothing(core: MemoryCore, web: Any) -> None:
    file = call(web, "GET", "/v1/export").json
    file["services"]["web"]["scheduler"] = "lc"
    file["services"]["web"]["destinations"] = {"d2": {"address": "10.0.0.12", "port": 80}}
    file["services"]["gone"] = {"key": "tcp/10.0.0.3:80", "drain_s": 30}
    call(web, "POST", "/v1/services", WEB | {"name": "other", "port": 81})
    rows = call(web, "POST", "/v1/import", file).json["objects"]
    assert [(row["service"], row["destination"], row["outcome"]) for row in rows] == [
        (None, None, "unchanged"), ("web", None, "changed"), ("web", "d2", "created"), ("gone", None, "skipped"),
    ]  # fmt: skip
    assert list(core.intent.services) == ["web", "other"]
    assert list(core.intent.services["web"].destinations) == ["d1", "d2"]


def broken_files() -> list[tuple[dict[str, Any], str]]:
    good: dict[str, Any] = {"key": "tcp/10.0.0.2:80"}
    unknown = {"key": "tcp/10.0.0.3:80", "scheduler": "none"}
    mapped = {"address": "10.0.0.11", "port": 81, "method": "route"}
    return [
        ({"services": {"a": good}}, "schema"),
        ({"schema": 1, "services": {"a": good, "b": {"key": "tcp/10.0.0.3:x"}}}, "services.b.key"),
        ({"schema": 1, "services": {"a": good, "b": good}}, "services"),
        ({"schema": 1, "services": {"a": good, "b": unknown}}, "services.b.scheduler"),
        ({"schema": 1, "services": {"a": good | {"destinations": {"d": mapped}}}}, "services.a.destinations.d.port"),
        ({"schema": 1, "ranges": ["x"], "services": {"a": good}}, "ranges[0]"),
    ]


@pytest.mark.parametrize(("file", "field"), broken_files(), ids=[field for _, field in broken_files()])
def test_a_file_with_one_wrong_part_is_refused_whole(core: MemoryCore, app: Any, file: Any, field: str) -> None:
    answer = call(app, "POST", "/v1/import", file)
    assert (answer.status, problem(answer)["field"], core.seen) == (422, field, [])


def test_a_clash_of_a_file_with_what_is_there_is_refused_whole(core: MemoryCore, web: Any) -> None:
    seen = len(core.seen)
    services = {"a": {"key": "tcp/10.0.0.2:80"}, "b": {"key": "tcp/10.0.0.1:80"}}
    told = problem(call(web, "POST", "/v1/import", {"schema": 1, "services": services}))
    assert (told["status"], "is service web already" in told["detail"], len(core.seen)) == (409, True, seen)


def test_what_the_door_refuses_of_a_file_refuses_it_whole_and_names_the_object() -> None:
    def refused(command: Command) -> Exception | None:
        assert isinstance(command, Together)
        error = Conflict("10.0.0.2 is in use", "address")
        error.of = "services.b"
        return error

    services = {name: {"key": f"tcp/10.0.0.{n}:80"} for n, name in enumerate("abc", 1)}
    core = RefusingCore(refused)
    told = problem(call(app_of(core), "POST", "/v1/import", {"schema": 1, "services": services}))
    assert (told["status"], told["field"], told["detail"]) == (409, "services.b.address", "services.b: 10.0.0.2 is in use")
    assert core.seen == []


# The whole core: committer, store, control, fake kernel.


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., None]:
    """Runs a scenario with the whole core; it is given that, and a way to ask its API."""

    def run(scenario: Callable[[Whole, Callable[..., Awaitable[Answer]]], Awaitable[None]]) -> None:
        async def main(whole: Whole) -> None:
            app = make_app(whole.bridge, WritePolicy.for_token(TOKEN), whole.daemon.clock)
            await scenario(whole, lambda *words, **more: asyncio.to_thread(call, app, *words, **more))

        Whole(tmp_path).run(main)

    return run


def test_a_service_is_in_the_kernel_when_it_is_answered(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        answer = await ask("POST", "/v1/services", {**WEB, "destinations": {"d1": {"address": "10.0.0.11", "port": 80}}})
        assert answer.status == 201, answer.body
        row = answer.json["status"]["destinations"]["d1"]
        assert (row["weight"], row["wanted"], row["applied"], row["state"]) == (1, 1, True, "up")
        assert w.daemon.weights() == {"10.0.0.11": 1}
        await ask("PATCH", f"{INSIDE}/d1", {"weight": 0})
        assert w.daemon.weights() == {"10.0.0.11": 0}
        answer = await ask("PATCH", ONE, {"scheduler": "wlc"}, HTTP_IF_MATCH='"1"')
        assert problem(answer)["status"] == 412
        answer = await ask("DELETE", ONE, QUERY_STRING="now=1")
        assert (answer.status, w.daemon.ipvs.services()) == (204, [])

    ask(scenario)


def test_an_address_is_allocated_kept_and_given_back(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        body = {"name": "web", "protocol": "tcp", "port": 80}
        assert "no VIP range" in problem(await ask("POST", "/v1/services", body))["detail"]
        await ask("PUT", "/v1/settings", {"ranges": ["10.0.0.96/30"]})
        w.daemon.host.neighbours["10.0.0.97"] = "02:00:00:00:00:07"
        answer = await ask("POST", "/v1/services", body)
        assert (answer.status, answer.json["address"]) == (201, "10.0.0.98")
        again = await ask("POST", "/v1/services", body)
        assert (again.status, again.json) == (200, answer.json)
        answer = await ask("PUT", ONE, {**body, "scheduler": "wlc"})
        assert (answer.status, answer.json["address"], answer.json["scheduler"]) == (200, "10.0.0.98", "wlc")
        told = problem(await ask("POST", "/v1/services", {**body, "name": "b", "address": "10.0.0.97"}))
        assert (told["status"], told["field"], "02:00:00:00:00:07" in told["detail"]) == (409, "address", True)

    ask(scenario)


def test_a_foreign_key_is_a_conflict_that_names_adopt_and_adopt_takes_it(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        w.daemon.ipvs.add_service(WEB_KEY, scheduler="sh")
        w.daemon.ipvs.add_destination(WEB_KEY, "10.0.0.11:80", method="route", weight=4)
        told = problem(await ask("POST", "/v1/services", WEB))
        assert (told["status"], "adopt" in told["detail"], str(WEB_KEY) in told["detail"]) == (409, True, True)
        for status in (201, 200):
            answer = await ask("POST", "/v1/adopt", {"name": "web", "key": str(WEB_KEY)})
            assert (answer.status, answer.json["scheduler"], answer.json["vip"]) == (status, "sh", "external")
        assert (await ask("GET", "/v1/foreign")).json == {"foreign": [], "next": None}
        assert (await ask("POST", f"{ONE}/release")).status == 200
        assert w.daemon.weights() == {"10.0.0.11": 4}
        assert [row["key"] for row in (await ask("GET", "/v1/foreign")).json["foreign"]] == [str(WEB_KEY)]

    ask(scenario)


def test_what_is_not_in_the_kernel_and_on_the_host_in_time_is_202(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        want = w.daemon.host.want
        w.daemon.host.want = lambda wanted: None  # type: ignore[method-assign]
        asked = asyncio.ensure_future(ask("POST", "/v1/services", WEB))
        while "web" not in w.daemon.control.intent.services:
            await asyncio.sleep(0)
        w.daemon.clock.now_s += 10
        w.daemon.control.enter(MembersSeen(()))
        answer = await asked
        assert (answer.status, answer.headers["Location"], answer.json["name"]) == (202, ONE, "web")
        assert 0 < int(answer.headers["Fusis-Generation"]) <= w.daemon.control.snapshot.generation
        w.daemon.host.want = want  # type: ignore[method-assign]
        w.daemon.control.enter(w.daemon.host.seen())
        assert (await ask("PUT", ONE, WEB)).status == 200

    ask(scenario)


def test_a_store_that_cannot_be_written_is_503(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        w.store_error = StoreError("disk full")
        answer = await ask("POST", "/v1/services", WEB)
        assert (problem(answer)["status"], answer.headers["Retry-After"]) == (503, "1")
        assert w.daemon.ipvs.services() == []

    ask(scenario)


def test_a_file_goes_into_the_kernel(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        destinations = {"d1": {"address": "10.0.0.11", "port": 80}}
        services = {f"s{n}": {"key": f"tcp/10.0.1.{n}:80", "destinations": destinations} for n in range(1, 21)}
        answer = await ask("POST", "/v1/import", {"schema": 1, "services": services})
        assert [row["outcome"] for row in answer.json["objects"]] == ["unchanged"] + 20 * ["created"]
        assert (await ask("GET", "/v1/status")).json["revision"] == 1, "one commit"
        assert len(w.daemon.ipvs.services()) == 20
        exported = (await ask("GET", "/v1/export")).json
        assert json.dumps(sorted(exported["services"])) == json.dumps(sorted(services))

    ask(scenario)


def test_a_destination_of_serf_s_is_shown_drained_taken_back_and_taken_over(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        rs1 = f"{INSIDE}/rs1"
        await ask("POST", "/v1/services", WEB_ALONE)
        w.daemon.control.enter(MembersSeen((member(1),)))
        w.daemon.control.enter(ProbeChanged(alone(1), UP))
        await asyncio.sleep(0)
        row = (await ask("GET", rs1)).json
        assert (row["status"]["origin"], row["status"]["state"], row["weight"]) == ("serf", "up", 1)
        assert (await ask("GET", ONE)).json["destinations"] == {}, "an operator named none"
        told = problem(await ask("PATCH", rs1, {"weight": 3}))
        assert (told["status"], "Serf" in told["detail"]) == (409, True)
        assert (await ask("DELETE", rs1, QUERY_STRING="drain_s=30")).status == 202
        assert [row["destination"] for row in (await ask("GET", "/v1/drains")).json["drains"]] == ["rs1"]
        assert (await ask("GET", ONE)).json["status"]["excluded"] == ["rs1"]
        answer = await ask("DELETE", f"{rs1}/drain")
        assert (answer.status, answer.json["status"]["state"]) == (200, "up")
        assert (await ask("DELETE", rs1, QUERY_STRING="now=1")).status == 204
        assert w.daemon.weights() == {}
        unasked = {"address": "10.0.0.11", "port": 80, "weight": 3, "check": {"kind": "none"}}
        answer = await ask("PUT", rs1, unasked)
        assert (answer.status, answer.json["status"]["origin"], w.daemon.weights()) == (201, "operator", {"10.0.0.11": 3})
        assert (await ask("PATCH", rs1, {"weight": 4})).status == 200
        assert (await ask("GET", ONE)).json["status"]["excluded"] == []

    ask(scenario)


def test_of_what_has_drained_nothing_is_left_in_the_status(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        await ask("POST", "/v1/services", WEB_ALONE)
        w.daemon.control.enter(MembersSeen((member(1),)))
        w.daemon.control.enter(ProbeChanged(alone(1), UP))
        await asyncio.sleep(0)
        await ask("DELETE", f"{INSIDE}/rs1", QUERY_STRING="drain_s=5")
        w.daemon.clock.now_s += 6
        w.daemon.control.enter(MembersSeen((member(1),)))
        await asyncio.sleep(0)
        assert w.daemon.weights() == {}
        assert (await ask("GET", "/v1/drains")).json == {"drains": [], "next": None}
        assert (await ask("GET", "/v1/status")).json["drains"] == []

    ask(scenario)


def test_nodes_are_listed_with_what_is_wrong_with_them(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        bad = {"role": "agent", "s:web": "nonsense"}
        w.daemon.control.enter(MembersSeen((member(2, "failed"), member(1), member(3, tags=bad))))
        await asyncio.sleep(0)
        rows = (await ask("GET", "/v1/nodes")).json["nodes"]
        assert [(row["name"], row["status"], row["services"]) for row in rows] == [
            ("rs1", "alive", ["web"]), ("rs2", "failed", ["web"]), ("rs3", "alive", []),
        ]  # fmt: skip
        assert (rows[0]["problems"], rows[0]["missing"], len(rows[2]["problems"])) == ([], False, 1)
        one = (await ask("GET", "/v1/nodes/rs2")).json
        assert {key: one[key] for key in rows[1]} == rows[1] | {"since_s": one["since_s"]}
        assert [event["text"] for event in one["transitions"]] == ["failed at 10.0.0.12"]
        assert problem(await ask("GET", "/v1/nodes/rs9"))["status"] == 404

    ask(scenario)


def test_checks_are_listed_with_what_they_came_to(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        unasked = {"address": "10.0.0.12", "port": 80, "check": {"kind": "none"}}
        rows = {"d1": {"address": "10.0.0.11", "port": 80}, "d2": unasked, "d3": {"address": "10.0.0.13", "port": 80}}
        await ask("POST", "/v1/services", {**WEB, "check": {"kind": "tcp", "path_check": False}, "destinations": rows})
        w.daemon.control.enter(ProbeChanged(alone(1), UP))
        w.daemon.control.enter(ProbeChanged(alone(3), down()))
        await asyncio.sleep(0)
        found = (await ask("GET", "/v1/checks")).json["checks"]
        assert [(row["service"], row["destination"], row["state"], row["reason"], row["path"]) for row in found] == [
            ("web", "d1", "up", "", None), ("web", "d3", "down", "connection refused", None),
        ]  # fmt: skip
        assert found[0]["check"] == {"kind": "tcp", "address": "10.0.0.11", "port": 80}
        page = (await ask("GET", "/v1/checks", QUERY_STRING="limit=1&after=web/d1")).json
        assert (page["checks"], page["next"]) == (found[1:], None)

    ask(scenario)


def test_settings_that_are_left_out_stay_each_timeout_too(web: Any) -> None:
    call(web, "PUT", "/v1/settings", {"timeouts": {"tcp_s": 900, "udp_s": 300}, "ranges": ["10.9.0.0/24"]})
    shown = call(web, "PUT", "/v1/settings", {"timeouts": {"tcp_s": 901}}).json
    assert shown == {"timeouts": {"tcp_s": 901, "tcp_fin_s": 0, "udp_s": 300}, "ranges": ["10.9.0.0/24"]}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/v1/services/web/release", {}), ("PUT", "/v1/settings", {"ranges": []}),
     ("POST", "/v1/pause", {"seconds": 1})],
)  # fmt: skip
def test_what_has_no_revision_refuses_if_match_and_does_nothing(ask: Any, method: str, path: str, body: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        await ask("POST", "/v1/services", WEB)
        before = w.daemon.control.intent
        assert problem(await ask(method, path, body, HTTP_IF_MATCH='"999"'))["status"] == 412
        assert w.daemon.control.intent is before

    ask(scenario)


def test_a_check_that_nobody_can_pass_is_refused(ask: Any) -> None:
    async def scenario(w: Whole, ask: Callable[..., Awaitable[Answer]]) -> None:
        check = {"kind": "http", "method": "HEAD", "body": "ok"}
        found = problem(await ask("POST", "/v1/services", {**WEB, "check": check}))
        assert (found["status"], found["field"]) == (422, "check.body")

    ask(scenario)
