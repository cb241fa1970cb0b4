"""The native API: documents in, documents and how they stand out, refusals that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fusisd.commands import Adopt, CancelDrain, DeleteDestination, DeleteService, Pause, Release
from fusisd.ports import ServiceView
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.v1 import merged
from pyipvs import Protocol, ServiceKey
from tests.fusisd.web_helpers import TOKEN, MemoryCore, call

FOREIGN = ServiceView("", ServiceKey(Protocol.TCP, "10.0.0.9", 80), "lc", 0, True, True, "", ())
WEB = {"key": "tcp/10.0.0.1:80", "scheduler": "wrr"}
ONE = {"address": "10.0.0.11", "port": 80, "weight": 3, "method": "route"}
PROBLEM = "application/problem+json"


@pytest.fixture
def core() -> MemoryCore:
    return MemoryCore((FOREIGN,))


@pytest.fixture
def app(core: MemoryCore) -> Any:
    return make_app(core, WritePolicy.for_token(TOKEN))


@pytest.fixture
def web(app: Any) -> Any:
    assert call(app, "PUT", "/v1/services/web", WEB).status == 201
    assert call(app, "PUT", "/v1/services/web/destinations/d1", ONE).status == 201
    return app


def test_a_service_is_made_and_shown_with_how_it_stands(app: Any) -> None:
    answer = call(app, "POST", "/v1/services", {"name": "web", **WEB, "destinations": {"d1": ONE}})
    assert (answer.status, answer.headers["Location"], answer.headers["Etag"]) == (201, "/v1/services/web", '"1"')
    shown = call(app, "GET", "/v1/services/web").json
    assert shown["key"] == "tcp/10.0.0.1:80"
    assert shown["status"]["revision"] == 1
    one = shown["destinations"]["d1"]
    assert {key: one[key] for key in ONE} == ONE
    assert one["status"]["state"] == "up"
    assert list(call(app, "GET", "/v1/services").json) == ["web"]


def test_the_same_again_is_a_success_that_changes_nothing(web: Any, core: MemoryCore) -> None:
    before = core.intent
    assert call(web, "PUT", "/v1/services/web", WEB).status == 200
    assert call(web, "PUT", "/v1/services/web/destinations/d1", ONE).status == 200
    assert core.intent is before


def test_a_patch_changes_what_it_names(web: Any) -> None:
    answer = call(web, "PATCH", "/v1/services/web", {"scheduler": "lc", "persistence_s": 60})
    assert (answer.status, answer.json["scheduler"], answer.json["persistence_s"]) == (200, "lc", 60)
    assert "d1" in answer.json["destinations"]
    assert "persistence_s" not in call(web, "PATCH", "/v1/services/web", {"persistence_s": None}).json
    answer = call(web, "PATCH", "/v1/services/web/destinations/d1", {"weight": 9})
    assert (answer.json["destinations"]["d1"]["weight"], answer.json["destinations"]["d1"]["method"]) == (9, "route")


def test_a_request_from_an_older_revision_is_412(web: Any) -> None:
    etag = call(web, "GET", "/v1/services/web").headers["Etag"]
    assert call(web, "PATCH", "/v1/services/web", {"scheduler": "lc"}, HTTP_IF_MATCH=etag).status == 200
    for stale in (etag, '"x"'):
        answer = call(web, "PATCH", "/v1/services/web", {"scheduler": "rr"}, HTTP_IF_MATCH=stale)
        assert (answer.status, answer.headers["Content-Type"]) == (412, PROBLEM)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("PUT", "/v1/services/x", {"key": "tcp/10.0.0.2:80", "scheduler": "fair"}, 422, "scheduler"),
        ("PUT", "/v1/services/x", {"key": "nonsense"}, 422, "key"),
        ("PUT", "/v1/services/x", {"key": "tcp/10.0.0.2:80", "colour": "red"}, 422, "colour"),
        ("PUT", "/v1/services/x", {"key": "tcp/10.0.0.1:80"}, 409, None),
        ("POST", "/v1/services", WEB, 422, "name"),
        ("PATCH", "/v1/services/nosuch", {}, 404, None),
        ("PATCH", "/v1/services/web", {"destinations": {}}, 422, "destinations"),
        ("PUT", "/v1/services/web/destinations/d2", {**ONE, "port": 81}, 422, None),
        ("PUT", "/v1/services/web/destinations/d2", ONE, 409, None),
        ("PATCH", "/v1/services/web/destinations/rs1", {"weight": 1}, 404, None),
        ("POST", "/v1/pause", {"seconds": "long"}, 422, "seconds"),
        ("PUT", "/v1/settings", {"colour": 1}, 422, "colour"),
        ("PUT", "/v1/settings", {"ranges": ["10.0.0.0/33"]}, 422, None),
        ("POST", "/v1/adopt", {"name": "x", "key": "?"}, 422, "key"),
    ],
)
def test_what_cannot_be_is_a_problem_that_names_the_field(
    web: Any, method: str, path: str, body: dict[str, Any], status: int, field: str | None
) -> None:
    answer = call(web, method, path, body)
    assert (answer.status, answer.headers["Content-Type"]) == (status, PROBLEM), answer.body
    assert answer.json["status"] == status
    assert answer.json["detail"]
    if field is not None:
        assert field in answer.json["field"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff", b"[" * 50_000])
def test_a_body_that_is_no_document_is_400(web: Any, body: bytes) -> None:
    assert call(web, "PUT", "/v1/services/x", body).status == 400


def test_deleting_drains_unless_it_is_to_be_now(web: Any, core: MemoryCore) -> None:
    call(web, "DELETE", "/v1/services/web/destinations/d1", QUERY_STRING="drain_s=5")
    assert core.seen[-1][0] == DeleteDestination("web", "d1", 5.0)
    assert [row["destination"] for row in call(web, "GET", "/v1/drains").json] == ["d1"]
    assert call(web, "DELETE", "/v1/services/web/destinations/d1/drain").status == 200
    assert core.seen[-1][0] == CancelDrain("web", "d1")
    assert call(web, "GET", "/v1/drains").json == []
    assert call(web, "DELETE", "/v1/services/web").status == 202
    assert core.seen[-1][0] == DeleteService("web", 60.0)
    assert call(web, "GET", "/v1/services/web").json["status"]["draining"] is True
    assert call(web, "DELETE", "/v1/services/web", QUERY_STRING="now=1").status == 200
    assert call(web, "GET", "/v1/services/web").status == 404
    assert call(web, "DELETE", "/v1/services/web", QUERY_STRING="drain_s=soon").status == 422


def test_what_is_foreign_is_shown_and_adopted_and_released(web: Any, core: MemoryCore) -> None:
    (row,) = call(web, "GET", "/v1/foreign").json
    assert (row["key"], row["scheduler"]) == ("tcp/10.0.0.9:80", "lc")
    assert call(web, "POST", "/v1/adopt", {"name": "old", "key": "tcp/10.0.0.8:80"}).status == 404
    assert call(web, "POST", "/v1/services/web/release").json == {"released": "web"}
    assert core.seen[-1][0] == Release("web")
    assert call(web, "POST", "/v1/pause", {"seconds": 30}).status == 200
    assert core.seen[-1][0] == Pause(30.0)
    assert Adopt("old", ServiceKey.parse("tcp/10.0.0.8:80")) not in [seen for seen, _ in core.seen]


def test_settings_are_changed_one_by_one(web: Any) -> None:
    assert call(web, "PUT", "/v1/settings", {"ranges": ["10.1.0.0/28"]}).json["ranges"] == ["10.1.0.0/28"]
    answer = call(web, "PUT", "/v1/settings", {"timeouts": {"tcp_s": 600}})
    assert answer.json == {"timeouts": {"tcp_s": 600}, "ranges": ["10.1.0.0/28"]}
    assert call(web, "GET", "/v1/settings").json == answer.json


def test_what_is_exported_is_imported_elsewhere_and_again_changes_nothing(web: Any, core: MemoryCore) -> None:
    call(web, "PUT", "/v1/settings", {"ranges": ["10.1.0.0/28"]})
    file = call(web, "GET", "/v1/export").json
    other = MemoryCore()
    there = make_app(other, WritePolicy.for_token(TOKEN))
    assert call(there, "POST", "/v1/import", file).json == {"web": "made"}
    assert call(there, "GET", "/v1/export").json == file
    before = other.intent
    assert call(there, "POST", "/v1/import", file).json == {"web": "as in the file"}
    assert other.intent is before
    broken = json.loads(json.dumps(file))
    broken["services"]["web"]["scheduler"] = 7
    assert call(there, "POST", "/v1/import", broken).status == 422
    assert other.intent is before


def test_a_merge_patch_is_that_of_the_rfc() -> None:
    """Rows of RFC 7396, appendix A."""
    rows: list[tuple[Any, Any, Any]] = [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": "foo"}, ["c"], ["c"]),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ]
    for document, patch, result in rows:
        assert merged(document, patch) == result
