"""Console blocks of the documents, typed again: what is printed must be what the page shows.

    ```console
    lb1# ipvsadm -Ln                 typed on lb1; after "# " alone: on this machine
    IP Virtual Server version …      what it prints; `…` is what differs each time
    ```

A command that has `…` itself is a line that an earlier one printed. One that asks how things stand is typed again until
it says what is shown, as somebody does who waits a moment. Of one that runs on (an agent, tcpdump, what ends in &) the
page may show some lines: the first is waited for, and in the end all must have been printed in this order.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tests.lab.expect import poll
from tests.lab.topology import Host

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"(\w*)# (.*)")
_ASKS = re.compile(r"curl |ip .*show|ipvsadm -L|pyipvs list|fusisctl (services|why)|fusis(ctl|-agent) (status|doctor)")
_RUNS_ON = re.compile(r"fusis-agent --|tcpdump |&$")
_VARIES = "…"

Where = Callable[[str], list[str]]
"""A command line to the words that run it on some machine."""


class Step(NamedTuple):
    """A command, where it is typed ("": on this machine), and the lines that the page shows below it."""

    machine: str
    command: str
    shown: tuple[str, ...] = ()


def steps(page: str) -> list[Step]:
    """The commands of a page, in order."""
    found: list[Step] = []
    for line in "".join(_BLOCK.findall(page)).splitlines():
        if typed := _PROMPT.fullmatch(line):
            found.append(Step(typed[1], typed[2]))
        else:
            found[-1] = found[-1]._replace(shown=(*found[-1].shown, line))
    return found


@contextmanager
def machine(host: Host) -> Iterator[Where]:
    """A host with a name, processes and state of its own, as a real machine has. What runs there ends with it."""
    state = [f"mkdir -p {path} && mount -t tmpfs tmpfs {path}" for path in ("/run", "/var/lib", "/etc/fusis")]
    script = " && ".join([f"hostname {host.name}", *state, "exec sleep infinity"])
    words = ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
    holder = host.popen(*words)
    try:
        poll(lambda: "sleep" in _child(holder.pid, "comm"), what=f"{host.name} to be set up")
        inside = ["nsenter", "--target", _child(holder.pid, "pid"), "--net", "--uts", "--mount", "--pid"]
        yield lambda command: [*inside, "bash", "-c", command]
    finally:
        holder.kill()
        holder.wait()


def _child(pid: int, column: str) -> str:
    return subprocess.run(["ps", "-o", f"{column}=", "--ppid", str(pid)], capture_output=True, text=True).stdout.strip()


class Reader:
    """Somebody who types what a page says; a context manager that closes his terminals in the end."""

    def __init__(self, home: Path, machines: Mapping[str, Where]) -> None:
        """`home`: a directory for what is printed; `machines` by the names in prompts."""
        self._home, self._machines = home, machines
        self._typed: list[_Typed] = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for typed in self._typed:
            typed.process.kill()
            typed.process.wait()

    @property
    def printed(self) -> list[str]:
        """Every line so far."""
        return [line for typed in self._typed for line in typed.lines]

    def type(self, step: Step) -> None:
        """Type a command, and wait until it has ended, or has begun to print what is shown if it is one that runs on."""

        said: list[str] = []

        def done() -> bool:
            typed = self._typed[-1]
            if typed.runs_on:
                return typed.begins
            ended = typed.ended  # first: what it printed is whole only then
            if ended and not typed.as_shown and _ASKS.search(step.command):
                said.append(typed.text)
                self._type(step)
                ended = False
            assert ended, f"it printed {said[-1:]}"
            return True

        self._type(step)
        poll(done, LIMIT_S, f"what the page shows below {step.command!r}: {step.shown}")
        typed = self._typed[-1]
        assert typed.runs_on or typed.as_shown, f"{step.command!r} printed:\n{typed.text}"

    def finish(self, limit_s: float = LIMIT_S) -> None:
        """What runs on has printed what is shown, or does so within this time."""
        for typed in self._typed:
            if typed.runs_on:
                poll(lambda typed=typed: typed.as_shown, limit_s, f"{typed.step}, printed: {typed.text}")

    def _type(self, step: Step) -> None:
        log = self._home / f"{len(self._typed)}.log"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._machines[step.machine](self._whole(step.command)),
                cwd=ROOT,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._typed.append(_Typed(step, process, log))

    def _whole(self, command: str) -> str:
        if _VARIES not in command:
            return command
        return next(line for line in self.printed if re.fullmatch(_pattern(command), line))


@dataclass(frozen=True)
class _Typed:
    step: Step
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def runs_on(self) -> bool:
        return bool(_RUNS_ON.search(self.step.command))

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.text.splitlines()]

    @property
    def begins(self) -> bool:
        """The first of the lines that are shown was printed."""
        return not self.step.shown or any(re.fullmatch(_pattern(self.step.shown[0]), line) for line in self.lines)

    @property
    def as_shown(self) -> bool:
        if not self.runs_on:
            wanted = "\n".join(map(_pattern, self.step.shown))
            return bool(re.fullmatch(wanted, "\n".join(self.lines)))
        printed = iter(self.lines)
        return all(any(re.fullmatch(_pattern(line), row) for row in printed) for line in self.step.shown)


def _pattern(shown: str) -> str:
    return ".*".join(re.escape(part) for part in shown.split(_VARIES))
