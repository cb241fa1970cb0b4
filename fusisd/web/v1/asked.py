"""What a request asks: its body as strict JSON, its query, its preconditions (RFC 9110, section 13).

Does not: know what a field means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bottle import request

from fusisd.errors import Invalid, Stale
from fusisd.fields import Reader, parsed
from fusisd.web.errors import BadBody, UnsupportedMediaType

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"


def json_object(*media_types: str) -> dict[str, Any]:
    """The request's body. Raises BadBody, UnsupportedMediaType."""
    environ = request.environ
    said = str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
    accepted = media_types or (JSON,)
    if said not in ("", *accepted):
        raise UnsupportedMediaType(f"the body must be {accepted[0]}, not {said}; set the Content-Type header")
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    try:
        value = parsed(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadBody("the body is not UTF-8") from None
    except Invalid as error:
        raise BadBody(f"the body is {error}") from None
    if not isinstance(value, dict):
        raise BadBody("the body must be a JSON object")
    return value


def merged(document: Any, patch: Any) -> Any:
    """The document after a merge patch (RFC 7396): null takes a member out; the document itself is left alone."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def query(known: Mapping[str, Reader[Any]]) -> dict[str, Any]:
    """What the query's parameters mean. Raises Invalid, also for one that is not known or stands twice: a misspelt one must
    not be lost."""
    found: dict[str, Any] = {}
    for name, value in request.query.allitems():
        if name not in known or name in found:
            raise Invalid(f"query parameter {name!r} {'stands twice' if name in found else 'is not known'}", name)
        found[name] = known[name](_utf8(value, name), name)
    return found


def _utf8(value: str, name: str) -> str:
    """Bottle leaves a query's bytes as they came, one letter each (PEP 3333)."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid(f"query parameter {name} is not UTF-8", name) from None


def etag(revision: int) -> str:
    """The entity tag of a service at this revision, and of what is in it."""
    return f'"{revision}"'


def expected_revision(name: str, revision: int | None) -> int | None:
    """The revision that a change is made from when If-Match says one, else None; `revision` None: there is none such.

    Raises Stale when If-Match or If-None-Match are not fulfilled.
    """
    environ: Mapping[str, Any] = request.environ
    match, none_match = environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH")
    if none_match is not None and revision is not None and _names(none_match, revision):
        raise Stale(f"{name} exists already, at revision {revision}")
    if match is None:
        return None
    if revision is None:
        raise Stale(f"there is no {name}")
    if not _names(match, revision):
        raise Stale(f"{name} was changed meanwhile: it is at revision {revision}")
    return None if match.strip() == "*" else revision


def _names(header: str, revision: int) -> bool:
    return header.strip() == "*" or etag(revision) in (tag.strip() for tag in header.split(","))
