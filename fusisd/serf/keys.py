"""Secrets in files that only root reads: the gossip key, the RPC key, and the ring of gossip keys that Serf itself keeps.

A ring holds every key that an agent can read with; the first is the one that it writes with. Serf rewrites the ring when
a key is rotated, and starts with it again, so the key file of a server says with which key it came in and the ring which it
has now. That is why a key file counts once: when it holds another key than the last time, somebody put a new one there.
Does not: speak to an agent, or decide when a key is rotated (rotation.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from fusisd.files import write_private
from fusisd.serf.errors import SupervisorError

log = logging.getLogger(__name__)


def load_or_make_key(path: Path) -> str:
    """The gossip encryption key in this file (32 bytes in base64), made 0600 when absent. Raises SupervisorError."""
    load_or_make(path, lambda: base64.b64encode(secrets.token_bytes(32)).decode())
    return load_key(path, "put back the file that was there; a new key is for a cluster that has none yet")


def load_key(path: Path, mend: str = "`fusisctl join-command` on the balancer prints how to get it") -> str:
    """The gossip key that somebody put there. Raises SupervisorError: unreadable, open to others, not a key."""
    key = load_secret(path)
    try:
        size = len(base64.b64decode(key, validate=True))
    except ValueError:
        size = 0
    if size not in (16, 24, 32):
        raise SupervisorError(f"{path} holds no Serf key; {mend}")
    return key


def load_secret(path: Path) -> str:
    """What stands in a file that only we can read. Raises SupervisorError: unreadable, open to others, empty."""
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SupervisorError(f"cannot read the key file {path}: {error}") from None
    if mode & 0o077:
        raise SupervisorError(f"{path} can be read by others: chmod 600 {path}")
    if not text:
        raise SupervisorError(f"{path} is empty: put back what was there, or remove it")
    return text


def load_or_make(path: Path, make: Callable[[], str]) -> str:
    """What stands in a file, made 0600 when absent, with its directory. Raises SupervisorError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_private(path, f"{make()}\n")
    except OSError as error:
        raise SupervisorError(f"cannot make {path}: {error}") from None
    return load_secret(path)


class Keyring:
    """The ring of one agent (`-keyring-file`), in its state directory."""

    def __init__(self, state_dir: Path) -> None:
        """Nothing is read or made yet."""
        self.path, self._note = state_dir / "keyring", state_dir / "keyring.from"

    def keys(self) -> list[str]:
        """Its keys, that in use first; none when there is no ring, or none that can be read."""
        try:
            found = json.loads(self.path.read_text("ascii"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("keyring made anew from the key file path=%s reason=%s", self.path, type(error).__name__)
            return []
        return found if isinstance(found, list) and all(isinstance(key, str) for key in found) else []

    def take(self, key: str) -> bool:
        """Make a ring ready for the key of the key file; whether it was another one, so that a running agent must start
        anew to have it. Raises OSError."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        ring = self.keys()
        if ring and self._noted() == digest:
            return False
        if key not in ring:
            write_private(self.path, json.dumps([key, *ring]))
        write_private(self._note, f"{digest}\n")
        return bool(ring) and key not in ring

    def _noted(self) -> str:
        try:
            return self._note.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""
