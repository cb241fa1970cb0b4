"""The application: the rooms put together, the guard before every handler, JSON for all that goes wrong.

Does not: know a route's meaning; rooms bring their routes, errors.py the status codes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from bottle import Bottle, HTTPError, HTTPResponse, request, response

from fusisd.errors import FusisError, Refused
from fusisd.ports import Core
from fusisd.web.auth import WritePolicy
from fusisd.web.compat import FIELD_NAMES, JSON_TYPE, Compat, json_response, render
from fusisd.web.errors import MissingFields, Unauthorized, status_of
from fusisd.web.http1 import RETRY_AFTER_S
from fusisd.web.metrics import Metrics
from fusisd.web.page.room import StatusPage
from fusisd.web.refusals import Refusals
from fusisd.web.requests import Requests
from fusisd.web.status import Status
from fusisd.web.tokens import Tokens
from fusisd.web.v1 import problem
from fusisd.web.v1.checks import Checks
from fusisd.web.v1.events import Events
from fusisd.web.v1.files import Files
from fusisd.web.v1.nodes import Nodes
from fusisd.web.v1.openapi import with_document
from fusisd.web.v1.routes import Route
from fusisd.web.v1.services import Services
from fusisd.web.v1.statistics import StatisticsRoom
from fusisd.web.v1.table import Table
from fusisd.web.v1.tokens import TokensRoom

log = logging.getLogger(__name__)

_REQUIRED = "non zero value required"  # the words of 2016's govalidator


def make_app(core: Core, policy: WritePolicy, clock: Callable[[], float] = time.monotonic) -> Bottle:
    """The WSGI application over `core`; `clock` is the one that the snapshots' times are of."""
    app = Bottle()
    app.default_error_handler = _error_page
    requests = Requests(clock)
    requests.watch(app)
    refusals = Refusals(clock)
    seed, native = _Dialect(_refusal, _failure), _Dialect(problem.refusal, partial(problem.problem, 500))
    plain = (Compat(core), Status(core, clock), Metrics(core, requests, clock), StatusPage(core, clock))
    rows = [(*row, seed) for room in plain for row in room.routes()]
    routes = native_routes(core, clock, policy.tokens)
    rows += [(route.method, route.path, partial(route.answer, core), native) for route in routes]
    for method, path, handler, dialect in rows:
        # HEAD by name, so that a 405 lists it under Allow
        app.route(path, ["GET", "HEAD"] if method == "GET" else method, _guarded(handler, policy, dialect, refusals))
    return app


def native_routes(core: Core, clock: Callable[[], float], tokens: Tokens) -> list[Route]:
    """Every route of the native API, that of its document among them."""
    timed = (Table(core, clock), StatisticsRoom(core, clock))
    rooms = (Services(core), *timed, Events(core), Nodes(core), Checks(core), Files(core), TokensRoom(tokens, core))
    return with_document([route for room in rooms for route in room.routes()])


class _Dialect(NamedTuple):
    """How a room words what goes wrong: a refusal, and a bug of ours."""

    refusal: Callable[[FusisError], HTTPResponse]
    failure: Callable[[str], HTTPResponse]


def _guarded(
    handler: Callable[..., object], policy: WritePolicy, dialect: _Dialect, refusals: Refusals
) -> Callable[..., object]:
    """The handler behind the policy, with our exceptions turned into answers."""

    def call(**names: str) -> object:
        try:
            request.environ["fusis.who"] = policy.check(request.environ)
            return handler(**names)
        except FusisError as error:
            status = status_of(error)
            if status == 500:
                log.error("web request failed method=%s path=%s reason=%s", request.method, request.path, error)
            elif status in (401, 403):
                refusals.note(str(request.environ.get("fusis.peer", "")), request.method, request.path, status)
            return dialect.refusal(error)
        except Exception:  # edge 3 of 3: a bug of ours is logged, and counted as an answer 500 (requests.py)
            log.exception("web request failed method=%s path=%s", request.method, request.path)
            return dialect.failure("internal error; see fusisd's log")

    return call


def _refusal(error: FusisError) -> HTTPResponse:
    headers = {"WWW-Authenticate": 'Bearer realm="fusisd"'} if isinstance(error, Unauthorized) else {}
    status = status_of(error)
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return json_response(render(_explained(error)), status, headers)


def _failure(sentence: str) -> HTTPResponse:
    return json_response(render({"error": sentence}), 500)


def _explained(error: FusisError) -> dict[str, Any]:
    """`{"errors": {field: sentence}}` when single fields are to blame, else `{"error": sentence}`."""
    if isinstance(error, MissingFields):
        return {"errors": dict.fromkeys(sorted(error.fields), _REQUIRED)}
    if isinstance(error, Refused) and error.field is not None:
        return {"errors": {FIELD_NAMES.get(error.field, error.field): str(error)}}
    return {"error": str(error)}


def _error_page(error: HTTPError) -> bytes:
    """What Bottle answers by itself (404, 405, 500) as JSON; the headers that it set (Allow) stay."""
    if request.path.startswith("/v1/"):
        response.content_type = problem.PROBLEM_TYPE
        return problem.document(error.status_code, str(error.body))
    response.content_type = JSON_TYPE
    return render({"error": str(error.body)})
