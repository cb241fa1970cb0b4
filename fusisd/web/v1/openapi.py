"""The OpenAPI 3.1 document of this room, made of its routes; and the route that serves it.

Does not: know a route that is not in the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from bottle import HTTPResponse

from fusisd.documents import NAME
from fusisd.fields import Schema
from fusisd.web.compat import JSON_TYPE, json_response, render
from fusisd.web.v1 import shapes
from fusisd.web.v1.asked import JSON
from fusisd.web.v1.problem import PROBLEM_TYPE
from fusisd.web.v1.routes import GENERATION, Route

VERSION = "1"
"""Of the API, as in the paths."""

_IN_PATH = re.compile("<([a-z]+)>")
_SAFE = ("GET", "HEAD")
_NAMES: Mapping[str, Schema] = {"name": NAME.schema, "destination": NAME.schema, "node": shapes.NODE_NAME}
_REFUSED_BY_ALL = (400, 422, 503)
_REFUSED_CHANGES = (401, 403, 409)
_REFUSED_BODIES = (411, 413, 415)
_TAG = {"description": "the revision of the service's last commit", "schema": {"type": "string"}}
_PLACE = {"description": "where it is", "required": True, "schema": {"type": "string"}}
_GENERATION = {"description": "that of the status which this tells of", "required": False, "schema": {"type": "string"}}
_PRECONDITIONS = {
    "If-Match": "only from this revision (an ETag), else 412",
    "If-None-Match": "`*`: only when there is none yet, else 412",
}


def with_document(routes: Sequence[Route]) -> list[Route]:
    """These routes, and one more that serves the document of all of them."""

    def show_openapi() -> HTTPResponse:
        """This document."""
        return json_response(rendered)

    whole = [*routes, Route("GET", "/v1/openapi.json", show_openapi, {200: shapes.ANY_OBJECT})]
    rendered = render(document(whole))
    return whole


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(path_of(route), {})[route.method.lower()] = _operation(route, routes)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fusis", "version": VERSION, "summary": "An IPVS load balancer", "license": _LICENSE},
        "paths": paths,
        "components": {
            "schemas": {name: _referring(schema, whole=True) for name, schema in shapes.COMPONENTS.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": _TOKEN}},
        },
    }


_LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
_TOKEN = "over TCP; the Unix socket needs none"


def path_of(route: Route) -> str:
    """The route's path as OpenAPI writes it."""
    return _IN_PATH.sub(r"{\1}", route.path)


def _operation(route: Route, routes: Sequence[Route]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "parameters": list(_parameters(route)),
        "responses": {str(status): _answer(route, status, schema) for status, schema in _answers(route).items()}
        | {str(status): _refusal(status) for status in sorted(_refusals(route))},
    }
    if route.body is not None:
        content = {kind: {"schema": _referring(route.body.reader.schema)} for kind in route.body.media_types}
        shown["requestBody"] = {"required": True, "content": content}
    if 201 in route.answers:
        shown["responses"]["201"]["links"] = _links(route, routes)
    if route.method not in _SAFE:
        shown["security"] = [{"token": []}]
    return shown


def _links(route: Route, routes: Sequence[Route]) -> dict[str, Any]:
    """What can be asked of the object that this route makes, in its place or below it."""
    inside = route.path.count("<")
    place = route.path if route.method == "PUT" else f"{route.path}/<{('name', 'destination')[inside]}>"
    names = {name: f"$request.path.{name}" for name in _IN_PATH.findall(place)}
    if route.method == "POST":
        names[list(names)[-1]] = "$response.body#/name"
    below = [one for one in routes if one.path.startswith(place) and one.path.count("<") == len(names)]
    return {one.handler.__name__: {"operationId": one.handler.__name__, "parameters": names} for one in below}


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = _IN_PATH.findall(route.path)
    names = [{"name": name, "in": "path", "required": True, "schema": _NAMES[name]} for name in in_path]
    query = [{"name": name, "in": "query", "schema": reader.schema} for name, reader in route.asks.items()]
    heeds = _PRECONDITIONS if route.tagged and route.method not in _SAFE else {}
    headers = [
        {"name": name, "in": "header", "description": said, "schema": {"type": "string"}} for name, said in heeds.items()
    ]
    return [*names, *query, *headers]


def _answers(route: Route) -> Mapping[int, Schema | None]:
    """What it may answer: 200 is also what it would do, 202 that it is not in the kernel and on the host yet."""
    if route.method in _SAFE or route.path == "/v1/plan":
        return route.answers
    done = route.answers.get(200)
    found: dict[int, Schema | None] = {**route.answers}
    if route.tells:
        found[200] = shapes.PLAN if done is None else {"anyOf": [done, shapes.PLAN]}
    return {202: done, **found}


def _answer(route: Route, status: int, schema: Schema | None) -> dict[str, Any]:
    tag = {**_TAG, "required": status != 200 or not route.tells}
    headers: dict[str, Any] = {"ETag": tag} if route.tagged and schema is not None else {}
    headers |= {"Location": _PLACE} if status == 201 else {}
    headers |= {GENERATION: _GENERATION} if status == 202 else {}
    shown: dict[str, Any] = {"description": HTTPStatus(status).phrase, "headers": headers}
    return shown if schema is None else {**shown, "content": {JSON_TYPE: {"schema": _referring(schema)}}}


def _refusals(route: Route) -> set[int]:
    found = {*_REFUSED_BY_ALL, *route.refusals}
    found |= {404} if "<" in route.path else set()
    found |= {*_REFUSED_CHANGES} if route.method not in _SAFE else set()
    found |= {*_REFUSED_BODIES} if route.body is not None else set()
    return found | ({412} if route.method not in _SAFE else set())


def _refusal(status: int) -> dict[str, Any]:
    content = {PROBLEM_TYPE: {"schema": _referring(shapes.PROBLEM)}}
    if status in _UNREAD:
        content[JSON] = {"schema": shapes.REFUSED_UNREAD}
    return {"description": HTTPStatus(status).phrase, "content": content}


_UNREAD = (400, 411, 413)
"""May be answered by the server itself, which knows no paths."""


def _referring(schema: Any, whole: bool = False) -> Any:
    """The schema with references to components in it; `whole`: it is one itself."""
    name = None if whole else _NAMED.get(id(schema))
    if name is not None:
        return {"$ref": f"#/components/schemas/{name}"}
    if isinstance(schema, Mapping):
        return {key: _referring(value) for key, value in schema.items()}
    return [_referring(item) for item in schema] if isinstance(schema, list) else schema


_NAMED = {id(schema): name for name, schema in shapes.COMPONENTS.items()}
