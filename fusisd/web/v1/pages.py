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


def cut(rows: Iterable[tuple[str, T]], after: str = "", limit: int | None = None) -> tuple[list[tuple[str, T]], str | None]:
    """Of the rows (each with its name) those that come after a name, at most `limit` (None: all), and `next`."""
    left = sorted((row for row in rows if row[0] > after), key=lambda row: row[0])
    chosen = left if limit is None else left[:limit]
    return chosen, chosen[-1][0] if len(chosen) < len(left) else None


def page(
    member: str,
    rows: Iterable[tuple[str, T]],
    shown: Callable[[T], dict[str, Any]],
    after: str = "",
    limit: int | None = None,
) -> dict[str, Any]:
    """The page of these rows, under the key `member`."""
    chosen, following = cut(rows, after, limit)
    return {member: [shown(row) for _, row in chosen], "next": following}
