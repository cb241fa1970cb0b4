"""Was everything written to a file synced before it was acknowledged? Read from what strace saw of a process.

Kills cannot show this: what a dead process wrote is in the page cache and survives it. `strace` can, and it can make a
sync fail or a process die in the middle of one (`inject`).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

CALLS = "fdatasync,fsync,pwrite64,write,sendto,sendmsg"
_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\(\d+<(?P<path>[^>]*)>(?P<more>.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")


def strace(output: Path, *command: str, inject: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command under strace, all its threads; what it saw is in `output`."""
    faults = ["-e", f"inject={inject}"] if inject else []
    words = ["strace", "-f", "-y", "-s", "64", "-e", f"trace={CALLS}", *faults, "-o", str(output), *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def unsynced(trace: str, stored: str, acknowledged: str) -> tuple[int, list[str]]:
    """How many acknowledgements there were (calls whose line matches), and those that came while something written to a
    path that ends in `stored` had not been followed by a sync of it that succeeded."""
    dirty, begun, count = False, {}, 0
    early: list[str] = []
    for pid, rest in (match.group("pid", "rest") for match in map(_LINE.match, trace.splitlines()) if match):
        line = begun.pop(pid, "") + _RESUMED.sub("", rest)
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>")
        call = _CALL.match(line)
        if call is None:
            continue
        if call["name"] == "pwrite64" and call["path"].endswith(stored):
            dirty = True
        elif call["name"] in ("fdatasync", "fsync") and call["path"].endswith(stored) and line.endswith(" = 0"):
            dirty = False
        elif re.search(acknowledged, line) and "resumed" not in rest:
            count += 1
            early += [line] if dirty else []
    return count, early
