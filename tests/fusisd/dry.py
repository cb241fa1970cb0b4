"""`fusisd --dry-run` as a process, and asking it by TCP: all of the daemon but a kernel."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.lab.expect import poll

ROOT = Path(__file__).parents[2]


class Dry:
    """A `fusisd --dry-run`."""

    def __init__(self, home: Path) -> None:
        self.home, self.log, self.state_dir = home, home / "log", home / "state"
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = sock.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *options: str, python: tuple[str, ...] = ("-m", "fusisd")) -> list[str]:
        """The command line; `python` says what the interpreter runs."""
        words = [sys.executable, *python, "--dry-run", "--listen", f"127.0.0.1:{self.port}"]
        return [*words, "--state-dir", str(self.state_dir), "--socket", str(self.home / "run/s"), *options]

    def start(self, command: list[str] | None = None) -> None:
        """Start it, by another command than its own if need be, and wait until it is ready."""
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command or self.command(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        words = (f"Listening and serving HTTP on :{self.port}", '"event": "listening"')
        poll(lambda: any(word in self.log.read_text() for word in words), 60, "the ready line")

    def tell(self, number: int) -> None:
        """Send it a signal that does not end it."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal; the exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(30)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """Kill it if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.end(signal.SIGKILL)

    def ask(
        self, method: str, path: str, body: Any = None, token: bool = True, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=15)
        headers = {"Content-Type": "application/json", **(headers or {})}
        if token:
            headers["Authorization"] = f"Bearer {(self.state_dir / 'token').read_text().strip()}"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data
