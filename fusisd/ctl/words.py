"""Command lines: how a command is declared, with its help and an example, and what a word of it means.

Does not: ask or print.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

from fusisd.ctl.client import Client, CtlError

Run = Callable[[Client, argparse.Namespace], int]
Commands = Any
"""What argparse's add_subparsers gives; it has no public name."""


def command(commands: Commands, name: str, run: Run, text: str, example: str) -> argparse.ArgumentParser:
    """Declare a command; every one takes --json."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def group(commands: Commands, name: str, text: str) -> Commands:
    """Declare a noun with commands of its own."""
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    return parser.add_subparsers(required=True, metavar="COMMAND")


def add_dry_run(*parsers: argparse.ArgumentParser) -> None:
    """That a change is only told."""
    for parser in parsers:
        parser.add_argument("--dry-run", action="store_true", help="say what it would change, and change nothing")


def add_removal(parser: argparse.ArgumentParser) -> None:
    """How something is removed."""
    parser.add_argument("--drain", type=whole_seconds, metavar="S", help="wait so long for its connections (default 60)")
    parser.add_argument("--now", action="store_true", help="cut its connections")


def removal(options: argparse.Namespace) -> str:
    """The query of a DELETE."""
    if options.now and options.drain is not None:
        raise CtlError("give --drain or --now, not both", 2)
    return "?now=1" if options.now else "" if options.drain is None else f"?drain_s={seconds(options.drain)}"


def whole_seconds(text: str) -> float:
    """A number of seconds. Raises ValueError, which argparse words."""
    found = float(text)
    if not math.isfinite(found) or found < 0:
        raise ValueError(text)
    return found


def seconds(number: float) -> str:
    """As a query says it: never 1e+07, whose + is a space there."""
    return f"{number:f}".rstrip("0").rstrip(".")


def service_and_destination(text: str) -> tuple[str, str | None]:
    """`web/rs1`, or `web` alone."""
    service, slash, destination = text.partition("/")
    if not service or (slash and not destination) or "/" in destination:
        raise argparse.ArgumentTypeError(f"{text!r} must be SERVICE or SERVICE/DESTINATION")
    return service, destination or None


def one_destination(text: str) -> tuple[str, str]:
    """`web/rs1`."""
    service, destination = service_and_destination(text)
    if destination is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be SERVICE/DESTINATION")
    return service, destination


def check(text: str) -> dict[str, Any]:
    """A check's document: its kind alone, or all of it as JSON."""
    if not text.startswith("{"):
        return {"kind": text}
    return _json(text)


def _json(text: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from None
    return document


def tunnel(text: str) -> dict[str, Any]:
    """A tunnel's document: `ipip`, `gre`, `gue:PORT`, or all of it as JSON."""
    if text.startswith("{"):
        return _json(text)
    kind, _, port = text.partition(":")
    return {"type": kind, "port": int(port)} if port else {"type": kind}


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The fields that the command line gives; those of --unset are null."""
    fields = {name: value for name in names if (value := getattr(options, name)) is not None}
    for name in getattr(options, "unset", None) or ():
        if name not in names:
            raise CtlError(f"--unset {name}: one of {', '.join(names)}", 2)
        fields[name] = None
    return fields
