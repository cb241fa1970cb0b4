"""Run the kernel tests in two labs side by side, a half of the files each: `python -m tests.lab.halves [PYTEST WORDS]`.

A guest has one processor, and the machine two at least: it halves the time. The first half's output comes as it is made,
the second's after it. The exit status is the first that is not 0; a half in which nothing was chosen counts only when the
other one chose nothing either. tests/kernel/conftest.py deals the files out, by KERNEL_HALF.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from typing import IO

import pytest

LIMIT_S = 1500
_WORDS = ("-m", "pytest", "-p", "no:cacheprovider", "--durations", "8")


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryFile() as held:
        halves = [_start(0, arguments, None), _start(1, arguments, held)]
        try:
            statuses = [half.wait() for half in halves]
        finally:
            for half in halves:
                half.terminate()  # the runner ends its guest
        held.seek(0)
        shutil.copyfileobj(held, sys.stdout.buffer)
        sys.stdout.flush()
    return status(statuses)


def status(statuses: list[int]) -> int:
    """The exit status of both together."""
    nothing = int(pytest.ExitCode.NO_TESTS_COLLECTED)
    failed = [status for status in statuses if status not in (0, nothing)]
    return failed[0] if failed else min(statuses)


def _start(half: int, arguments: list[str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.lab.run", "--auto", "--timeout", str(LIMIT_S), "--"]
    words += ["env", f"KERNEL_HALF={half}", sys.executable, *_WORDS, *(arguments or ["tests/kernel"])]
    return subprocess.Popen(words, stdout=output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
