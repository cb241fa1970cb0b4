"""What can be wrong with a wish or with the daemon's own start, each with a sentence that says what to do.

Two families: a `Refused` is the answer to one command (the web room maps each class to a status code), a `StartupError`
ends the process with one line. Faults of the kernel are `pyipvs.IPVSError` and become a condition on the object.
Does not: know HTTP, log, or format JSON.
"""

from __future__ import annotations


class FusisError(Exception):
    """Base of everything this daemon raises on purpose; `str()` is one sentence for a person."""


class Refused(FusisError):
    """A command that was not accepted; nothing of it was stored or applied."""

    def __init__(self, message: str, field: str | None = None) -> None:
        """`field` is the model's name of the part that was wrong (`address`, `port` ...), None when it is not one part."""
        super().__init__(message)
        self.field = field
        self.of = ""
        """The object that the command was of, of several (`services.web.destinations.d1`); "" = none, or not told."""


class Invalid(Refused):
    """A value that could never be accepted: out of range, malformed, unknown word."""


class NotFound(Refused):
    """The named service or destination does not exist."""


class Conflict(Refused):
    """Something else has that name or address already; the message names it."""


class Stale(Conflict):
    """The object was changed since the revision that the request was made from."""


class Unavailable(Refused):
    """Cannot be done now, and nothing was changed: the store cannot be written, the loop is busy, or we are stopping."""


class StoreError(FusisError):
    """The store on disk could not be read or written; `str()` names the file and the cause."""


class StartupError(FusisError):
    """The daemon cannot start here; `str()` says what is wrong and how to mend it. `status` is the exit status (1 or 2)."""

    def __init__(self, message: str, status: int = 1) -> None:
        """`status` 2 means the command line or configuration is wrong, 1 that the machine is."""
        super().__init__(message)
        self.status = status
