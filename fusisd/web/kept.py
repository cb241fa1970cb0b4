"""Lists of services as JSON, rendered once for all who read the same.

A view is frozen, so what was rendered of it holds as long as it does. Between two snapshots mostly few views change: only
these are rendered anew, by one worker while the others wait for it, and the whole list is put together once for all views
that were published together. What is kept is of the views that were read last, and no more.
Does not: know what a view looks like, or read the core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from fusisd.ports import ServiceView

Views = tuple[ServiceView, ...]


class KeptList:
    """One room's list of services: `rendered` makes a view's JSON, of nothing but the view; `chosen` says which views are in
    the list, in its order; `head` and `tail` go around it."""

    def __init__(
        self,
        rendered: Callable[[ServiceView], bytes],
        chosen: Callable[[Views], Iterable[ServiceView]],
        head: bytes,
        tail: bytes,
    ) -> None:
        """Nothing is kept yet."""
        self._rendered, self._chosen, self._around = rendered, chosen, (head, tail)
        self._lock = threading.Lock()
        self._rows: dict[int, tuple[ServiceView, bytes]] = {}  # by identity: a view that is kept keeps its number
        self._whole: tuple[Views | None, bytes] = (None, b"")

    def whole(self, views: Views) -> bytes:
        """The list of these views, as they were published."""
        of, body = self._whole  # replaced whole, so read once
        if of is views:
            return body
        with self._lock:
            of, body = self._whole
            if of is not views:
                self._rows = {id(view): (view, self.row(view)) for view in self._chosen(views)}
                head, tail = self._around
                body = b"".join([head, b",".join([row for _, row in self._rows.values()]), tail])
                self._whole = (views, body)
            return body

    def row(self, view: ServiceView) -> bytes:
        """One view's JSON."""
        kept = self._rows.get(id(view))
        return self._rendered(view) if kept is None else kept[1]
