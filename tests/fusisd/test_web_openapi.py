"""The OpenAPI document: it is one, it is of every route, and what the application answers is what it says."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
from bottle import Bottle
from openapi_spec_validator import OpenAPIV31SpecValidator

from fusisd.web.app import make_app, native_routes
from fusisd.web.auth import WritePolicy
from fusisd.web.tokens import Tokens
from fusisd.web.v1.openapi import document
from fusisd.web.v1.shapes import COMPONENTS
from tests.fusisd.web_helpers import TOKEN, Answer, MemoryCore, call


@pytest.fixture
def app() -> Bottle:
    return make_app(MemoryCore(), WritePolicy.for_token(TOKEN))


@pytest.fixture
def served(app: Bottle) -> dict[str, Any]:
    return call(app, "GET", "/v1/openapi.json").json  # type: ignore[no-any-return]


def test_it_is_an_openapi_document_and_made_of_the_routes(served: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(served).validate()
    assert served == document(native_routes(MemoryCore(), float, Tokens.of(TOKEN)))


def test_every_route_is_in_it_and_the_reverse(app: Bottle, served: dict[str, Any]) -> None:
    routes = {(route.method, re.sub("<([a-z]+)>", r"{\1}", route.rule)) for route in app.routes}
    native = {(method, path) for method, path in routes if path.startswith("/v1/") and method != "HEAD"}
    described = {(method.upper(), path) for path, methods in served["paths"].items() for method in methods}
    assert described == native
    assert len(native) > 30


def test_every_operation_says_what_it_is_for_and_every_component_is_used(served: dict[str, Any]) -> None:
    operations = [one for methods in served["paths"].values() for one in methods.values()]
    assert [one["operationId"] for one in operations if not one["summary"]] == []
    used = set(re.findall(r"'#/components/schemas/(\w+)'", str(served)))
    assert used == set(COMPONENTS)


def conforms(served: dict[str, Any], path: str, answer: Answer, method: str = "get") -> None:
    """Whether an answer is as the document says."""
    told = served["paths"][path][method]["responses"][str(answer.status)]
    for header, said in told.get("headers", {}).items():
        assert header.title() in answer.headers or not said["required"], header
    (content,) = [one for kind, one in told["content"].items() if kind == answer.headers["Content-Type"]]
    jsonschema.Draft202012Validator({**content["schema"], "components": served["components"]}).validate(answer.json)


READS = ("services", "drains", "foreign", "events", "nodes", "checks", "statistics", "settings", "status", "export")


@pytest.mark.parametrize("path", [f"/v1/{name}" for name in (*READS, "openapi.json")])
def test_reads_answer_as_it_says(app: Bottle, served: dict[str, Any], path: str) -> None:
    conforms(served, path, call(app, "GET", path))
    conforms(served, path, call(app, "GET", path, QUERY_STRING="x=1"))


def test_a_service_and_its_destination_are_as_it_says(app: Bottle, served: dict[str, Any]) -> None:
    body = {"name": "web", "protocol": "tcp", "address": "10.0.0.1", "port": 80, "check": {"kind": "http"}}
    conforms(served, "/v1/services", call(app, "POST", "/v1/services", body), "post")
    inside = "/v1/services/{name}/destinations"
    for status in (201, 200):
        answer = call(app, "POST", inside.format(name="web"), {"name": "d1", "address": "10.0.0.11", "port": 80})
        assert answer.status == status
        conforms(served, inside, answer, "post")
    for more in ("", "/destinations", "/why", "/statistics"):
        conforms(served, "/v1/services/{name}" + more, call(app, "GET", "/v1/services/web" + more))
    for more in ("", "/why"):
        answer = call(app, "GET", "/v1/services/web/destinations/d1" + more)
        conforms(served, "/v1/services/{name}/destinations/{destination}" + more, answer)
    conforms(served, "/v1/services/{name}", call(app, "DELETE", "/v1/services/web"), "delete")
    conforms(served, "/v1/drains", call(app, "GET", "/v1/drains"))
