"""The routes of the bearer tokens: which count, by fingerprint, and making another; over the Unix socket alone.

A token must not be what makes tokens: who stole one could keep the owner out.
Does not: keep them (fusisd.web.tokens).
"""

from __future__ import annotations

from bottle import HTTPResponse, request

from fusisd.errors import StoreError
from fusisd.fields import object_of, seconds
from fusisd.ports import Core
from fusisd.web.compat import who
from fusisd.web.entry import UNIX
from fusisd.web.errors import Forbidden
from fusisd.web.tokens import Tokens
from fusisd.web.v1 import shapes
from fusisd.web.v1.objects import Document
from fusisd.web.v1.routes import Body, Route
from fusisd.web.v1.services import answer

_ROTATION = object_of({"overlap_s": seconds(0, 7 * 86400)})
_KNOWN = shapes.shape({"fingerprint": shapes.TEXT, "until_s": shapes.or_null(shapes.NUMBER)})
_LISTED = shapes.shape({"tokens": {"type": "array", "items": _KNOWN}})
_MADE = shapes.shape({"token": shapes.TEXT, "fingerprint": shapes.TEXT, "overlap_s": shapes.NUMBER})


class TokensRoom:
    """The routes of this room over the tokens."""

    def __init__(self, tokens: Tokens, core: Core) -> None:
        """Those that the write policy asks; the core is told of another one."""
        self._tokens, self._core = tokens, core

    def routes(self) -> list[Route]:
        """What can be asked."""
        path = "/v1/token"
        return [
            Route("GET", path, self.list_tokens, {200: _LISTED}, refusals=(403,)),
            Route("POST", path, self.rotate_token, {200: _MADE}, body=Body(_ROTATION), plans=False),
        ]

    def list_tokens(self) -> HTTPResponse:
        """The tokens that count, by fingerprint; over the Unix socket."""
        _check_local()
        return answer({"tokens": [{"fingerprint": one.fingerprint, "until_s": one.until_s} for one in self._tokens.valid()]})

    def rotate_token(self, asked: Document) -> HTTPResponse:
        """Make another token, and tell it this once; over the Unix socket."""
        _check_local()
        overlap_s = asked.get("overlap_s", 0.0)
        try:
            token = self._tokens.rotate(overlap_s)
        except OSError as error:
            raise StoreError(f"the tokens cannot be written: {error.strerror}; the old ones count on") from None
        fingerprint = self._tokens.valid()[0].fingerprint
        self._core.tell("token", f"the token is {fingerprint} now, older ones for {overlap_s:g} s", who(request.environ))
        told = answer({"token": token, "fingerprint": fingerprint, "overlap_s": overlap_s})
        told.set_header("Cache-Control", "no-store")
        return told


def _check_local() -> None:
    if request.environ.get("fusis.peer") != UNIX:
        raise Forbidden("tokens are made over the Unix socket on the balancer alone")
