"""Run a command where IPVS is real: `python -m tests.lab.run [options] -- COMMAND`.

By default in a user-mode-Linux guest (Debian package user-mode-linux): it boots in about 2.5 s, needs no privileges, no
KVM and no network, and sees the host's files through an overlay, so that nothing it writes outlives it. With --auto the
command runs directly where this kernel has IPVS and we are root, in network and mount namespaces of its own.
The exit status is the command's; 124 when the time limit ended it, 125 when the guest did not come up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

BEGIN, END = b"\x01LAB-BEGIN\n", b"\x01LAB-END\n"
FAILED, TIMED_OUT = 125, 124
_GUEST = Path(__file__).parent / "guest"
_PASSED_ON = ("LANG", "TERM", "COLUMNS", "LINES", "CI", "PYTEST_ADDOPTS", "HYPOTHESIS_PROFILE")
_HIDDEN = ("/tmp", "/run", "/dev/shm")  # tmpfs in the guest


def ipvs_here() -> bool:
    """Whether this process could use real IPVS on this host's kernel: root, libnl, and the family answers."""
    if os.geteuid() != 0:
        return False
    script = "from tests.lab.netns import unshare_network as u; from pyipvs import IPVS; u(); IPVS().info()"
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, timeout=30).returncode == 0


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.auto and ipvs_here():
        return _directly(options)
    if shutil.which("linux.uml") is None:
        print("lab: this kernel has no IPVS and linux.uml is missing: apt-get install user-mode-linux", file=sys.stderr)
        return FAILED
    with _workspace(options.out) as out:
        return Guest(options, out).run()


