"""Collections in pages, the same everywhere: `?after=NAME&limit=N`, and `next`, the `after` of the next page or null.

A cursor is the name of the last row that was seen, and rows are in the order of their names: what comes and goes between
two pages moves no other row.
Does not: keep anything between two requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fusisd.fields import Reader, text, whole
from fusisd.web.v1.routes import in_query

T = TypeVar("T")

MOST = 1000
PAGED: dict[str, Reader[Any]] = {"after": text, "limit": in_query(whole(1, MOST))}
"""The query of a collection."""


def page(
    member: str,
    rows: Iterable[tuple[str, T]],
    shown: Callable[[T], dict[str, Any]],
    after: str = "",
    limit: int | None = None,
) -> dict[str, Any]:
    """The rows (each with its name) that come after a name, at most `limit` (None: all), under the key `member`."""
    left = sorted((row for row in rows if row[0] > after), key=lambda row: row[0])
    chosen = left if limit is None else left[:limit]
    return {member: [shown(row) for _, row in chosen], "next": chosen[-1][0] if len(chosen) < len(left) else None}
