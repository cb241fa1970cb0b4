"""A client that asks the VIP again and again, and counts who answered and what was lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import TracebackType

from tests.lab.expect import ask, poll
from tests.lab.topology import VIP

TIMEOUT_S = 3.0


class Traffic:
    """Requests one after the other from the client's namespace, in a thread of its own; a context manager.

    `lost`: when each request that got no answer was begun, and why. `last`: when each server answered last.
    """

    def __init__(self, vip: str = VIP, port: int = 80, pause_s: float = 0.01, timeout_s: float = TIMEOUT_S) -> None:
        self._vip, self._port, self._pause_s, self._timeout_s = vip, port, pause_s, timeout_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers: Counter[str] = Counter()
        self.lost: list[tuple[float, str]] = []
        self.last: dict[str, float] = {}
        self.slowest_s = 0.0

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self._timeout_s + 10)

    @property
    def total(self) -> int:
        """Requests ended so far, answered or not."""
        return sum(self.answers.values()) + len(self.lost)

    def goes_on(self, answers: int, what: str) -> None:
        """Wait for so many more answers, and print how much was lost so far."""
        wanted = sum(self.answers.values()) + answers
        poll(lambda: sum(self.answers.values()) > wanted, 60, f"answers after: {what}")
        print(f"{what}: {len(self.lost)} requests lost so far, the slowest answer took {self.slowest_s:.2f} s")

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            begun_s = time.monotonic()
            try:
                name = ask(self._vip, self._port, "client", self._timeout_s)
            except OSError as error:
                self.lost.append((begun_s, str(error) or type(error).__name__))
            else:
                self.answers[name] += 1
                self.last[name] = time.monotonic()
                self.slowest_s = max(self.slowest_s, self.last[name] - begun_s)