def _directly(options: argparse.Namespace) -> int:
    """On this host's kernel, in namespaces of its own, so that the host's network and /run/netns are not touched."""
    prepare = 'ip link set lo up; mount -t tmpfs tmpfs /run; mkdir /run/netns; exec "$@"'
    words = ["unshare", "--mount", "--net", "--", "sh", "-c", prepare, "sh", *options.command]
    try:
        return subprocess.run(words, timeout=options.timeout, env={**os.environ, "LAB": "host"}).returncode
    except subprocess.TimeoutExpired:
        return TIMED_OUT


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.run", description="Run a command where IPVS is real.")
    add = parser.add_argument
    add("--mem", default="512M", help="the guest's memory (default 512M)")
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="time limit (default 600)")
    add("--publish", metavar="PORT:NETNS:PORT", help="127.0.0.1:PORT here leads to a port in a namespace of the guest")
    add("--bind", action="append", default=[], metavar="DIR", help="a further directory that the guest must see")
    add("--out", type=Path, metavar="DIR", help="keep what the command wrote to /lab-out here")
    add("--tty", action="store_true", help="give the command this terminal")
    add("--auto", action="store_true", help="run directly when this host's kernel has IPVS and we are root")
    add("command", nargs="+", help="what to run, after --")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _workspace(keep: Path | None) -> Iterator[Path]:
    """The directory that host and guest share."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="fusis-lab-") as name:
        yield Path(name)


class Guest:
    """One guest, from boot to power off."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self._options, self._out = options, out
        self._stopped_by: int | None = None

    def run(self) -> int:
        self._write_files()
        line = self._publish() if self._options.publish else None
        with contextlib.ExitStack() as stack:
            guest = self._start(line)
            if self._options.tty:
                stack.enter_context(_foreground(guest.pid))
            stack.callback(_kill_group, guest.pid)
            stack.callback(_watchdog(guest.pid))
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, lambda got, _: self._stop(guest.pid, got)))
            timer = threading.Timer(self._options.timeout, self._stop, (guest.pid, None))
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
            text = self._copy_output(guest)
            guest.wait()
        return self._status(text)

    def _write_files(self) -> None:
        for script in ("init", "stage2"):
            shutil.copy(_GUEST / script, self._out / script)
            (self._out / script).chmod(0o755)
        for stale in ("rc", "binds", "relay", "tty"):
            (self._out / stale).unlink(missing_ok=True)
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        passed |= {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "HOME": "/root", "LAB": "guest"}
        passed |= {"PYTHONDONTWRITEBYTECODE": "1"} | ({} if sys.stdout.isatty() else {"NO_COLOR": "1"})
        lines = [f"export {name}={shlex.quote(value)}" for name, value in passed.items()]
        lines += [f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(self._options.command)}"]
        (self._out / "command").write_text("\n".join(lines) + "\n")
        if binds := self._binds():
            (self._out / "binds").write_text("".join(f"{path}\n" for path in binds))
        if self._options.tty:
            (self._out / "tty").touch()

    def _binds(self) -> list[str]:
        """Directories that the overlay of / does not show: asked for, or in use by us below a tmpfs or another mount."""
        root = os.stat("/").st_dev
        own = [Path(__file__).parents[2], Path.cwd(), Path(sys.prefix), Path(sys.base_prefix)]
        hidden = [path for path in own if str(path).startswith(_HIDDEN) or path.stat().st_dev != root]
        wanted = sorted({str(path) for path in hidden} | {os.path.realpath(path) for path in self._options.bind})
        return [path for path in wanted if not any(path.startswith(other + "/") for other in wanted)]

    def _publish(self) -> int:
        """The host end of the relay in a thread; the descriptor of the guest's end of the line."""
        port, netns, inside = self._options.publish.split(":")
        root = shlex.quote(str(Path(__file__).parents[2]))
        words = [sys.executable, "-m", "tests.lab.relay", "/dev/ttyS0", netns, str(int(inside))]
        (self._out / "relay").write_text(f"cd {root} && exec {shlex.join(words)}\n")
        ours, theirs = socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        from tests.lab.relay import serve_host

        threading.Thread(target=lambda: asyncio.run(serve_host(ours.detach(), int(port))), daemon=True).start()
        return theirs.detach()

    def _start(self, line: int | None) -> subprocess.Popen[bytes]:
        words = ["linux.uml", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "noreboot"]
        words += [f"mem={self._options.mem}", f"init={self._out}/init", f"LABOUT={self._out}"]
        words += [f"uml_dir={self._out}/uml", "umid=lab", "con=null", "con0=fd:0,fd:1"]
        words += [] if line is None else [f"ssl0=fd:{line}"]
        stdin = None if self._options.tty else subprocess.DEVNULL
        stdout = None if self._options.tty else subprocess.PIPE
        return subprocess.Popen(
            words,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout else None,
            start_new_session=not self._options.tty,
            process_group=0 if self._options.tty else None,
            pass_fds=() if line is None else (line,),
        )

    def _copy_output(self, guest: subprocess.Popen[bytes]) -> bytes:
        """Pass on what the command prints as it comes; the kernel's own words around it are returned."""
        if guest.stdout is None:
            return b""
        held, begun, ended = b"", False, False
        while data := os.read(guest.stdout.fileno(), 65536):
            held += data
            if not begun and BEGIN in held:
                begun, held = True, held.split(BEGIN, 1)[1]
            if begun and not ended:
                text, mark, rest = held.partition(END)
                ended = bool(mark)
                keep = 0 if ended else _tail(text)
                _write(text[: len(text) - keep])
                held = rest if ended else text[len(text) - keep :]
        if begun and not ended:
            _write(held)
        return b"" if begun else held

    def _stop(self, pid: int, number: int | None) -> None:
        self._stopped_by = TIMED_OUT if number is None else 128 + number
        _kill_group(pid)

    def _status(self, text: bytes) -> int:
        if self._stopped_by is not None:
            return self._stopped_by
        try:
            return int((self._out / "rc").read_text())
        except FileNotFoundError:
            print(f"lab: the guest did not run the command:\n{text.decode(errors='replace')}", file=sys.stderr)
            return FAILED


def _tail(text: bytes) -> int:
    """How many bytes at the end may be the beginning of the end mark."""
    return next((size for size in range(min(len(END), len(text)), 0, -1) if END.startswith(text[-size:])), 0)


def _write(text: bytes) -> None:
    while text:
        text = text[os.write(sys.stdout.fileno(), text) :]


@contextlib.contextmanager
def _foreground(group: int) -> Iterator[None]:
    """This terminal is that process group's, and afterwards ours again, as it was. It may have been stopped meanwhile."""
    terminal = sys.stdin.fileno()
    saved = termios.tcgetattr(terminal)
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or we were stopped when we take it back
    try:
        os.tcsetpgrp(terminal, group)
        os.killpg(group, signal.SIGCONT)
        yield
    finally:
        os.tcsetpgrp(terminal, os.getpgrp())
        termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
        signal.signal(signal.SIGTTOU, before)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _watchdog(pid: int) -> Callable[[], None]:
    """A child that kills the guest when this runner is gone, however it went (SIGKILL included)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        os.closerange(0, reader)
        os.closerange(reader + 1, 256)
        os.read(reader, 1)  # end of file: the runner has gone
        _kill_group(pid)
        os._exit(0)
    os.close(reader)

    def done() -> None:
        os.close(writer)
        os.waitpid(child, 0)

    return done


if __name__ == "__main__":
    sys.exit(main())
