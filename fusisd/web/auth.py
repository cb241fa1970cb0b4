"""Who may do what: over the Unix socket everyone that can open it, over TCP the bearer of a token, and no other site's page.

Reads need no token unless all is private. A token may come over TLS, over loopback, and over plain TCP only where that is
allowed, because it could be read on the way.
Does not: keep tokens (tokens.py), know which addresses and names are let in (entry.py), or log.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusisd.web.entry import UNIX
from fusisd.web.errors import Forbidden, Unauthorized
from fusisd.web.tokens import Known, Tokens

Environ = Mapping[str, Any]

READS = ("GET", "HEAD")
ALWAYS_OPEN = ("/healthz", "/readyz")
"""They say nothing but that we answer, and serve; who watches that should not need a secret."""
_SAME_SITE = ("same-origin", "none")  # "none": the address bar


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """`allow_plaintext_writes`: tokens are taken over plain HTTP from other hosts too. `private`: reads need one as well."""

    tokens: Tokens
    allow_plaintext_writes: bool = False
    private: bool = False

    @classmethod
    def for_token(cls, token: str, *, allow_plaintext_writes: bool = False, private: bool = False) -> WritePolicy:
        """The policy for one token that is kept nowhere."""
        return cls(Tokens.of(token), allow_plaintext_writes, private)

    def check(self, environ: Environ) -> str:
        """Let a request pass and say whose it is (`unix`, `tcp 10.0.0.9 token=4f0c31a2`; a read without a token: `tcp
        10.0.0.9`), or raise Forbidden or Unauthorized."""
        peer, reads = str(environ.get("fusis.peer", "")), environ["REQUEST_METHOD"] in READS
        if not reads and _is_of_another_site(environ):  # over the socket, too: `ssh -L` leads a browser there
            raise Forbidden("a page of another site may not change anything here")
        if peer == UNIX:
            return peer
        if reads and (not self.private or environ["PATH_INFO"] in ALWAYS_OPEN):
            return f"tcp {peer}"
        if not (self.allow_plaintext_writes or environ["wsgi.url_scheme"] == "https" or _is_loopback(peer)):
            raise Forbidden(
                "what needs the token is off over plain HTTP from another host, because the token could be read on the "
                "way: use TLS (--tls-cert), the Unix socket or loopback on the balancer, or start fusisd with "
                "--allow-plaintext-writes"
            )
        return f"tcp {peer} token={self._bearer(environ).fingerprint}"

    def _bearer(self, environ: Environ) -> Known:
        scheme, _, token = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        known = self.tokens.find(token.strip()) if scheme.lower() == "bearer" else None
        if known is None:
            raise Unauthorized(
                "this needs the header 'Authorization: Bearer TOKEN' over TCP, with the token from fusisd's state "
                "directory or of `fusisctl token rotate`"
            )
        return known

    @property
    def fingerprint(self) -> str:
        """Of the newest token."""
        return self.tokens.valid()[0].fingerprint


def _is_of_another_site(environ: Environ) -> bool:
    """A browser says so in one of two headers, which no page can set (Fetch, 2.2.2; Fetch Metadata, 2)."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in _SAME_SITE
    origin = environ.get("HTTP_ORIGIN")
    return origin is not None and str(origin).partition("://")[2].lower() != str(environ.get("HTTP_HOST", "")).lower()


def _is_loopback(peer: str) -> bool:
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
