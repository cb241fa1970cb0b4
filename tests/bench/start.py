"""How long fusisd takes from its start to the ready line: `python -m tests.bench.start [TIMES]` (`make bench-start`).

A dry run, so that it can be measured on any kernel: all of the daemon but the first read of IPVS and one `ip address show`.
The bytecode of the imports is compiled by a first start, which does not count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_s(home: Path, cache: Path) -> float:
    """One start, of a daemon with an empty state directory that is ended at once."""
    words = [sys.executable, "-m", "fusisd", "--dry-run", "--listen", "127.0.0.1:0", "--socket", str(home / "sock")]
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    began_s = time.perf_counter()
    process = subprocess.Popen([*words, "--state-dir", str(home / "state")], cwd=ROOT, env=environ, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert b"Listening" in process.stdout.readline()
        took_s = time.perf_counter() - began_s
    process.terminate()
    process.wait(30)
    return took_s


def main(times: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as directory:
        took = []
        for number in range(times + 1):
            home = Path(directory) / str(number)
            home.mkdir()
            took.append(start_s(home, Path(directory) / "cache") * 1e3)
    counted = took[1:]
    print(f"from start to ready: median {statistics.median(counted):.0f} ms, {min(counted):.0f} to {max(counted):.0f} ms"
          f" in {times}; the first, with everything to compile, {took[0]:.0f} ms")  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
