"""The command `fusisctl`: what operators ask of a balancer, from a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fusisd.ctl import (
    completion,
    destinations,
    doctor,
    drains,
    events,
    files,
    keys,
    render,
    services,
    standing,
    tokens,
    whole,
)
from fusisd.ctl.client import Client, CtlError


def main(arguments: list[str] | None = None) -> int:
    """Run fusisctl with this command line (None: the process's own); the exit status: 0, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(_client(options), options)
    except CtlError as error:
        render.complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return 130  # as a shell says of SIGINT; what was asked for goes on in the daemon
    except BrokenPipeError:  # `fusisctl why web | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return 141  # as a shell says of SIGPIPE
    return status


def _client(options: argparse.Namespace) -> Client:
    token = keys.secret(options.token_file) if options.token_file else None
    return Client(options.socket, options.url, token, options.ca_file, options.plaintext_token)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusisctl",
        description="Ask a Fusis balancer.",
        epilog="example:\n  fusisctl service add web --address 10.0.0.1 --port 80",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--socket", type=Path, default=Path("/run/fusisd/fusisd.sock"), metavar="PATH", help="(default %(default)s)"
    )
    parser.add_argument("--url", metavar="URL", help="http://HOST:8000 or https:// instead of the socket")
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="PEM of authorities to believe with https:// (default: this machine's)"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token for changes through --url")
    parser.add_argument(
        "--plaintext-token", action="store_true", help="send it by http:// to another host, too, where it can be read"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for noun in (standing, doctor, events, services, destinations, drains, files, whole, keys, tokens):
        noun.declare(commands)
    completion.declare(commands, parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
