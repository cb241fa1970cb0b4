"""fusisctl's command `doctor`: what is wrong on this balancer, and how to mend it; with a fusisd that runs and without.

It is the one command of fusisctl that looks at the machine itself, with the balancer's own kernel room; that needs root.
Does not: judge kernel and network (fusisd.kernel.doctor does), or change anything.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusisd.ctl import keys, render, words
from fusisd.ctl.client import Client, CtlError
from fusisd.documents import decode_intent
from fusisd.errors import FusisError
from fusisd.findings import Finding, lines
from fusisd.model import Intent
from pyipvs import ForwardingMethod

STORE = "fusisd.db"
LITTLE_BYTES = 64 << 20
"""The store's log alone may grow to some MiB, and a migration copies the store."""
_CLOCK = Path("/run/systemd/timesync/synchronized")


@dataclass(frozen=True, slots=True)
class _Told:
    """What fusisd says, or its store when it does not run: `status` None. `damage`: why the store could not be read."""

    status: Mapping[str, Any] | None
    silence: str = ""
    intent: Intent = field(default_factory=Intent)
    by_nat: frozenset[str] = frozenset()
    """Addresses of destinations by NAT."""
    iface: str = ""
    withdrawn: bool = False
    damage: str = ""


def declare(commands: words.Commands) -> None:
    """Add the command of this module."""
    text = "what is wrong on this balancer, and how to mend it; exit status 1 when something is"
    doctor = words.command(commands, "doctor", examine, text, "sudo fusisctl doctor")
    doctor.add_argument("--iface", metavar="NAME", help="the interface of the VIPs (default: as fusisd says or noted)")
    doctor.add_argument(
        "--state-dir", type=Path, default=keys.STATE_DIR, metavar="DIR", help="fusisd's (default %(default)s)"
    )


def examine(client: Client, options: argparse.Namespace) -> int:
    """All of it."""
    told = _told(client, options.state_dir)
    if client.is_elsewhere():
        seen = "fusisd runs in another network namespace, so kernel and network were not looked at"
        mend = "ip netns exec NAME fusisctl doctor (ip netns identify PID says NAME)"
        kernel: tuple[Finding, ...] = (Finding("network", "", False, seen, mend),)
    else:
        kernel = _kernel(told, options.iface or told.iface)
    findings = [*_fusisd(told), *kernel, *_serf(told, options.state_dir)]
    findings += [*_store(told, options.state_dir), _clock(options.state_dir)]
    if options.json:
        render.say_json([asdict(finding) for finding in findings])
    else:
        for line in lines(findings):
            render.say(line)
    return 0 if all(finding.ok for finding in findings) else 1


def _told(client: Client, state_dir: Path) -> _Told:
    try:
        status = client.get_object("/status", "serf")
        intent = decode_intent(client.get_object("/v1/export", "schema"))
        rows = [row for service in client.get_list("/services") if service["Name"] for row in service["Destinations"]]
    except CtlError as error:
        return _noted(state_dir, str(error))
    by_nat = frozenset(row["Host"] for row in rows if row["Mode"] == "nat")
    return _Told(status, "", intent, by_nat | _by_nat(intent), status.get("vip_iface", status["iface"]), status["withdrawn"])


def _by_nat(intent: Intent) -> frozenset[str]:
    every = [one for service in intent.services.values() for one in service.destinations.values()]
    return frozenset(one.address for one in every if one.method is ForwardingMethod.NAT)


def _noted(state_dir: Path, silence: str) -> _Told:
    """From a copy of the store: of a running fusisd nobody else can read it, and of none nothing is to be changed."""
    from fusisd.store import sqlite

    path = state_dir / STORE
    if _never_made(path):
        return _Told(None, silence)
    with tempfile.TemporaryDirectory() as directory:
        try:
            database = sqlite.open_database(sqlite.copied(path, Path(directory)))
            try:
                intent = sqlite.SqliteIntents(database, path).load()
                local = sqlite.SqliteLocal(database, path, sqlite.machine_identity())
                rows = local.remembered()
                by_nat = frozenset(row.address for row in rows if row.offer.method is ForwardingMethod.NAT)
                iface = next(iter(local.owned("vip").values()), "")
                withdrawn = local.owned("withdraw").get("withdrawn") == "true"
            finally:
                database.close()
        except FusisError as error:
            return _Told(None, silence, damage=str(error).replace(directory, str(state_dir)))
    return _Told(None, silence, intent, by_nat | _by_nat(intent), iface, withdrawn)


