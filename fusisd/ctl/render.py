"""What fusisctl prints: tables for people, JSON for programs.

Does not: ask.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def say(text: str) -> None:
    """One line, at once."""
    print(plain(text), flush=True)


def say_json(value: object) -> None:
    """As fusisd said it, indented."""
    print(json.dumps(value, indent=2))


def say_json_line(value: object) -> None:
    """In one line, at once, for who reads while it goes on."""
    print(json.dumps(value), flush=True)


def say_raw(text: str) -> None:
    """A line for a shell, or a text that is JSON already: as it is."""
    print(text)


def complain(text: str) -> None:
    """One line on stderr."""
    print(f"fusisctl: {text}", file=sys.stderr)


def progress(text: str) -> None:
    """What goes on, on stderr: on a terminal in the place of what was there before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{plain(text)}", end="", file=sys.stderr, flush=True)
    else:
        print(plain(text), file=sys.stderr)


def progress_ends() -> None:
    """Leave the line of progress."""
    if sys.stderr.isatty():
        print(file=sys.stderr)


def plain(text: str) -> str:
    """Without what could steer a terminal: a node's name is whatever some server calls itself."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns."""
    lines = [columns, *([plain(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in lines) for i in range(len(columns))]
    for row in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def endpoint(host: str, port: int) -> str:
    """`10.0.0.1:80`, `[fd00::1]:80`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def destination_rows(status: dict[str, Any]) -> list[tuple[object, ...]]:
    """The rows of DESTINATIONS for a service's status."""
    return [
        (
            f"  {name}",
            endpoint(row["address"], row["port"]),
            row["method"],
            weights(row),
            row["active"],
            row["inactive"],
            row["state"],
            row["reason"],
        )
        for name, row in status["destinations"].items()
    ]


DESTINATIONS = ("NAME", "ADDRESS", "METHOD", "WEIGHT", "ACTIVE", "INACTIVE", "STATE", "REASON")


def weights(row: dict[str, Any]) -> str:
    """The kernel's weight, and the one it should have where that is another; `-` when it is not in the kernel."""
    there = str(row["weight"]) if row["applied"] or row["weight"] else "-"
    wanted = "-" if row["wanted"] is None else str(row["wanted"])
    return there if there == wanted else f"{there} (wanted {wanted})"
