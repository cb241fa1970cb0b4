"""fusisctl's commands for the table as a whole: `adopt`, `release`, `pause`, `withdraw`, `settings`, `export`, `import`.

Does not: know HTTP (client.py does).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fusisd.ctl import render, words
from fusisd.ctl.client import Client, CtlError, place

_TIMEOUTS = ("tcp_s", "tcp_fin_s", "udp_s")


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    text = "make a service of the kernel ours as it stands; without arguments: what could be adopted"
    adopt_ = words.command(commands, "adopt", adopt, text, "fusisctl adopt tcp/10.0.0.1:80 web")
    adopt_.add_argument("key", nargs="?", metavar="KEY")
    adopt_.add_argument("name", nargs="?", metavar="NAME")
    text = "forget a service and leave it in the kernel"
    words.command(commands, "release", release, text, "fusisctl release web").add_argument("name", metavar="NAME")
    pause_ = words.command(commands, "pause", pause, "change nothing in the kernel for a while", "fusisctl pause 300")
    pause_.add_argument("seconds", nargs="?", type=words.whole_seconds, metavar="SECONDS")
    pause_.add_argument("--end", action="store_true", help="end a pause")
    text = "take this balancer out: its VIPs leave the host, the kernel's table stays"
    withdraw_ = words.command(commands, "withdraw", withdraw, text, "fusisctl withdraw")
    withdraw_.add_argument("--undo", action="store_true", help="put its VIPs back")
    example = "fusisctl settings --range 10.0.0.96/27 --tcp-timeout 900"
    settings_ = words.command(commands, "settings", settings, "show or change timeouts and VIP ranges", example)
    for name in _TIMEOUTS:
        option = f"--{name[:-2].replace('_', '-')}-timeout"
        settings_.add_argument(option, dest=name, type=int, metavar="S", help="0: as the kernel has it")
    settings_.add_argument("--range", dest="ranges", action="append", metavar="NETWORK", help="VIPs are allocated from it")
    settings_.add_argument("--no-ranges", action="store_true", help="allocate none")
    export_ = words.command(commands, "export", export_all, "all that operators want, as a file", "fusisctl export lb.json")
    export_.add_argument("file", nargs="?", type=Path, metavar="FILE")
    text = "make everything of a file so, and remove nothing"
    import_ = words.command(commands, "import", import_all, text, "fusisctl import lb.json")
    import_.add_argument("file", type=Path, metavar="FILE")
    import_.add_argument("--adopt", action="store_true", help="services of it that the kernel has already become ours")


def adopt(client: Client, options: argparse.Namespace) -> int:
    """Make it ours."""
    if options.key is None:
        return _tell_foreign(client, options)
    if options.name is None:
        raise CtlError("adopt by which name? fusisctl adopt KEY NAME", 2)
    answer = client.send("POST", "/v1/adopt", {"name": options.name, "key": options.key})
    return _tell(answer, f"{options.key} is ours as {options.name}", options)


def _tell_foreign(client: Client, options: argparse.Namespace) -> int:
    found = client.get_object("/v1/foreign", "foreign")
    if options.json:
        render.say_json(found)
        return 0
    rows = [(row["key"], row["scheduler"], len(row["destinations"])) for row in found["foreign"]]
    render.table(("KEY", "SCHEDULER", "DESTINATIONS"), rows)
    return 0


def release(client: Client, options: argparse.Namespace) -> int:
    """Forget it."""
    answer = client.send("POST", f"{place(options.name)}/release", {})
    return _tell(answer, f"{answer['key']} stands in the kernel and is not ours any more", options)


def pause(client: Client, options: argparse.Namespace) -> int:
    """Begin or end."""
    if options.end == (options.seconds is not None) or options.seconds == 0:
        raise CtlError("give SECONDS, or --end", 2)
    seconds = 0.0 if options.end else options.seconds
    answer = client.send("POST", "/v1/pause", {"seconds": seconds})
    said = "the pause is over" if options.end else f"nothing is changed in the kernel for {seconds:g} s"
    return _tell(answer, said, options)


def withdraw(client: Client, options: argparse.Namespace) -> int:
    """Take it out, or back; 1 when it is noted and a VIP is there still."""
    answer = client.send("DELETE" if options.undo else "POST", "/v1/withdraw")
    left = [] if options.undo else answer["vips"]
    said = "this balancer is back" if options.undo else "this balancer is withdrawn; fusisctl withdraw --undo ends it"
    others = [] if options.undo else answer["external"]
    said += f"; {', '.join(others)} stay until their owner takes them away (keepalived asks /readyz)" if others else ""
    still = f"still on the host: {', '.join(left)} (see fusisctl status)"
    _tell(answer, f"{said}; {still}" if left else said, options)
    return 1 if left else 0


def settings(client: Client, options: argparse.Namespace) -> int:
    """Show, or change and show."""
    found = client.get_object("/v1/settings", "timeouts")
    timeouts = {name: value for name in _TIMEOUTS if (value := getattr(options, name)) is not None}
    wanted: dict[str, Any] = {"timeouts": timeouts} if timeouts else {}
    if options.ranges and options.no_ranges:
        raise CtlError("give --range or --no-ranges, not both", 2)
    if options.ranges or options.no_ranges:
        wanted["ranges"] = options.ranges or []
    if wanted:
        found = client.send("PUT", "/v1/settings", wanted)
    if options.json:
        render.say_json(found)
        return 0
    for name, value in found["timeouts"].items():
        render.say(f"{name:<9}  {value or '(as the kernel has it)'}")
    render.say(f"ranges     {' '.join(found['ranges']) or '(none)'}")
    return 0


def export_all(client: Client, options: argparse.Namespace) -> int:
    """To a file, or to stdout."""
    text = json.dumps(client.get_object("/v1/export", "schema"), indent=2)
    if options.file is None or str(options.file) == "-":
        render.say_raw(text)
        return 0
    try:
        options.file.write_text(text + "\n", "ascii")
    except OSError as error:
        raise CtlError(f"cannot write {options.file}: {error.strerror}") from None
    return _tell({"file": str(options.file)}, f"exported to {options.file}", options)


def import_all(client: Client, options: argparse.Namespace) -> int:
    """Tell what was done."""
    try:
        text = sys.stdin.read() if str(options.file) == "-" else options.file.read_text("utf-8")
        document = json.loads(text)
    except OSError as error:
        raise CtlError(f"cannot read {options.file}: {error.strerror}") from None
    except ValueError as error:
        raise CtlError(f"{options.file} is no export: {error}") from None
    answer = client.send("POST", "/v1/import?adopt=1" if options.adopt else "/v1/import", document)
    if options.json:
        render.say_json(answer)
        return 0
    told = [row for row in answer["objects"] if row["outcome"] != "unchanged"]
    if not told:
        render.say("nothing to do")
        return 0
    render.table(("OUTCOME", "OBJECT"), [(row["outcome"], _object(row)) for row in told])
    return 0


def _object(row: dict[str, Any]) -> str:
    if row["service"] is None:
        return "settings"
    return row["service"] if row["destination"] is None else f"{row['service']}/{row['destination']}"


def _tell(answer: Any, sentence: str, options: argparse.Namespace) -> int:
    if options.json:
        render.say_json(answer)
    else:
        render.say(sentence)
    return 0
