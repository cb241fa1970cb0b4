"""Making the steps of prepare.py true on this server, by iproute2 and /proc/sys, and undoing exactly that.

`bring` is level-triggered: it looks what is there, notes what it is about to make, makes it, and takes away what was made
once and is not wanted any more. What is there already and not noted is another's: used, never removed. A switch that has
another value than ours when it is to be put back is left, and said.
Does not: decide what is needed. Blocking: called in a thread of its own.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusisd.agent.prepare import BACK_TABLE, MSS_TABLE, Made, Module, Place, Step, Switch, family
from fusisd.agent.record import RecordFile, Undo
from fusisd.errors import FusisError, StartupError

log = logging.getLogger(__name__)

PROC_SYS = Path("/proc/sys")
LIMIT_S = 10.0
_ABSENT = ("cannot assign requested address", "cannot find device", "no such ", "not found", "does not exist")
"""How kernels and iproute2 of some years say that what is to go is not there, in small letters."""


class HostError(FusisError):
    """A command of the host failed; `str()` is one sentence."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What could not be: steps with the reason, and a sentence for each thing of ours that is still there."""

    failed: Mapping[Step, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """All of it, for people."""
        return (*self.failed.values(), *self.left)


class Host:
    """This server."""

    def __init__(self, record: RecordFile) -> None:
        """`record` is what was made here before."""
        self._file = record

    def bring(self, services: Iterable[Iterable[Step]]) -> Brought:
        """Make the steps of these services true, in their order, and undo what was made for others. A service's steps end
        with the first that fails, and where a switch cannot be set what was made behind it is taken away: with a VIP and
        without the ARP switches this server would answer for the balancer. Raises HostError: it cannot be seen what is
        there, or not be noted what is to be changed."""
        groups = [tuple(steps) for steps in services]
        wanted = tuple(dict.fromkeys(step for steps in groups for step in steps))
        record = self._file.record
        if not wanted and not record.made and not record.switches:
            return Brought()
        named = {step.identity for step in wanted if isinstance(step, Made)}
        there = present(named) if wanted else frozenset()
        self._note(wanted, there)
        failed, kept = _made(groups, there)
        switches = {step.name for step in wanted if isinstance(step, Switch)}
        left = self._undo([i for i in record.made if i not in kept], [s for s in record.switches if s not in switches])
        return Brought(failed, tuple(left))

    def _note(self, wanted: tuple[Step, ...], there: frozenset[str]) -> None:
        """Write down what is about to be made. Raises HostError."""
        record = self._file.record
        before = (len(record.made), len(record.switches))
        for step in wanted:
            if isinstance(step, Made) and step.identity not in there:
                record.made.setdefault(step.identity, Undo(step.family, step.delete))
            if isinstance(step, Switch) and not step.goes and (now := _read(step.name)) and not _holds(now, step):
                record.switches.setdefault(step.name, (now, str(step.value)))
        if (len(record.made), len(record.switches)) != before:
            self._write()

    def _undo(self, made: list[str], switches: list[str]) -> Iterator[str]:
        """Take away, in the reverse order; a sentence for each that could not be."""
        record = self._file.record
        for identity in reversed(made):
            undo = record.made[identity]
            ended = _ip(undo.family, undo.delete.split()) if undo.delete else None
            if ended is not None and ended.returncode != 0 and not any(word in ended.stderr.lower() for word in _ABSENT):
                yield f"ip {undo.delete}: {_said(ended)}"
                continue
            log.info("undone what=%s", identity)
            del record.made[identity]
        for name in reversed(switches):
            yield from _put_back(name, *record.switches.pop(name))
        if made or switches:
            self._write()

    def _write(self) -> None:
        try:
            self._file.write()
        except OSError as error:
            raise HostError(f"cannot note what is about to be changed: {error}; nothing was changed") from None


def _made(groups: Iterable[tuple[Step, ...]], there: frozenset[str]) -> tuple[dict[Step, str], set[str]]:
    """Make them; what failed and why, and the identities of what is to stay."""
    done: dict[Step, str] = {}
    kept: set[str] = set()
    for steps in groups:
        for number, step in enumerate(steps):
            if step not in done:
                done[step] = _make(step, there)
            if isinstance(step, Made):
                kept.add(step.identity)
            if done[step]:
                rest = () if isinstance(step, Switch) else steps[number + 1 :]
                kept |= {one.identity for one in rest if isinstance(one, Made)}
                break
    return {step: said for step, said in done.items() if said}, kept


def _make(step: Step, there: frozenset[str]) -> str:
    """Make one step true; why it could not be."""
    if isinstance(step, Switch):
        return _set(step)
    if isinstance(step, Module):
        return "" if Path("/sys/module", step.name).exists() else _load(step)
    if step.identity in there:
        return ""
    ended = _ip(step.family, step.add.split())
    if ended.returncode == 0:
        log.info("made what=%s reason=%s", step.add, step.reason)
        return ""
    return "" if "File exists" in ended.stderr else f"ip {step.add}: {_said(ended)}"


def _set(step: Switch) -> str:
    now = _read(step.name)
    if now is None:
        return f"there is no sysctl {step.name}"
    if _holds(now, step):
        return ""
    try:
        (PROC_SYS / step.name).write_text(str(step.value))
    except OSError as error:
        return f"cannot set {step.name}={step.value} ({step.reason}): {error.strerror}"
    log.info("sysctl name=%s value=%d reason=%s", step.name, step.value, step.reason)
    return ""


def _load(step: Module) -> str:
    ended = _run(["modprobe", step.name])
    built_in = ended.returncode == 0
    return "" if built_in else f"cannot load the kernel module {step.name} ({step.reason}): {_said(ended)}"


def _put_back(name: str, before: str, ours: str) -> Iterator[str]:
    now = _read(name)
    if now is None or now == before:
        return
    if now != ours:
        yield f"{name} is {now}, not the {ours} that was set here: left (it was {before})"
        return
    try:
        (PROC_SYS / name).write_text(before)
    except OSError as error:
        yield f"cannot set {name} back to {before}: {error.strerror}"
    else:
        log.info("sysctl undone name=%s value=%s", name, before)


def _holds(now: str, step: Switch) -> bool:
    return now.isdigit() and int(now) >= step.value


def _read(name: str) -> str | None:
    try:
        return (PROC_SYS / name).read_text().strip()
    except OSError:
        return None


def present(asked: Iterable[str]) -> frozenset[str]:
    """Which of these identities (prepare.Made) are there, and others of their kinds. Raises HostError."""
    kinds = {tuple(identity.split()[:2]) for identity in asked}
    tables = {(words[1], words[-1]) for words in (identity.split() for identity in asked) if words[0] == "route"}
    found = {identity for link in rows("address", "show") for identity in _of_link(link)} if kinds else set()
    for number in (4, 6):
        if ("rule", str(number)) in kinds:
            found.update(f"rule {number} {text}" for row in rows("rule", "show", family=number) if (text := _rule(row)))
        if ("fou", str(number)) in kinds and Path("/sys/module/fou").exists():
            found.update(f"fou {number} {row['port']}" for row in rows("fou", "show", family=number))
    for of, table in tables:
        found.update(f"route {of} {_route(row, table)}" for row in routes(int(of), table))
    return frozenset(found)


def _of_link(link: dict[str, Any]) -> Iterator[str]:
    yield f"link {link['ifname']}"
    if "UP" in link.get("flags", []):
        yield f"up {link['ifname']}"
    yield from (f"address {row['local']} {link['ifname']}" for row in link.get("addr_info", []) if "local" in row)


def _rule(row: dict[str, Any]) -> str:
    if str(row.get("table")) not in (str(MSS_TABLE), str(BACK_TABLE)):
        return ""
    ports = f" ipproto {row['ipproto']} sport {row['sport']}" if "sport" in row and "ipproto" in row else ""
    return f"from {row.get('src')}{ports} lookup {row['table']}"


def _route(row: dict[str, Any], table: str) -> str:
    words = [row["dst"], *(["via", row["gateway"]] if "gateway" in row else []), "dev", row["dev"]]
    words += ["onlink"] if "onlink" in row.get("flags", ()) else []
    words += ["metric", str(row["metric"])] if "metric" in row else []
    words += [f"advmss {metric['advmss']}" for metric in row.get("metrics", []) if "advmss" in metric]
    return " ".join([*words, f"table {table}"])


def routes(number: int, table: int | str) -> list[dict[str, Any]]:
    """The rows of a routing table, none when there is no such table."""
    ended = _ip(number, ["-json", "route", "show", "table", str(table)])
    found: list[dict[str, Any]] = json.loads(ended.stdout or "[]") if ended.returncode == 0 else []
    return [row for row in found if "dev" in row]


def place(address: str, balancer: str) -> Place:
    """This server as prepare.py sees it. Raises StartupError, HostError."""
    for link in rows("address", "show"):
        if any(row.get("local") == address for row in link.get("addr_info", [])):
            main = {number: tuple(routes(number, "main")) for number in (4, 6)}
            return Place(address, link["ifname"], balancer, int(link.get("mtu", 1500)), main)
    raise StartupError(f"{address} is no address of this server any more")


def own_address(iface: str | None, balancer: str) -> str:
    """The address that this server has towards the balancer, or on that interface. Raises StartupError."""
    try:
        if iface is None:
            found = rows("route", "get", balancer)
            if not found or not found[0].get("prefsrc"):
                raise StartupError(f"there is no route to the balancer {balancer}")
            return str(found[0]["prefsrc"])
        links = rows("address", "show", "dev", iface)
    except HostError as error:
        raise StartupError(str(error)) from None
    name, whole = ("inet6", 128) if family(balancer) == 6 else ("inet", 32)
    addresses = [
        address
        for row in links
        for address in row.get("addr_info", [])
        if address.get("family") == name and address.get("scope") in ("global", "host")
    ]
    if not addresses:
        raise StartupError(f"--iface {iface} has no {name} address")
    # One without a network may be a VIP that was put there for route or tunnel: taken only when there is no other.
    return str(min(addresses, key=lambda row: (row["prefixlen"] == whole, row["scope"] != "global"))["local"])


def rows(*words: str, family: int | None = None) -> list[dict[str, Any]]:
    """What `ip -json` says. Raises HostError."""
    ended = _ip(family, ["-json", *words])
    if ended.returncode != 0:
        raise HostError(f"ip {' '.join(words)}: {_said(ended)}")
    found: list[dict[str, Any]] = json.loads(ended.stdout or "[]")
    return found


def _ip(number: int | None, words: list[str]) -> subprocess.CompletedProcess[str]:
    return _run(["ip", *([f"-{number}"] if number else []), *words])


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run to its end. Raises HostError: not installed, too slow."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except FileNotFoundError:
        raise HostError(f"the program {argv[0]} is not installed (Debian: apt-get install iproute2 kmod)") from None
    except OSError as error:
        raise HostError(f"cannot run {argv[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{' '.join(argv)} did not end within {LIMIT_S:.0f} s") from None


def _said(ended: subprocess.CompletedProcess[str]) -> str:
    return " ".join(ended.stderr.split()) or f"exit status {ended.returncode}"


def machine() -> str:
    """This boot and this network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"
