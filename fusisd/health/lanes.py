"""Who may probe now: at most so many at a time, in the order in which they fell due, few of them in one turn of the loop.

A thousand targets that are new together would else hold the loop for a tenth of a second.
Does not: know what is waiting, or why.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

AT_ONCE = 32  # begun in one turn of the loop: about 3 ms of TCP connects

T = TypeVar("T")


class Lane(Generic[T]):
    """A queue before a number of slots."""

    def __init__(self, slots: int, begin: Callable[[T], bool]) -> None:
        """`begin(who)` says whether it took a slot; whoever took one gives it back by `leave`."""
        self._free, self._begin = slots, begin
        self._waiting: deque[T] = deque()
        self._arranged = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def join(self, who: T) -> None:
        """Begin this one as soon as there is a slot."""
        self._waiting.append(who)
        self._arrange()

    def leave(self) -> None:
        """A slot is free again."""
        self._free += 1
        self._arrange()

    def _arrange(self) -> None:
        if self._waiting and self._free and not self._arranged:
            self._arranged = True
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        self._arranged = False
        for _ in range(min(AT_ONCE, len(self._waiting))):
            if not self._free:
                return
            self._free -= self._begin(self._waiting.popleft())
        self._arrange()
