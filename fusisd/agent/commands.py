"""What an operator types on a server: the orders to the running agent, and what their answers look like.

Does not: do anything itself but `undo`, which is for an agent that runs no more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from fusisd.agent import host, orders
from fusisd.agent.config import Config, ServiceConfig
from fusisd.agent.doctor import examine
from fusisd.agent.facts import look
from fusisd.agent.learn import NotLearnt, recalled, vip_of
from fusisd.agent.prepare import Vip
from fusisd.agent.record import RecordFile
from fusisd.errors import Invalid
from fusisd.findings import lines
from fusisd.store.lock import lock_state

Command = Callable[[argparse.Namespace], int]
"""Carries a command line out; the exit status. Raises FusisError."""

_COLUMNS = ("service", "state", "weight", "method", "port", "vip", "reason")


def status(line: argparse.Namespace) -> int:
    """How each service stands; 1 when one is not ready."""
    found = _ask(line, {"do": "status"})
    ready = found["joined"] and all(row["state"] == "ready" for row in found["services"])
    if line.json:
        print(json.dumps(found, indent=1))
        return 0 if ready else 1
    joined = f"joined {', '.join(found['joined_to'])}" if found["joined"] else "has not joined, or is cut off"
    print(f"{found['node']} at {found['address']} {joined}")
    _table(found["services"])
    for problem in found["problems"]:
        print(f"! {problem}")
    return 0 if ready else 1


def order(line: argparse.Namespace) -> int:
    """drain, maint, ready, weight."""
    asked = {"do": line.command, "services": line.services}
    if line.command == "weight":
        asked["weight"] = line.weight
    found = _ask(line, asked)
    if line.json:
        print(json.dumps(found, indent=1))
    else:
        _table(found["services"])
    return 0


def doctor(config: Config, as_json: bool) -> int:
    """What is wrong on this server and how to mend it; 1 when something is."""
    kept = RecordFile(config.state_dir / "host.json", host.machine()).record.vips
    services = {name: (service, _vip(config, service, kept)) for name, service in config.services.items()}
    findings = examine(services, look(config, services))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print("\n".join(lines(findings)))
    return 0 if all(finding.ok for finding in findings) else 1


def _vip(config: Config, service: ServiceConfig, kept: Mapping[str, str]) -> Vip | None:
    """A service's VIP: as configured, as the agent learnt it, as the balancer says."""
    if service.vip is not None:
        return Vip(service.vip, service.port)
    if not service.needs_vip and not service.route_back:
        return None
    try:
        if service.name in kept:
            return recalled(kept[service.name])
        return asyncio.run(vip_of(service.name, config.balancers, config.api_port, frozenset(config.balancers)))
    except (NotLearnt, Invalid):
        return None


def undo(line: argparse.Namespace) -> int:
    """Undo what is noted; 1 when something is left."""
    lock_state(line.state_dir, "fusis-agent")
    if (line.state_dir / "agent.pid").exists():  # Serf outlives an agent that was killed, and says what that said last
        from fusisd.serf.supervisor import ManagedAgent  # here, for it wants msgpack, and no other order does

        asyncio.run(ManagedAgent(line.state_dir, "", "").stop())
    file = RecordFile(line.state_dir / "host.json", host.machine())
    done = [*file.record.made, *file.record.switches]
    left = host.Host(file).bring(()).problems
    if line.json:
        print(json.dumps({"undone": done, "left": left}, indent=1))
        return 1 if left else 0
    for sentence in done or ["nothing of ours was there"]:
        print(sentence)
    for sentence in left:
        print(f"left: {sentence}", file=sys.stderr)
    return 1 if left else 0


def _ask(line: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    return orders.ask(line.state_dir / "orders.sock", asked)


def _table(rows: list[dict[str, Any]]) -> None:
    shown = [tuple(column.upper() for column in _COLUMNS)]
    shown += [tuple("-" if row[column] in (None, "") else str(row[column]) for column in _COLUMNS) for row in rows]
    widths = [max(len(row[place]) for row in shown) for place in range(len(_COLUMNS))]
    for row in shown:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
