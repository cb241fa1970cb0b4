"""How late the loop is: a short sleep again and again, and by how much each was overslept.

What the loop does at one go, everything else on it waits for. Lives on the loop.
Does not: do anything about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fusisd.counts import Histogram

PERIOD_S = 0.25


async def beat(lagging: Histogram, clock: Callable[[], float]) -> None:
    """Note each delay, for ever, until cancelled; `clock` is monotonic seconds."""
    while True:
        due_s = clock() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        lagging.note(max(0.0, clock() - due_s))
