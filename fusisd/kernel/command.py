"""Running one command of the host, with a time limit and an error that says what it said.

Does not: keep a shell, or run anything without a limit.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from fusisd.errors import FusisError

LIMIT_S = 5.0


class CommandError(FusisError):
    """A command failed, is missing, or took too long; `str()` is one sentence."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that came to its end, well or not."""

    argv: Sequence[str]
    status: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """Its complaint in one line."""
        return " ".join((self.stderr or self.stdout).split()) or f"exit status {self.status}"


def attempt(argv: Sequence[str], stdin: str = "") -> Ended:
    """Run it to its end, whatever the exit status. Raises CommandError: not installed, or too slow."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except FileNotFoundError:
        raise CommandError(f"{argv[0]} is not installed (Debian: apt-get install iproute2 iptables)") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"{' '.join(argv)} did not end within {LIMIT_S:.0f} s") from None
    return Ended(argv, done.returncode, done.stdout, done.stderr)


def run(argv: Sequence[str], stdin: str = "") -> str:
    """What the command printed. Raises CommandError, also when it failed."""
    ended = attempt(argv, stdin)
    if ended.status != 0:
        raise CommandError(f"{' '.join(argv)}: {ended.said}")
    return ended.stdout
