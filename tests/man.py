"""Writes the man pages docs/man/* from the parsers of the commands: `python -m tests.man`.

What a page says of options is what `--help` says; what else belongs into a page stands here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusisd import config
from fusisd.agent import __main__ as agent
from fusisd.ctl import __main__ as ctl
from pyipvs import cli

PAGES = Path(__file__).parents[1] / "docs" / "man"

_SIGNALS = {
    "fusisd": (
        ("SIGTERM, SIGINT", "stop, and leave IPVS, VIPs and the managed Serf agent as they are"),
        ("SIGHUP", "read the configuration again; the log names what needs a restart"),
    ),
    "fusis-agent": (
        ("SIGTERM, SIGINT", "drain, leave the cluster and undo what was changed on this server"),
        ("SIGHUP", "read the configuration again"),
        ("SIGUSR2", "end, and leave Serf, tags and this server as they are: for upgrades"),
    ),
}
_ENVIRONMENT = {
    "fusisd": (
        ("NOTIFY_SOCKET", "where systemd is told of READY=1 and STOPPING=1: sd_notify(3)"),
        ("WATCHDOG_USEC, WATCHDOG_PID", "how often systemd is told that the event loop goes on: sd_watchdog_enabled(3)"),
        ("LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES", "sockets to serve on: sd_listen_fds(3)"),
        ("JOURNAL_STREAM", "whether the log goes to the journal, and so tells priorities and no time"),
    ),
    "fusis-agent": (("NOTIFY_SOCKET", "where systemd is told how the agent is: sd_notify(3)"),),
}
_FILES = {
    "fusisd": (
        ("/etc/fusis/fusisd.toml", "settings, by the unit's --config; docs/fusisd.toml has every key"),
        ("/var/lib/fusisd", "the state directory: fusisd.db, token, serf/key"),
        ("/run/fusisd/fusisd.sock", "the Unix socket that fusisctl(1) uses"),
    ),
    "fusisctl": (("/run/fusisd/fusisd.sock", "fusisd's Unix socket"),),
    "fusis-agent": (
        ("/etc/fusis/agent.toml", "settings, by the unit's --config"),
        ("/var/lib/fusis-agent", "the state directory"),
    ),
}
_STATUS = "0 done, 1 failed, refused or (status, doctor) something is wrong, 2 the command line or configuration is wrong."


@dataclass(frozen=True)
class Page:
    """A command's page: its section of the manual, its parser, one line, and what to see also."""

    section: int
    parser: argparse.ArgumentParser
    line: str
    also: str

    @property
    def path(self) -> Path:
        return PAGES / f"{self.parser.prog}.{self.section}"


def pages() -> list[Page]:
    return [
        Page(8, config._parser(), "layer-4 load balancer on IPVS", "fusisctl(1), fusis-agent(8), ipvsadm(8), serf(1)"),
        Page(1, ctl._parser(), "ask a Fusis balancer", "fusisd(8), fusis-agent(8)"),
        Page(8, agent._parser(), "bring a server into a load balancer's services", "fusisd(8), fusisctl(1)"),
        Page(1, cli._parser(), "the kernel's IPVS from a terminal", "ipvsadm(8), fusisd(8)"),
    ]


def text(page: Page) -> str:
    """The page in man(7)."""
    program = page.parser.prog
    parts = [f'.\\" made by python -m tests.man\n.TH {program.upper()} {page.section} "" Fusis']
    parts.append(f".SH NAME\n{_plain(program)} \\- {_plain(page.line)}")
    parts.append(f".SH SYNOPSIS\n.nf\n{_plain(_usage(page.parser))}\n.fi")
    parts.append(f".SH DESCRIPTION\n{_plain(page.parser.description or '')}")
    parts.append("\n".join((".SH OPTIONS", *_options(page.parser))))
    commands = [line for below in _below(page.parser) for line in _command(below)]
    parts += ["\n".join((".SH COMMANDS", *commands))] if commands else []
    for title, tables in (("SIGNALS", _SIGNALS), ("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
        if rows := tables.get(program):
            parts.append("\n".join((f".SH {title}", *(line for name, meaning in rows for line in _item(name, meaning)))))
    parts.append(f".SH EXIT STATUS\n{_STATUS}")
    parts.append(f".SH SEE ALSO\n{page.also}")
    return "\n".join(parts) + "\n"


def _below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of commands that have none below them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                deeper = list(_below(below))
                yield from deeper or [below]


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f".SS {_plain(_usage(parser))}"
    yield _plain(parser.description or "")
    yield from _options(parser)
    example = re.fullmatch(r"examples?:\n(.*)", parser.epilog or "", re.DOTALL)
    if example:
        yield f".PP\n.EX\n{_plain(example[1])}\n.EE"


def _usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if "--help" in action.option_strings or isinstance(action, argparse._SubParsersAction):
            continue
        if action.help != argparse.SUPPRESS and (action.option_strings or action.help):
            meaning = formatter._expand_help(action) if action.help else ""
            yield from _item(formatter._format_action_invocation(action), meaning)


def _item(name: str, meaning: str) -> Iterator[str]:
    yield f".TP\n.B {_plain(name)}\n{_plain(meaning)}"


def _plain(words: str) -> str:
    """With what man(7) would take for its own made harmless."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", escaped)


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for page in pages():
        page.path.write_text(text(page))
        print(f"wrote {page.path}")
