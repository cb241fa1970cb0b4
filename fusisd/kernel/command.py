"""Running one command of the host, with a time limit and an error that says what it said.

Does not: keep a shell, or run anything without a limit.
"""

from __future__ import annotations

import subprocess

from fusisd.errors import FusisError

LIMIT_S = 5.0


class CommandError(FusisError):
    """A command failed, is missing, or took too long; `str()` is one sentence."""


def run(argv: list[str], stdin: str = "") -> str:
    """What the command printed. Raises CommandError."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except FileNotFoundError:
        raise CommandError(f"{argv[0]} is not installed (Debian: apt-get install iproute2 iptables)") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"{' '.join(argv)} did not end within {LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
        raise CommandError(f"{' '.join(argv)}: {said}")
    return done.stdout
