"""The one thread that touches the stores: SQLite and fsync block, and the event loop must not.

Does not: know what is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """Fulfils ports.StoreCall."""

    def __init__(self, note: Callable[[float], None], clock: Callable[[], float]) -> None:
        """The thread starts with the first call; `note` is told each call's seconds, by `clock`."""
        self._executor, self._note, self._clock = ThreadPoolExecutor(1, "store"), note, clock

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """See ports.StoreCall."""

        def timed() -> T:
            began_s = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._note(self._clock() - began_s)

        return asyncio.get_running_loop().run_in_executor(self._executor, timed)

    def close(self) -> None:
        """Wait for what is being written."""
        self._executor.shutdown(wait=True)
