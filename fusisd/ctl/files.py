"""fusisctl's commands for a whole table as a file: `plan -f lb.toml`, `apply -f lb.toml`.

Does not: know HTTP (client.py does), or what a table may say (fusisd does).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusisd import toml
from fusisd.ctl import render, words
from fusisd.ctl.client import Client, CtlError, Refusal
from fusisd.errors import Invalid
from fusisd.fields import parsed

STDIN = Path("-")
_SIGNS = {"create": "+", "change": "~", "drain": "-", "delete": "-"}


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    plan_ = words.command(commands, "plan", plan, "what applying a file would change", "fusisctl plan -f lb.toml")
    text = "make the table as a file says, all of it or nothing; the same again changes nothing"
    apply_ = words.command(commands, "apply", apply, text, "fusisctl apply -f lb.toml")
    for parser in (plan_, apply_):
        parser.add_argument("-f", "--file", type=Path, required=True, metavar="FILE", help="TOML or JSON; - is stdin")
        parser.add_argument("--prune", action="store_true", help="remove what the file did not make, too")
    apply_.add_argument("--revision", type=int, metavar="N", help="only if nothing changed since that plan (plan --json)")


def plan(client: Client, options: argparse.Namespace) -> int:
    """Show it."""
    return _foretold(_asked(client, "plan", options), options)


def foretell(client: Client, method: str, path: str, document: object, options: argparse.Namespace) -> int:
    """What a change of one object would come to (`--dry-run`)."""
    return _foretold(client.send(method, f"{path}{'&' if '?' in path else '?'}dry_run=1", document), options)


def _foretold(told: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        render.say_json(told)
        return 0
    _tell(told["changes"])
    if told["steps"]:
        render.say("in the kernel and on the host:")
    for step in told["steps"]:
        render.say(f"    {step['what']}")
    return 0


def apply(client: Client, options: argparse.Namespace) -> int:
    """Make it so, and show what was done."""
    done = _asked(client, "apply", options)
    if options.json:
        render.say_json(done)
    else:
        _tell(done["changes"])
    return 0


def _asked(client: Client, verb: str, options: argparse.Namespace) -> dict[str, Any]:
    """fusisd's answer; a refusal of something in the file names the file."""
    query = "?prune=1" if options.prune else ""
    since = getattr(options, "revision", None)
    document, named = _document(options.file)
    try:
        if verb == "apply" and not named:
            _check_owner(client.send("POST", f"/v1/plan{query}", document)["changes"], options)
        if since is not None:
            query = f"{query}{'&' if query else '?'}revision={since}"
        answer: dict[str, Any] = client.send("POST", f"/v1/{verb}{query}", document)
    except Refusal as error:
        raise CtlError(f"{options.file}: {error}" if error.field is not None else str(error)) from None
    return answer


def _check_owner(changes: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Two files of one name would take each other's services away, so that needs the owner's name in the file itself.
    Raises CtlError."""
    gone = [_object(row) for row in changes if row["action"] in ("drain", "delete")]
    if gone and not options.prune:
        raise CtlError(f"{options.file} would remove {', '.join(gone)}, which a file of that name made: if it was this one,"
                       f' say so in it: managed_by = "{options.file.stem}"', 2)  # fmt: skip


def _document(file: Path) -> tuple[dict[str, Any], bool]:
    """The table of a file, and whether it says by whom it is managed: if not, by the file's name. Raises CtlError."""
    try:
        text = sys.stdin.read() if file == STDIN else file.read_text("utf-8")
        document = parsed(text) if text.lstrip().startswith("{") else toml.tables(text)
    except OSError as error:
        raise CtlError(f"cannot read {file}: {error.strerror}") from None
    except (Invalid, UnicodeDecodeError) as error:
        raise CtlError(f"{file}: {error}") from None
    if not isinstance(document, dict) or "managed_by" in document or file == STDIN:
        return document, True
    return {"managed_by": file.stem, **document}, False


def _tell(changes: list[dict[str, Any]]) -> None:
    """As a diff: what comes with +, what goes with -."""
    for row in changes:
        for line in _lines(row):
            render.say(line)
    if not changes:
        render.say("nothing to do")


def _lines(row: dict[str, Any]) -> Iterator[str]:
    created, drains = row["action"] == "create", " (when its connections have ended)" if row["action"] == "drain" else ""
    yield f"{_SIGNS[row['action']]} {_object(row)}{drains}"
    for name, field in row["fields"].items() if row["action"] in ("create", "change") else ():
        if field["before"] is not None and not created:
            yield f"-     {name}: {_value(field['before'])}"
        if field["after"] is not None:
            yield f"+     {name}: {_value(field['after'])}"


def _object(row: dict[str, Any]) -> str:
    if row["service"] is None:
        return "settings"
    inside = row["destination"]
    return f"service {row['service']}" if inside is None else f"destination {row['service']}/{inside}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
