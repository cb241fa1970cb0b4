"""The command `fusis-agent`: `run` (also without any word), and the orders to one that runs."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fusisd import logs
from fusisd.agent import commands, config, orders, signals
from fusisd.errors import FusisError, Invalid, StartupError

_ORDERS = {
    "drain": "no new connections; those there are go on",
    "maint": "no connections at all",
    "ready": "take connections again, as the local check allows",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the agent with this command line (None: the process's own); the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["run", *words]
    line = _parser().parse_args(words)
    try:
        return run(words, line) if line.command == "run" else _ordered(line)
    except FusisError as error:
        print(f"fusis-agent: {error}", file=sys.stderr)
        if isinstance(error, StartupError):
            return error.status
        return 2 if isinstance(error, Invalid) else 1
    except BrokenPipeError:  # `fusis-agent doctor | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return 141  # as a shell says of SIGPIPE


def _ordered(line: argparse.Namespace) -> int:
    status = int(line.carry(line))
    sys.stdout.flush()  # here, where a reader that has gone is answered
    return status


def run(words: Sequence[str], line: argparse.Namespace) -> int:
    """Run until a signal. Raises FusisError."""
    signals.hold_back()
    try:
        from fusisd.agent.agent import Agent
    except ModuleNotFoundError as error:
        if error.name != "msgpack":
            raise
        raise StartupError("the package msgpack is missing: pip install 'pyipvs[fusisd]'") from None
    logs.configure(line.log_level, line.log_format, sys.stderr)
    asyncio.run(Agent(config.read(line), lambda: config.read(_parser().parse_args(list(words))), words).run())
    return 0


def doctor(line: argparse.Namespace) -> int:
    """Examine this server as this line configures it, or else as the running agent is configured. Raises FusisError."""
    if line.config is None and line.balancer is None:
        words = orders.ask((line.state_dir or config.STATE_DIR) / "orders.sock", {"do": "status"})["line"]
        return commands.doctor(config.read(_parser().parse_args(words)), line.json)
    return commands.doctor(config.read(line), line.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusis-agent",
        description="Bring this server into a Fusis balancer's services.",
        epilog="`fusis-agent OPTIONS` is `fusis-agent run OPTIONS`; `fusisctl join-command` on the balancer prints it.",
    )
    below = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    running = below.add_parser("run", help="make this server ready and keep it in the services; see run --help")
    config.add_options(running)
    running.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"),
                         help="(default %(default)s)")  # fmt: skip
    running.add_argument("--log-format", default="text", choices=logs.FORMATS, help="(default %(default)s)")
    _order(below, "status", "how each service stands", commands.status)
    for word, what in _ORDERS.items():
        _services(_order(below, word, what, commands.order))
    weight = _order(below, "weight", "another share of the connections", commands.order)
    weight.add_argument("weight", metavar="WEIGHT", help="per cent of the configured weight, as 50%%, or a number")
    _services(weight)
    examining = below.add_parser("doctor", help="what is wrong on this server, and how to mend it",
                                 description="Say what is wrong on this server, and how to mend it; without options it"
                                 " examines for the agent that runs here.")  # fmt: skip
    config.add_options(examining)
    examining.add_argument("--json", action="store_true", help="the answer as JSON")
    examining.set_defaults(carry=doctor)
    _order(below, "undo", "undo what an agent that runs no more changed on this server", commands.undo)
    return parser


def _services(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("services", nargs="*", metavar="SERVICE", help="(default: all)")


def _order(
    below: argparse._SubParsersAction[argparse.ArgumentParser], word: str, what: str, carry: commands.Command
) -> argparse.ArgumentParser:
    parser = below.add_parser(word, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("--state-dir", type=Path, default=config.STATE_DIR, metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    parser.set_defaults(carry=carry)
    return parser


if __name__ == "__main__":
    sys.exit(main())
