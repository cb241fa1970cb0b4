"""Who may write: over the Unix socket everyone that can open it, over TCP the bearer of the token.

The token is made at the first start and lies in a file that only root reads; in memory only its SHA-256 is
kept, and hashes are compared in constant time.
Does not: log a token, or guard reads.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from fusisd.errors import StartupError
from fusisd.web.errors import Forbidden, Unauthorized

_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """`token_sha256`: the token's hash in hex. `allow_plaintext_writes`: take it from other hosts too."""

    token_sha256: str
    allow_plaintext_writes: bool = False

    @classmethod
    def for_token(cls, token: str, *, allow_plaintext_writes: bool = False) -> WritePolicy:
        """The policy for a token as `load_or_make_token` returns it."""
        return cls(_hash(token), allow_plaintext_writes)

    def check(self, peer: str, authorization: str | None) -> str:
        """Let a write pass and say whose it is (`unix`, `tcp 10.0.0.9 token=4f0c31a2`), or raise Forbidden or Unauthorized.

        `peer` is `unix` or the client's address, `authorization` the header or None.
        """
        if peer == "unix":
            return peer
        if not (self.allow_plaintext_writes or _is_loopback(peer)):
            raise Forbidden(
                "changes over plain HTTP from another host are off, because the token could be read on the "
                "way: use the Unix socket or loopback on the balancer, or start fusisd with "
                "--allow-plaintext-writes"
            )
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_hash(token.strip()), self.token_sha256):
            raise Unauthorized(
                "a change over TCP needs the header 'Authorization: Bearer TOKEN' "
                "with the token from fusisd's state directory"
            )
        return f"tcp {peer} token={self.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """What the token is called in events and in the log: 32 bits of a hash of its hash, which nobody can use."""
        return _hash(f"fingerprint {self.token_sha256}")[:8]


def load_or_make_token(path: str | Path) -> str:
    """The token in this file, made (0600, durable) when the file is absent. Raises StartupError."""
    file = Path(path)
    try:
        if not file.exists():
            _make(file)
        if file.stat().st_mode & 0o077:
            raise StartupError(
                f"{file} can be read by others: chmod 600 {file}, or remove it to get a new token"
            )
        token = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read or make the token file {file}: {error}") from None
    if len(token) < _SHORTEST:
        raise StartupError(
            f"{file} holds no token of {_SHORTEST} letters or more; remove it to get a new one"
        )
    return token


def _make(file: Path) -> None:
    """Write it aside and rename, so that no crash leaves half a token."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as writer:
        writer.write(secrets.token_urlsafe(32) + "\n")
        writer.flush()
        os.fsync(writer.fileno())
    aside.rename(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _is_loopback(peer: str) -> bool:
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
