"""The certificate that TLS shows, loaded again when its files change.

A file that is being written, or a key that does not fit yet, changes nothing: what was loaded last goes on being shown.
Does not: watch the files by itself (front.py does), or speak TLS.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from fusisd.errors import StartupError

log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A chain and its key in PEM files. `context` is replaced whole, so each new connection has the latest."""

    def __init__(self, chain: Path, key: Path) -> None:
        """Load them. Raises StartupError, which says what to do."""
        self._chain, self._key = chain, key
        try:
            self._stamp = self._stamped()
            self.context = self._loaded()
        except (OSError, ValueError) as error:
            raise StartupError(f"cannot use --tls-cert {chain} with --tls-key {key}: {_reason(error)}", 2) from None

    def refresh(self, *, anyway: bool = False) -> None:
        """Load them again when they have changed, or `anyway`; reads files, so not for a loop's thread."""
        try:
            stamp = self._stamped()
            if stamp == self._stamp and not anyway:
                return
            self._stamp = stamp
            self.context = self._loaded()
        except (OSError, ValueError) as error:
            log.warning("certificate not reloaded path=%s reason=%s", self._chain, _reason(error))
        else:
            log.info("certificate reloaded path=%s", self._chain)

    def _stamped(self) -> _Stamp:
        found = [path.stat() for path in (self._chain, self._key)]
        if found[1].st_mode & 0o007:
            raise ValueError(f"the key can be read by everybody: chmod o= {self._key}")
        return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._chain, self._key, password=_no_password)
        return context


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("the key has a password, and nobody is there to give it")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "they do not fit each other" if error.reason == "KEY_VALUES_MISMATCH" else f"no PEM ({error.reason})"
    return getattr(error, "strerror", None) or str(error)
