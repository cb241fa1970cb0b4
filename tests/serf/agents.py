"""Real Serf agents for tests: each on an address of its own in 127.0.0.0/8, ended by pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType

from fusisd.serf.client import SerfClient, connected

BASE = 30 + os.getpid() % 200  # tests of two checkouts do not meet


def address(number: int) -> str:
    return f"127.7.{BASE}.{number}"


class Agents:
    """The agents of one test."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Agents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._running):
            self.kill(number)

    def start(
        self,
        number: int,
        *tags: str,
        join: int | None = None,
        key: str = "",
        auth: str = "",
        port: int = 7946,
        name: str = "",
    ) -> tuple[str, int]:
        """Start agent n<number> (or `name`), gossiping on `port`; where its RPC listens (about a second later)."""
        words = ["serf", "agent", f"-node={name or f'n{number}'}", f"-bind={address(number)}:{port}"]
        words.append(f"-rpc-addr={address(number)}:7373")
        words += ["-profile=local", "-log-level=err", *(f"-tag={tag}" for tag in tags)]
        settings = {name: value for name, value in (("encrypt_key", key), ("rpc_auth", auth)) if value}
        if settings:
            file = self._home / f"n{number}.json"
            file.write_text(json.dumps(settings))
            words.append(f"-config-file={file}")
        if join is not None:
            words += [f"-retry-join={address(join)}", "-retry-interval=3s"]  # as fusis-agent has it
        environment = {**os.environ, "GOMAXPROCS": "1"}
        self._running[number] = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return address(number), 7373

    def stop(self, *numbers: int) -> None:
        """They answer nobody, until they go on."""
        for number in numbers:
            self._running[number].send_signal(signal.SIGSTOP)

    def go_on(self, *numbers: int) -> None:
        for number in numbers:
            self._running[number].send_signal(signal.SIGCONT)

    def kill(self, number: int) -> None:
        """kill -9, without a word."""
        agent = self._running.pop(number)
        agent.kill()
        agent.wait(10)

    async def client(self, number: int, auth: str | None = None) -> SerfClient:
        """A connected client of agent n<number>."""
        return await connected(address(number), 7373, auth, 20.0)