def _never_made(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # whoever reads it will say why not
    return False


def _fusisd(told: _Told) -> Iterator[Finding]:
    if told.status is None:
        yield Finding("fusisd", "", False, told.silence, "systemctl start fusisd; journalctl -u fusisd says why it ended")
        return
    for problem in told.status["problems"]:
        yield Finding("fusisd", "", False, problem, "fusisctl why SERVICE; fusisctl events")
    if told.status["ok"]:
        yield Finding("fusisd", "", True, f"version {told.status['version']} runs, and knows of no problem")


def _kernel(told: _Told, iface: str) -> tuple[Finding, ...]:
    from fusisd.kernel import doctor, facts

    if not iface:
        seen = "which interface the VIPs are for is not known, so kernel and network were not looked at"
        return (Finding("iface", "", False, seen, "fusisctl doctor --iface NAME (see `ip -brief address`)"),)
    families = frozenset(6 if ":" in address else 4 for address in told.by_nat)
    asked = doctor.Asked(iface, tuple(told.intent.services.values()), families, told.withdrawn)
    return doctor.examine(asked, asyncio.run(facts.look(asked)))


def _serf(told: _Told, state_dir: Path) -> Iterator[Finding]:
    mode = told.status["serf"]["mode"] if told.status is not None else "managed"
    if mode != "managed" or not (state_dir / "serf" / "agent.json").exists():
        yield Finding("serf", "", True, "fusisd keeps no agent of its own here")
        return
    if shutil.which("serf") is None:
        yield Finding("serf", "", False, "serf is not installed: no server can join", "apt-get install serf")
        return
    why = asyncio.run(_silence(state_dir / "serf"))
    mend = "fusisd starts it anew within seconds when it runs; else: systemctl start fusisd" if why else ""
    yield Finding("serf", "", not why, why or "its agent answers", mend)


async def _silence(directory: Path) -> str:
    """Why the managed agent does not answer."""
    try:
        await (await keys.connected(directory)).close()
    except (FusisError, OSError) as error:
        return str(error)
    return ""


def _store(told: _Told, state_dir: Path) -> Iterator[Finding]:
    if told.damage:
        yield Finding("store", "", False, told.damage, "as root; else restore a backup: docs/operations.md")
        return
    if _never_made(state_dir / STORE):
        yield Finding("store", "", True, f"there is none in {state_dir} yet: fusisd makes it")
        return
    try:
        free = shutil.disk_usage(state_dir).free
    except OSError as error:
        yield Finding("store", "", False, f"{state_dir}: {error.strerror}", "as root, and with the --state-dir of fusisd")
        return
    little = free < LITTLE_BYTES
    seen = f"{len(told.intent.services)} services can be read, {free >> 20} MiB are free in {state_dir}"
    yield Finding("store", "", not little, seen, "make room: without it changes are refused with 503" if little else "")


def _clock(state_dir: Path) -> Finding:
    """Certificates, and the log beside that of other machines, need it right; balancing does not."""
    try:
        ahead_s = (state_dir / STORE).stat().st_mtime - time.time()
    except OSError:
        ahead_s = 0.0
    if ahead_s > 60:
        seen = f"the store was written {ahead_s:.0f} s in the future: the clock was put back"
        return Finding("clock", "", False, seen, "timedatectl set-ntp true; timedatectl shows what it does")
    if _CLOCK.parent.is_dir() and not _CLOCK.exists():
        seen = "systemd-timesyncd runs and has not found the time yet"
        return Finding("clock", "", False, seen, "timedatectl timesync-status says which server it asks")
    return Finding("clock", "", True, "nothing speaks against it")
