"""What a command means for the notes of this machine (ports.LocalStore): pure.

A drain is noted with the time it began, so that our own restart neither forgets nor lengthens it; after a reboot the notes
are void, and no connection is left to wait for. A release lets go of all that stands for the service, and nothing of it
changes: the VIP, unless another service of ours has it, and the masquerade rules, which are noted as kept.
Does not: write anything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusisd import state
from fusisd.commands import DeleteDestination, One, Pause, Release, Withdraw
from fusisd.drains import Drain, DrainKey
from fusisd.errors import Invalid
from fusisd.model import Intent, Masquerade, Path, Service, checked_address
from fusisd.paths import path_of
from fusisd.target import Target
from pyipvs import Protocol, ServiceKey


@dataclass(slots=True)
class Notes:
    """Rows to claim before the intent is stored and to release after it, by kind; keys let go; the end of a pause; whether
    the balancer is withdrawn from now on (None: as before)."""

    claims: dict[str, dict[str, str]] = field(default_factory=dict)
    releases: dict[str, list[str]] = field(default_factory=dict)
    let_go: set[ServiceKey] = field(default_factory=set)
    paused_until_s: float | None = None
    withdrawn: bool | None = None


def take(notes: Notes, command: One, before: Intent, target: Target, now_s: float) -> None:
    """Note what `command` means, other than for drains."""
    match command:
        case Pause(seconds):
            notes.paused_until_s = now_s + seconds if seconds > 0 else 0.0
            notes.claims["pause"] = {"until": repr(notes.paused_until_s)}
        case Withdraw(withdrawn):
            notes.withdrawn = withdrawn
            notes.claims["withdraw"] = {"withdrawn": json.dumps(withdrawn)}
        case Release(name):
            _release(notes, before, name, target)


def drains_after(drains: dict[DrainKey, Drain], notes: Notes, command: One, after: Intent, now_s: float) -> None:
    """Bring the running drains of the service that a command touched up to date: begun by a delete, over when what
    drained is gone or wanted again. The same again changes the limit and not the beginning."""
    name = state.service_of(command)
    if name is None:
        return
    wanted = _wanted(after.services.get(name), command)
    for key in [key for key in drains if key[0] == name and key not in wanted]:
        del drains[key]
        notes.claims.get("drain", {}).pop(drain_key(key), None)
        notes.releases.setdefault("drain", []).append(drain_key(key))
    for key, limit_s in wanted.items():
        known = drains.get(key)
        limit_s = known.limit_s if limit_s is None and known is not None else limit_s
        if limit_s is not None and (known is None or known.limit_s != limit_s):
            drains[key] = Drain(known.since_s if known else now_s, limit_s)
            notes.claims.setdefault("drain", {})[drain_key(key)] = json.dumps([drains[key].since_s, limit_s])


def _wanted(service: Service | None, command: One) -> dict[DrainKey, float | None]:
    """What drains of a service, and for how long; None: as it was noted, if it was."""
    if service is None:
        return {}
    wanted: dict[DrainKey, float | None] = {(service.name, excluded): None for excluded in service.excluded}
    if isinstance(command, DeleteDestination) and command.name in service.excluded:
        if command.drain_s is None:
            del wanted[service.name, command.name]  # now: cut, even if it drains already
        else:
            wanted[service.name, command.name] = command.drain_s
    if service.drain_s is not None:
        wanted[service.name, None] = service.drain_s
    for destination in service.destinations.values():
        if destination.drain_s is not None:
            wanted[service.name, destination.name] = destination.drain_s
    return wanted


def keep_wanted(notes: Notes, after: Intent) -> None:
    """Of what was released, let go of nothing that a later command of the same commit wants again."""
    if not notes.let_go and not notes.releases:
        return
    keys = {service.key for service in after.services.values()}
    notes.let_go -= keys
    for kind, still in (("service", {str(key) for key in keys}), ("vip", {str(key.address) for key in keys})):
        if kind in notes.releases:
            notes.releases[kind] = [key for key in notes.releases[kind] if key not in still]


def _release(notes: Notes, before: Intent, name: str, target: Target) -> None:
    service = before.services[name]
    notes.let_go.add(service.key)
    notes.releases.setdefault("service", []).append(str(service.key))
    others = {other.key.address for other in before.services.values() if other.name != name}
    if service.key.address is not None and service.key.address not in others:
        notes.releases.setdefault("vip", []).append(service.key.address)
    built = target.services.get(service.key)
    if built is not None and (rows := built.wishes.masquerades):
        notes.claims.setdefault("nat", {}).update({row_text(row): "" for row in rows})


def row_text(row: Masquerade) -> str:
    """A row as one line of text, for the local store: `tcp 10.0.0.1 80 10.0.0.11 8080`."""
    return f"{row.protocol} {row.vip} {row.vip_port} {row.address} {row.port}"


def row_of(text: str) -> Masquerade:
    """The row of such a line. Raises Invalid."""
    try:
        protocol, vip, vip_port, address, port = text.split(" ")
        ports = _port(vip_port), _port(port)
        return Masquerade(Protocol[protocol.upper()], checked_address(vip), ports[0], checked_address(address), ports[1])
    except (KeyError, ValueError):
        raise Invalid(f"{text!r} is no masquerade row (PROTOCOL VIP PORT ADDRESS PORT)") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(text)
    return int(text)


def paths_of(rows: Mapping[str, str]) -> dict[ServiceKey, Path]:
    """The marks that these notes tell of; a row that cannot be read stands for no path. Raises ValueError: no key."""
    found = {}
    for key, text in rows.items():
        with contextlib.suppress(Invalid):
            found[ServiceKey.parse(key)] = path_of(text)
    return found


def drain_key(key: DrainKey) -> str:
    """A drain as the key of a note."""
    return json.dumps(key)


def drains_of(rows: Mapping[str, str]) -> dict[DrainKey, Drain]:
    """The drains that these notes tell of. Raises ValueError."""
    return {(key[0], key[1]): Drain(*json.loads(value)) for key, value in ((json.loads(k), v) for k, v in rows.items())}
