"""The rooms put together: status, health, and JSON for everything that goes wrong."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from fusisd import errors
from fusisd.commands import Command
from fusisd.errors import Conflict, FusisError, Invalid, NotFound, Refused, StoreError, Unavailable
from fusisd.ports import Snapshot
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.errors import STATUS, status_of
from tests.fusisd.web_helpers import JSON, SERVICE, TOKEN, MemoryCore, call

POLICY = WritePolicy.for_token(TOKEN)


class FailingCore(MemoryCore):
    """A core whose every command fails in the same way."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def submit(self, command: Command, who: str) -> Snapshot:
        raise self.error


def app_of(core: MemoryCore) -> Any:
    return make_app(core, POLICY, clock=lambda: 12.5)


def test_status_is_what_the_core_published_with_its_age() -> None:
    core = MemoryCore()
    core.published = Snapshot(7, 12.25, tell_status=lambda: {"ok": False, "problems": ["serf: gone"]})
    answer = call(app_of(core), "GET", "/status")
    assert answer.headers["Content-Type"] == JSON
    assert answer.body == b'{"ok":false,"problems":["serf: gone"],"generation":7,"age_ms":250.0}\n'


def test_healthz_is_well() -> None:
    answer = call(app_of(MemoryCore()), "GET", "/healthz")
    assert (answer.status, answer.body) == (200, b'{"ok":true}\n')


def test_a_stuck_loop_is_not_well_and_a_withdrawn_balancer_is_not_ready() -> None:
    core = MemoryCore()
    app = app_of(core)
    assert call(app, "GET", "/readyz").status == 200
    core.published = replace(core.published, tell_status=lambda: {"ok": False, "withdrawn": True})
    answer = call(app, "GET", "/readyz")
    assert (answer.status, answer.json["error"]) == (503, "this balancer is withdrawn")
    assert call(app, "GET", "/healthz").status == 200
    core.published = replace(core.published, at_s=12.5 - 60, tell_status=lambda: {"ok": True})
    for path in ("/healthz", "/readyz"):
        answer = call(app, "GET", path)
        assert (answer.status, "published nothing" in answer.json["error"]) == (503, True)


@pytest.mark.parametrize("path", ["/services", "/status", "/healthz"])
def test_head_is_get_without_the_body(path: str) -> None:
    app = app_of(MemoryCore())
    get, head = call(app, "GET", path), call(app, "HEAD", path)
    assert head.status == 200
    assert head.body == b""
    assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(get.body))


@pytest.mark.parametrize("path", ["/index.html", "/service", "/services/", "/services/a/b", "/v0/x", "//services"])
def test_an_unknown_route_is_404_json(path: str) -> None:
    answer = call(app_of(MemoryCore()), "GET", path)
    assert (answer.status, answer.headers["Content-Type"]) == (404, JSON)
    assert list(answer.json) == ["error"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/services", "GET,HEAD,POST"),
        ("POST", "/services/web", "DELETE,GET,HEAD"),
        ("GET", "/services/web/destinations", "POST"),
        ("POST", "/status", "GET,HEAD"),
        ("OPTIONS", "/healthz", "GET,HEAD"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(method: str, path: str, allow: str) -> None:
    answer = call(app_of(MemoryCore()), method, path)
    assert (answer.status, answer.headers["Content-Type"]) == (405, JSON)
    assert answer.headers["Allow"] == allow
    assert list(answer.json) == ["error"]


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (NotFound("no such thing"), 404, b'{"error":"no such thing"}\n'),
        (Conflict("there already"), 422, b'{"error":"there already"}\n'),
        (Unavailable("stopping"), 503, b'{"error":"stopping"}\n'),
        (Invalid("is odd", "address"), 422, b'{"errors":{"Host":"is odd"}}\n'),
        (Invalid("is odd", "method"), 422, b'{"errors":{"Mode":"is odd"}}\n'),
        (Invalid("is odd", "unheard of"), 422, b'{"errors":{"unheard of":"is odd"}}\n'),
        (Invalid("is odd"), 422, b'{"error":"is odd"}\n'),
        (StoreError("disk full"), 503, b'{"error":"disk full"}\n'),
    ],
)
def test_each_refusal_of_the_core_has_its_status(error: Exception, status: int, body: bytes) -> None:
    answer = call(app_of(FailingCore(error)), "POST", "/services", SERVICE)
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (status, JSON, body)


def test_a_bug_is_500_without_its_inside_and_logged_with_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = call(app_of(FailingCore(ZeroDivisionError("inside"))), "POST", "/services", SERVICE)
    assert (answer.status, answer.json) == (500, {"error": "internal error; see fusisd's log"})
    assert "method=POST path=/services" in caplog.text
    assert "ZeroDivisionError: inside" in caplog.text


def test_every_refusal_that_the_daemon_knows_has_a_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Refused)]
    assert len(kinds) >= 5
    assert all(kind in STATUS for kind in kinds)
    assert status_of(FusisError("of no known kind")) == 500
