"""From a request's bytes to a JSON object that has one meaning only.

Keys are read without regard to case, as Go's decoder does; what two readers could understand differently (a
key twice, NaN, another encoding) is refused.
Does not: know what the fields mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fusisd.web.errors import BadBody, UnsupportedMediaType

Fields = Mapping[str, Any]
"""A JSON object, keys in lower case."""


def json_object(environ: Mapping[str, Any]) -> dict[str, Any]:
    """The request's body as an object with keys in lower case. Raises BadBody, UnsupportedMediaType."""
    media_type = str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
    if media_type not in ("", "application/json"):
        raise UnsupportedMediaType(
            f"the body must be application/json, not {media_type}; set the Content-Type header"
        )
    size = int(environ.get("CONTENT_LENGTH") or 0)
    return parse(environ["wsgi.input"].read(size))


def parse(body: bytes) -> dict[str, Any]:
    """The object in `body`, keys in lower case. Raises BadBody."""
    if not body.strip():
        raise BadBody("the body is empty; a JSON object wanted")
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_without_twins, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise BadBody("the body is not UTF-8") from None
    except RecursionError:
        raise BadBody("the body is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and int() for thousands of digits
        raise BadBody(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadBody("the body must be a JSON object")
    return value


def text(fields: Fields, name: str) -> str:
    """The text of this field, "" when it is absent or null. Raises BadBody for another type."""
    value = fields.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadBody(f"{name} must be a text")
    return value


def number(fields: Fields, name: str) -> int | None:
    """The whole number of this field, None when it is absent or null. Raises BadBody for another type."""
    value = fields.get(name.lower())
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise BadBody(f"{name} must be a whole number")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key.lower() in fields:
            raise BadBody(f"key {key!r} appears twice (upper and lower case are the same)")
        fields[key.lower()] = value
    return fields


def _no_constant(word: str) -> Any:
    raise BadBody(f"{word} is not JSON")
