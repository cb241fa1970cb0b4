"""What can go wrong between us and a Serf agent, by whose fault it is.

Three faults of talking, three classes: the agent said no or nothing (SerfError and its kind), the agent talked what the
protocol does not have (SerfProtocolError), and the caller asked for what the protocol does not have (SerfMisuse, which no
retry mends). A fourth: the agent cannot be run here at all.
Does not: carry a secret; a sentence names keys and types, never a value that was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusisd.errors import FusisError


class SerfError(FusisError):
    """The agent cannot be reached, refused or did not answer in time; `str()` says which and what to do."""


class SerfRefused(SerfError):
    """The agent said no to one request; the connection is as good as before."""

    def __init__(self, command: str, error: str, body: Mapping[str, Any] | None = None) -> None:
        """`error`: the agent's words. `body`: what came with them (keys and join answer even then), else empty."""
        super().__init__(f"the Serf agent refused {command}: {error}")
        self.command, self.error, self.body = command, error, dict(body or {})


class SerfProtocolError(SerfError):
    """The agent sent something that the protocol does not have; the connection is of no use any more."""


class SerfMisuse(FusisError, ValueError):
    """We asked for something that the protocol does not have; nothing was sent."""


class SupervisorError(FusisError):
    """The agent cannot be run here; `str()` says what to do."""
