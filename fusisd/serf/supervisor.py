"""Keeps one real `serf agent` running, beside us and longer than us: a restart of ours must not look like a failure.

The agent runs in a session of its own; its settings (the RPC key among them) and its ring of gossip keys are in files that
only root reads, so that no secret stands on a command line, and the ring outlives a rotation (keys.py). It is found again
by its pid file, and only believed to be ours when that process's command line names our settings file: no other process is
ever signalled.
Tags given here are those it starts with; tags set later by RPC last until it is started anew, so whoever set them sets
them again then.
Does not: speak RPC (client.py), or decide anything about members.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from fusisd.files import open_private, write_private
from fusisd.serf.errors import SupervisorError
from fusisd.serf.keys import Keyring, load_or_make

log = logging.getLogger(__name__)

STOP_LIMIT_S = 10.0  # a graceful leave takes 1 to 3 s
POLL_S = 0.2
RESTART_AFTER_S = (0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 60.0  # an agent that ran so long could be started: its death is the first of a row


class ManagedAgent:
    """One agent, by its state directory. Made by the daemon and by the real server's agent alike."""

    def __init__(
        self,
        state_dir: Path,
        node: str,
        bind: str,
        rpc_port: int = 7373,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        join: tuple[str, ...] = (),
    ) -> None:
        """`bind`: `address:port` for gossip. `join`: addresses tried until one answers. Raises SupervisorError."""
        self._dir, self._rpc_port = state_dir, rpc_port
        self._child: int | None = None
        self._settings_file, self._pid_file = state_dir / "agent.json", state_dir / "agent.pid"
        self.rpc_auth_key = load_or_make(state_dir / "rpc-key", lambda: secrets.token_urlsafe(32))
        self._settings: dict[str, object] = {
            "node_name": node,
            "bind": bind,
            "rpc_addr": f"127.0.0.1:{rpc_port}",
            "rpc_auth": self.rpc_auth_key,
            "tags": dict(tags or {}),
            "retry_join": list(join),
            "retry_interval": "3s",
            "snapshot_path": str(state_dir / "snapshot"),
            "rejoin_after_leave": True,
            "leave_on_terminate": True,
            "disable_coordinates": True,
            "log_level": "warn",
        }
        self._key, self._ring = key, Keyring(state_dir)
        if key is not None:
            self._settings["keyring_file"] = str(self._ring.path)

    @property
    def rpc(self) -> tuple[str, int]:
        """Where its RPC listens."""
        return ("127.0.0.1", self._rpc_port)

    def pid(self) -> int | None:
        """The running agent's process, None when there is none that is ours."""
        self._reap()
        if self._child is not None:
            return self._child  # just started: /proc may not show its command line yet
        try:
            pid = int(self._pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if f"-config-file={self._settings_file}".encode() in words else None

    def start_with(self, tags: Mapping[str, str]) -> None:
        """The tags that it is started with from now on: one that died comes back with what it said last."""
        self._settings["tags"] = dict(tags)

    async def ensure_running(self) -> bool:
        """Find the agent or start it; whether it was started. Raises SupervisorError."""
        try:
            another = self._key is not None and self._ring.take(self._key)
        except OSError as error:
            raise SupervisorError(f"cannot write Serf's keyring: {error}") from None
        if self.pid() is not None:
            if not another:
                return False
            log.warning("another gossip key in the key file than before so that the Serf agent leaves and is started anew")
            await self.stop()
        binary = shutil.which("serf")
        if binary is None:
            raise SupervisorError("the program serf is not installed (Debian: apt-get install serf)")
        try:
            write_private(self._settings_file, json.dumps(self._settings, indent=1))
            pid = self._spawn(binary)
            write_private(self._pid_file, f"{pid}\n")
        except OSError as error:
            raise SupervisorError(f"cannot start serf: {error}") from None
        log.info("serf agent started pid=%d bind=%s", pid, self._settings["bind"])
        return True

    async def supervise(self) -> None:
        """Start it again whenever it is gone, for ever. Raises SupervisorError when it cannot be started."""
        now = asyncio.get_running_loop().time
        starts, since_s = 0, now()
        while True:
            await asyncio.sleep(POLL_S)
            if self.pid() is None:
                starts = 0 if now() - since_s > STEADY_S else starts
                pause_s = RESTART_AFTER_S[min(starts, len(RESTART_AFTER_S) - 1)]
                starts += 1
                log.warning("serf agent gone its_log=%s next_try_s=%.1f", self._dir / "agent.log", pause_s)
                await asyncio.sleep(pause_s)
                await self.ensure_running()
                since_s = now()

    async def stop(self) -> None:
        """Let it leave the cluster and end; killed when that takes longer than STOP_LIMIT_S."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline_s = asyncio.get_running_loop().time() + STOP_LIMIT_S
        while self.pid() is not None:
            if asyncio.get_running_loop().time() > deadline_s:
                log.warning("serf agent killed for it did not leave within_s=%.0f", STOP_LIMIT_S)
                os.kill(pid, signal.SIGKILL)
                deadline_s = float("inf")
            await asyncio.sleep(0.05)
        with contextlib.suppress(OSError):  # what stands in it is no process of ours any more, and known by that
            self._pid_file.unlink()

    def _spawn(self, binary: str) -> int:
        """Start it in a session of its own, not tied to us: no Popen, which would want to see its end."""
        log_file = open_private(self._dir / "agent.log", os.O_WRONLY | os.O_APPEND)
        try:
            self._child = os.posix_spawn(
                binary,
                [binary, "agent", f"-config-file={self._settings_file}"],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log_file, 1),
                    (os.POSIX_SPAWN_DUP2, log_file, 2),
                ],
                setsid=True,
            )
        finally:
            os.close(log_file)
        return self._child

    def _reap(self) -> None:
        """Collect a child that ended, so that it does not stay a zombie."""
        if self._child is not None and os.waitpid(self._child, os.WNOHANG)[0]:
            self._child = None
