"""Running fusisd and fusis-agent in the lab's hosts, as processes, and asking them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fusisd.ctl.client import Client
from tests.lab.backends import Backend
from tests.lab.expect import poll
from tests.lab.topology import VIP, Host

READY = "Listening and serving HTTP on :"
NOBODY = 65534
AS_UNIT = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
           "--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin")  # fmt: skip
"""As docs/fusis-agent.service runs it: nobody in particular, CAP_NET_ADMIN alone."""


class Balancer:
    """A fusisd on a host, with its state in a directory; a context manager that ends it and its Serf agent."""

    def __init__(self, host: Host, home: Path, *options: str) -> None:
        self.host, self.home, self._options = host, home, options
        self.state_dir, self.log = home / "state", home / "fusisd.log"
        self.socket = home / "run" / "fusisd.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._offset = 0
        home.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Balancer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        _end(self.state_dir / "serf" / "agent.pid")
        if error is not None:
            print(f"--- {self.log}\n{self.log.read_text()}")

    def command(self) -> list[str]:
        """The command line."""
        words = [sys.executable, "-m", "fusisd", "--iface", "eth0", "--state-dir", str(self.state_dir)]
        return [*words, "--socket", str(self.socket), *self._options]

    def spawn(self, *more: str) -> None:
        """Start it, with `more` options this time, and do not wait."""
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        self._process = self.host.popen(*self.command(), *more, log=self.log)

    def start(self, *more: str) -> None:
        """Start it, with `more` options this time, and wait until it says that it is ready."""
        self.spawn(*more)
        poll(lambda: self._said(READY), 60, f"fusisd on {self.host.name} to be ready")

    def kill(self) -> None:
        """kill -9: no goodbye."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)

    def client(self) -> Client:
        """For questions over its Unix socket."""
        return Client(self.socket)

    def status(self) -> dict[str, Any]:
        """What GET /status says."""
        status: dict[str, Any] = self.client().get("/status")
        return status

    def post(self, path: str, body: Mapping[str, object]) -> str:
        """POST over the Unix socket; the body of a 200 answer."""
        return self._curl("-H", "Content-Type: application/json", "-d", json.dumps(body), path)

    def delete(self, path: str) -> str:
        """DELETE over the Unix socket; the body of a 200 answer."""
        return self._curl("-X", "DELETE", path)

    def service(self, name: str) -> dict[str, Any]:
        """GET /services/NAME."""
        service: dict[str, Any] = self.client().get(f"/services/{name}")
        return service

    def weights(self, name: str) -> dict[str, int]:
        """Destination name to weight in the kernel."""
        return {row["Name"]: row["Weight"] for row in self.service(name)["Destinations"]}

    def add_service(self, name: str = "web", vip: str = VIP, port: int = 80, scheduler: str = "rr") -> None:
        """Make a TCP service."""
        body = {"Name": name, "Host": vip, "Port": port, "Protocol": "tcp", "Scheduler": scheduler}
        self.post("/services", body)

    def _curl(self, *words: str) -> str:
        *options, path = words
        base = ["curl", "-sS", "--fail-with-body", "--max-time", "20", "--unix-socket", str(self.socket)]
        done = subprocess.run([*base, *options, f"http://fusisd{path}"], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{path}: {done.stdout}{done.stderr}"
        return done.stdout

    def _said(self, text: str) -> bool:
        assert self._process is not None
        said = self.log.read_text()[self._offset :]
        assert self._process.poll() is None or text in said, f"fusisd ended:\n{said}"
        if self._process.poll() is not None:
            raise RuntimeError(f"fusisd ended:\n{said}")
        return text in said

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)


class RealServer:
    """A backend and a fusis-agent on a host."""

    def __init__(
        self,
        host: Host,
        home: Path,
        balancer: Balancer,
        service: str = "web",
        *options: str,
        family: socket.AddressFamily = socket.AF_INET,
        as_unit: bool = False,
    ) -> None:
        """`family` is the backend's; `as_unit`: the agent runs as its systemd unit runs it."""
        self.host, self.home = host, home
        self.backend = Backend(host, family=family)
        self.log = home / "agent.log"
        home.mkdir(parents=True, exist_ok=True)
        key = balancer.state_dir / "serf" / "key"
        self._command = [sys.executable, "-m", "fusisd.agent", "--balancer", balancer.host.address, "--key-file", str(key)]
        self._command += ["--service", service, "--port", "80", "--name", host.name, "--state-dir", str(home / "state")]
        self._command += options
        if as_unit:
            self._command = [*AS_UNIT, *self._command, "--key-file", str(_own_home(home, key))]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start backend and agent; returns before the agent has joined."""
        self.backend.start()
        self.resume()

    def resume(self) -> None:
        """Start the agent alone."""
        self._process = self.host.popen(*self._command, log=self.log)

    def kill(self) -> None:
        """The machine dies: backend, agent and Serf at once, without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)
        _end(self.home / "state" / "agent.pid")
        self.backend.kill()

    def crash(self) -> None:
        """kill -9 of the agent alone: its Serf agent and the backend go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def leave(self) -> None:
        """SIGTERM to the agent: it leaves the cluster. The backend goes on."""
        self.begin_to_leave()
        self.left()

    def begin_to_leave(self) -> None:
        """The signal alone; `left` waits for the agent's end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    @property
    def runs(self) -> bool:
        """The agent has not ended."""
        return self._process is not None and self._process.poll() is None

    def left(self) -> None:
        """Wait until the agent has ended."""
        assert self._process is not None
        self._process.wait(30)

    def stop(self) -> None:
        """End whatever runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)
        _end(self.home / "state" / "agent.pid")
        self.backend.stop()


def _own_home(home: Path, key: Path) -> Path:
    """A state directory that is the unit's user's, and a copy of the key that is."""
    copied = home / "key"
    copied.write_bytes(key.read_bytes())
    copied.chmod(0o600)
    (home / "state").mkdir(mode=0o700)
    for path in (copied, home / "state"):
        os.chown(path, NOBODY, NOBODY)
    for parent in [home, *home.parents[:-2]]:
        parent.chmod(0o755)
    return copied


def _end(pid_file: Path) -> None:
    """Kill the Serf agent of this pid file, if it runs and is one."""
    try:
        pid = int(pid_file.read_text())
        if b"serf" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return
