"""What goes wrong between HTTP and the core, and the one table that turns our exceptions into status codes.

The dialect of `/services` is that of 2016: a conflict is 422 there; in `/v1/` it is 409 (v1/problem.py).
Does not: catch anything (the app does) or log.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusisd import errors
from fusisd.errors import FusisError


class BadBody(FusisError):
    """The body is no JSON object that could be understood."""


class MissingFields(FusisError):
    """Required fields are absent or zero; `fields` are their names as the client writes them."""

    def __init__(self, fields: list[str]) -> None:
        """At least one field."""
        super().__init__("required: " + ", ".join(fields))
        self.fields = fields


class UnsupportedMediaType(FusisError):
    """The body says that it is something else than JSON."""


class Unauthorized(FusisError):
    """A write without the right token."""


class Forbidden(FusisError):
    """A write that is not accepted this way, whatever token it carries."""


STATUS: Mapping[type[FusisError], int] = {
    BadBody: 400,
    Unauthorized: 401,
    Forbidden: 403,
    errors.NotFound: 404,
    UnsupportedMediaType: 415,
    MissingFields: 422,
    errors.Refused: 422,
    errors.Invalid: 422,
    errors.Conflict: 422,
    errors.Stale: 412,
    errors.Unavailable: 503,
    errors.StoreError: 503,
}


def status_of(error: FusisError, table: Mapping[type[FusisError], int] = STATUS) -> int:
    """The status code of an exception of ours; 500 for one that no client should ever cause."""
    return next((table[kind] for kind in type(error).__mro__ if kind in table), 500)
