"""What goes wrong in this room, as problem details (RFC 9457): a conflict is 409 here, and one field is named.

Does not: catch anything (the app does) or log.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from bottle import HTTPResponse

from fusisd import errors
from fusisd.errors import FusisError, Refused
from fusisd.web.compat import render
from fusisd.web.errors import STATUS as SEED_STATUS
from fusisd.web.errors import Unauthorized, status_of

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
STATUS: Mapping[type[FusisError], int] = {**SEED_STATUS, errors.Conflict: 409}

_OUR_WORDS = {"persistence": "persistence_s", "threshold": "upper_threshold"}
"""What fusisd.state calls a part, and the documents' word for it."""


def refusal(error: FusisError) -> HTTPResponse:
    """The answer to a request that failed so."""
    status = status_of(error, STATUS)
    headers = {"WWW-Authenticate": 'Bearer realm="fusisd"'} if isinstance(error, Unauthorized) else {}
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return problem(status, str(error), field_of(error), headers)


def problem(status: int, detail: str, field: str | None = None, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    """An answer with these problem details."""
    headers = {"Content-Type": PROBLEM_TYPE, **(headers or {})}
    return HTTPResponse(document(status, detail, field), status, headers=headers)


def document(status: int, detail: str, field: str | None = None) -> bytes:
    """Problem details of no particular type; `field` is the place in the request that is to blame."""
    title = HTTPStatus(status).phrase
    told: dict[str, object] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return render(told if field is None else {**told, "field": field})


def field_of(error: FusisError) -> str | None:
    """The place that is to blame, None when it is not one."""
    found = error.field if isinstance(error, Refused) else None
    return None if found is None else _OUR_WORDS.get(found, found)
