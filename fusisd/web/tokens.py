"""The bearer tokens that count: on disk and in memory their SHA-256 alone, compared in constant time.

A token is 256 random bits, so a bare hash of it tells nothing. The first one is left in a file of its own for people to
fetch (`token`), which fusisd does not need: it may be removed. A rotation removes it, makes another token, which is told
once, and ends the old ones, at once or after a while in which both count; it is durable before the new one is told.
Does not: log a token, or decide what needs one (auth.py).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fusisd.errors import StartupError
from fusisd.files import write_private

HASHES = "tokens.json"
TOLD = "token"
_SHORTEST = 16


class Known(NamedTuple):
    """A token that counts; `until_s` is wall-clock time, None for the newest, which counts until it is replaced."""

    sha256: str
    until_s: float | None = None

    @property
    def fingerprint(self) -> str:
        """What it is called in events and in the log: 32 bits of a hash of its hash, which nobody can use."""
        return _hash(f"fingerprint {self.sha256}")[:8]


class Tokens:
    """Those of one state directory, or in memory alone. Any thread may ask and rotate."""

    def __init__(self, known: Iterable[Known], clock: Callable[[], float], state_dir: Path | None = None) -> None:
        """`known`: the newest first; `clock` is wall-clock seconds."""
        self._known, self._clock, self._state_dir = tuple(known), clock, state_dir
        self._lock = threading.Lock()

    @classmethod
    def of(cls, token: str) -> Tokens:
        """This one, in memory."""
        return cls([Known(_hash(token))], float)

    @classmethod
    def load(cls, state_dir: Path, clock: Callable[[], float]) -> Tokens:
        """Those whose hashes are there; else the one in the file for people, made when absent. Raises StartupError."""
        hashes, told = state_dir / HASHES, state_dir / TOLD
        try:
            if told.exists() and told.stat().st_mode & 0o077:
                raise StartupError(f"{told} can be read by others: chmod 600 {told}, and then `fusisctl token rotate`")
            if hashes.exists():
                return cls(_decoded(hashes.read_text("ascii")), clock, state_dir)
            if not told.exists():
                write_private(told, secrets.token_urlsafe(32) + "\n")
            token = told.read_text("ascii").strip()
            if len(token) < _SHORTEST:
                raise StartupError(f"{told} holds no token of {_SHORTEST} letters or more; remove it to get a new one")
            made = cls([Known(_hash(token))], clock, state_dir)
            made._write(made._known)
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"cannot read or make the tokens in {state_dir}: {error}") from None
        except (ValueError, TypeError, KeyError):
            raise StartupError(f"{hashes} is damaged; remove it and {told} to get a new token") from None
        return made

    def find(self, token: str) -> Known | None:
        """The one that this is, None for a guess. Takes as long for a guess as for a token."""
        hashed, found = _hash(token), None
        for known in self.valid():
            if hmac.compare_digest(hashed, known.sha256):
                found = known
        return found

    def valid(self) -> tuple[Known, ...]:
        """Those that count now, the newest first."""
        now = self._clock()
        return tuple(known for known in self._known if known.until_s is None or known.until_s > now)

    def rotate(self, overlap_s: float = 0.0) -> str:
        """A new token; the others count for `overlap_s` more, at the most. Raises OSError: the old ones count on."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            until_s = self._clock() + overlap_s
            old = [Known(one.sha256, min(one.until_s or until_s, until_s)) for one in self.valid()] if overlap_s else []
            known = (Known(_hash(token)), *old)
            if self._state_dir is not None:
                (self._state_dir / TOLD).unlink(missing_ok=True)
            self._write(known)
            self._known = known
        return token

    def _write(self, known: Iterable[Known]) -> None:
        if self._state_dir is not None:
            write_private(self._state_dir / HASHES, json.dumps([one._asdict() for one in known]) + "\n")


def _decoded(text: str) -> list[Known]:
    rows: list[dict[str, Any]] = json.loads(text)
    known = [Known(str(row["sha256"]), None if row["until_s"] is None else float(row["until_s"])) for row in rows]
    if not known:
        raise ValueError(text)
    return known


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
