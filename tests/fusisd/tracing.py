"""Was everything written to a file synced before it was acknowledged? Read from what strace saw of a process.

Kills cannot show this: what a dead process wrote is in the page cache and survives it. `strace` can, and it can make a
sync fail or last, or a process die in the middle of one (`inject`). From the trace the files are put together as a loss of
power would have left them at worst: a write counts when a sync of its file began after it ended, and succeeded; a name,
or that it is gone, when a sync of its directory did.
"""

from __future__ import annotations

import ast
import math
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

CALLS = "fdatasync,fsync,pwrite64,ftruncate,unlink,write,sendto,sendmsg,recvfrom"
_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_CALL = re.compile(r"""(?P<name>\w+)\((\d+<|")(?P<path>[^>"]*)""")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_UNFINISHED = "<unfinished ...>"
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(?!\.\.\.)')
_DONE = re.compile(r"\) += 0( \(DELAYED\))?$")  # (INJECTED) says that the kernel was not asked
_SENDS = ("sendto", "sendmsg", "write")
_CHANGES = ("pwrite64", "ftruncate", "unlink")


@dataclass(frozen=True)
class Call:
    """A system call on a file or socket: its text, and the places in the trace where it began and ended (inf: never)."""

    name: str
    path: str
    text: str
    began: float
    ended: float

    @property
    def data(self) -> bytes:
        """The bytes that were written, sent or received; empty when strace cut them off."""
        found = _STRING.search(self.text)
        return ast.literal_eval(f'b"{found[1]}"') if found else b""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: what was received on its connection before it, and the place where its first byte was sent."""

    request: bytes
    status: int
    began: float


def command(output: Path, *words: str, inject: str | None = None, size: int = 64, beside: bool = False) -> list[str]:
    """The command under strace, all its threads; what it saw is in `output`, strings up to `size`. `beside`: the process
    that is started is the command, and strace ends a moment after it."""
    faults = ["-e", f"inject={inject}"] if inject else []
    how = ["-D"] if beside else []
    return ["strace", *how, "-f", "-y", "-s", str(size), "-e", f"trace={CALLS}", *faults, "-o", str(output), *words]


def strace(output: Path, *words: str, inject: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command under strace to its end."""
    return subprocess.run(command(output, *words, inject=inject), capture_output=True, text=True, timeout=120)


def calls(trace: str) -> list[Call]:
    """Those that began, in the order of their beginnings."""
    begun: dict[str, tuple[int, str]] = {}
    found: list[Call] = []
    for place, line in enumerate(trace.splitlines()):
        match = _LINE.match(line)
        if match is None:
            continue
        pid, rest = match.group("pid", "rest")
        began, text = begun.pop(pid, (place, ""))
        text += _RESUMED.sub("", rest)
        if text.endswith(_UNFINISHED):
            begun[pid] = (began, text.removesuffix(_UNFINISHED))
        else:
            found += _call(text, began, place)
    for began, text in begun.values():
        found += _call(text, began, math.inf)
    return sorted(found, key=lambda call: call.began)


def _call(text: str, began: float, ended: float) -> Iterator[Call]:
    if match := _CALL.match(text):
        yield Call(match["name"], match["path"], text, began, ended)


def unsynced(trace: str, stored: str, acknowledged: str) -> tuple[int, list[str]]:
    """How many acknowledgements there were (calls whose line matches), and those that came while something written to a
    path that ends in `stored` had not been followed by a sync of it that succeeded."""
    seen = calls(trace)
    writes = [call for call in seen if call.name == "pwrite64" and call.path.endswith(stored)]
    told = [call for call in seen if re.search(acknowledged, call.text)]
    early = [
        call.text
        for call in told
        if any(write.ended < call.began and not _synced(write, seen, call.began) for write in writes)
    ]
    return len(told), early


def left(seen: list[Call], directory: Path, at: float) -> dict[str, bytes]:
    """The files of a directory, by name, as a loss of power at this place of the trace would have left them at worst."""
    files: dict[str, bytearray] = {}
    for call in sorted(seen, key=lambda call: call.ended):
        path = Path(call.path)
        if path.parent != directory or call.name not in _CHANGES:
            continue
        named = _synced(replace(call, path=str(directory)), seen, at)
        if call.name == "unlink":
            if named:
                files.pop(path.name, None)
        elif (named or path.name in files) and _synced(call, seen, at):
            _change(files.setdefault(path.name, bytearray()), call)
    return {name: bytes(file) for name, file in files.items()}


def _change(file: bytearray, call: Call) -> None:
    """What the call made of the file."""
    size, *offset = (int(number) for number in re.findall(r", (\d+)", _STRING.sub("", call.text)))
    if call.name == "ftruncate":
        del file[size:]
        return
    assert len(call.data) == size, f"strace cut a write off: {call.text[:80]}"
    (start,) = offset
    file.extend(bytes(max(0, start - len(file))))
    file[start : start + size] = call.data


def answers(seen: list[Call]) -> list[Answer]:
    """Every HTTP answer that was sent."""
    received: dict[str, bytes] = {}
    found: list[Answer] = []
    for call in sorted(seen, key=lambda call: call.ended if call.name == "recvfrom" else call.began):
        if call.name == "recvfrom":
            received[call.path] = received.get(call.path, b"") + call.data
        elif call.name in _SENDS and call.path in received and call.data.startswith(b"HTTP/1.1 "):
            found.append(Answer(received.pop(call.path), int(call.data[9:12]), call.began))
    return found


def _synced(write: Call, seen: list[Call], at: float) -> bool:
    """Whether a sync of its file began after it ended, and succeeded before this place."""
    return any(
        call.began > write.ended and call.ended < at and call.path == write.path and _DONE.search(call.text)
        for call in seen
        if call.name in ("fdatasync", "fsync")
    )
