"""fusisctl's commands for the bearer tokens of the HTTP API: which count, and making another; over the Unix socket.

Does not: read or write a token's file.
"""

from __future__ import annotations

import argparse
import datetime

from fusisd.ctl import render, words
from fusisd.ctl.client import Client

PATH = "/v1/token"


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    token = words.group(commands, "token", "the bearer tokens that changes over TCP need")
    words.command(token, "list", show, "list the tokens that count, by fingerprint", "fusisctl token list")
    text = "make another token and print it, this once; the old ones end"
    rotate = words.command(token, "rotate", make, text, "fusisctl token rotate --overlap 3600")
    overlap = "old tokens count for so long more (default: they end now)"
    rotate.add_argument("--overlap", type=words.whole_seconds, default=0.0, metavar="S", help=overlap)


def show(client: Client, options: argparse.Namespace) -> int:
    """Fingerprints, as events name them."""
    answer = client.get_object(PATH, "tokens")
    if options.json:
        render.say_json(answer)
        return 0
    rows = [(str(one["fingerprint"]), _until(one["until_s"])) for one in answer["tokens"]]
    render.table(("FINGERPRINT", "COUNTS UNTIL"), rows)
    return 0


def make(client: Client, options: argparse.Namespace) -> int:
    """Rotate."""
    answer = client.send("POST", PATH, {"overlap_s": options.overlap})
    if options.json:
        render.say_json(answer)
    else:
        render.say(str(answer["token"]))
    return 0


def _until(until_s: float | None) -> str:
    if until_s is None:
        return "it is replaced"
    return datetime.datetime.fromtimestamp(until_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
