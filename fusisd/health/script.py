"""Script checks: an operator's own program asks, and its exit status 0 passes.

It runs as nobody (65534), in no group, with no capability and no way to gain one (no_new_privs, empty bounding set), in a
session of its own, with a minimal environment; when its time is over, or when it ended, SIGKILL goes to its process group.
`setpriv` (util-linux) drops the privileges between spawn and exec: subprocess's `user=` would leave the bounding set and
no_new_privs as they are, `preexec_fn` runs Python between fork and exec (deadlocks with threads, and forks the whole
daemon where posix_spawn does not copy it). An fusisd that is not root can only drop what it has.
What leaves its process group (setsid) is not found again. 126 and 127 (what shells and setpriv say when a program could
not be run) mean that this machine could not ask.
Does not: use a shell, or read more than `OUTPUT_LIMIT` bytes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

from fusisd.health.asking import Failed, Way
from fusisd.model import CheckTarget

NOBODY = 65534
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SETPRIV = ("/usr/bin/setpriv", "/bin/setpriv")
OUTPUT_LIMIT = 1024 * 1024  # a program that says more waits for a reader until its time is over
KEPT = 4096
WORDS = 200
CANNOT_RUN = (126, 127)


async def ask(target: CheckTarget, way: Way) -> None:
    """Returns when the program ended with status 0. Raises Failed; OSError when it could not be run."""
    script = _Script(target)
    try:
        await script.ended()
        status, line = script.status(), script.first_line()
    finally:
        script.close()
    if status in CANNOT_RUN:
        raise OSError(errno.ENOEXEC, f"the script could not be run: {line or f'exit status {status}'}")
    if status:
        raise Failed(line or (f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"))


def command(argv: tuple[str, ...], root: bool) -> list[str]:
    """What is run: the program with everything dropped that it does not need. Raises OSError."""
    setpriv = next((path for path in SETPRIV if os.access(path, os.X_OK)), None)
    if setpriv is None or not argv:
        raise OSError(errno.ENOEXEC, "script checks need setpriv (util-linux)" if argv else "the check has no argv")
    drop = ["--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--pdeathsig=KILL"]
    if root:
        drop += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
    return [setpriv, *drop, "--", *argv]


class _Script:
    """One running program with its output."""

    def __init__(self, target: CheckTarget) -> None:
        """Start it. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._said, self._size = bytearray(), 0
        self._out, theirs = os.pipe()
        try:
            os.set_blocking(self._out, False)
            self._pid = _spawn(target, theirs)
        except OSError:
            os.close(self._out)
            raise
        finally:
            os.close(theirs)
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:  # out of descriptors: without one nobody would hear of its end
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._out)
            raise
        self._loop.add_reader(self._out, self._read)

    async def ended(self) -> None:
        """Wait until it ended."""
        end: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, _set, end)
        try:
            await end
        finally:
            self._loop.remove_reader(self._pidfd)

    def status(self) -> int:
        """Its exit status, negative for a signal; it stays to be collected, so that its group's number stays its own."""
        end = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        assert end is not None, "only without WNOHANG"
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def first_line(self) -> str:
        """The first line of what it said, without what could garble a terminal."""
        self._read()
        line = bytes(self._said).strip().partition(b"\n")[0].decode("utf-8", "replace")
        return "".join(letter if letter.isprintable() else "?" for letter in line.strip())[:WORDS]

    def close(self) -> None:
        """End what is left of its group and collect it; never waits, a process that dies slowly is collected later."""
        self._loop.remove_reader(self._out)
        os.close(self._out)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        if not self._collected():
            self._loop.add_reader(self._pidfd, self._collected)

    def _collected(self) -> bool:
        if not os.waitpid(self._pid, os.WNOHANG)[0]:
            return False
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        return True

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._out, 65536)
            self._said += data[: KEPT - len(self._said)]
            self._size += len(data)
            if not data or self._size > OUTPUT_LIMIT:
                self._loop.remove_reader(self._out)


def _set(end: asyncio.Future[None]) -> None:
    if not end.done():
        end.set_result(None)


def _inheritable() -> Iterator[int]:
    """Descriptors that exec would not close: Python's own are none, but whoever started us may have left some."""
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # that of the listing is gone
            if number > 2 and os.get_inheritable(number):
                yield number


def _spawn(target: CheckTarget, output: int) -> int:
    root = os.geteuid() == 0
    words = command(target.spec.argv, root)
    if root:
        os.fchown(output, NOBODY, NOBODY)  # or /dev/stderr could not be opened by it
    return os.posix_spawn(
        words[0],
        words,
        {"PATH": PATH, "LANG": "C.UTF-8", "FUSIS_ADDRESS": target.address, "FUSIS_PORT": str(target.port)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
            *((os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores these two, and a program would inherit that
    )
