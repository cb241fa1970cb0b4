"""Undoing what fusisd did to this machine since its boot: services, VIPs, masquerading and sysctls that are noted as ours.

Breaking as ever: VIPs first, then services, NAT, switches. What somebody changed since is left, and said. Again does
nothing; what could not be undone stays noted, for the next try. For a stopped fusisd: a running one would make it anew.
Does not: touch what is not noted as ours, the operators' wishes, or the Serf agent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyipvs
from fusisd.errors import FusisError
from fusisd.kernel import addresses, nat, sysctl
from fusisd.ports import LocalStore
from pyipvs import IPVS, ServiceKey


@dataclass(frozen=True, slots=True)
class Report:
    """Sentences: what was undone, and what was left with the reason."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def cleanup(local: LocalStore, open_ipvs: Callable[[], IPVS], proc_sys: Path = sysctl.PROC_SYS) -> Report:
    """Undo exactly what is noted in `local` as ours. Blocking; needs root.

    `open_ipvs()` makes a handle; called when there are services of ours. Raises StoreError.
    """
    report = Report()
    _vips(local, report)
    _services(local, open_ipvs, report)
    _masquerades(local, report)
    _switches(local, proc_sys, report)
    return report


def _vips(local: LocalStore, report: Report) -> None:
    owned = local.owned("vip")
    if not owned:
        return
    try:
        there = addresses.present()
        ours = {vip: iface for vip, iface in owned.items() if iface in there.get(vip, ())}
        kept = addresses.remove(ours)
    except FusisError as error:
        report.left.append(f"VIPs {', '.join(sorted(owned))}: {error}")
        return
    report.left.extend(f"VIP {vip}: {why}" for vip, why in kept.items())
    report.done.extend(f"VIP {vip} removed from {ours[vip]}" for vip in sorted(ours.keys() - kept.keys()))
    local.release("vip", owned.keys() - kept.keys())


def _services(local: LocalStore, open_ipvs: Callable[[], IPVS], report: Report) -> None:
    """Services of operators, and the hidden ones of path checks."""
    paths = {key: "of a path check" for key in local.owned("path")}
    owned = {**local.owned("service"), **paths}
    if not owned:
        return
    try:
        ipvs = open_ipvs()
    except pyipvs.IPVSError as error:
        report.left.append(f"services {', '.join(sorted(owned.values()))}: {error}")
        return
    with ipvs:
        gone = [text for text, name in sorted(owned.items()) if _deleted(ipvs, text, name, report)]
    local.release("service", gone)
    local.release("path", paths.keys() & set(gone))


def _deleted(ipvs: IPVS, text: str, name: str, report: Report) -> bool:
    """Whether the service is there no more."""
    try:
        ipvs.delete_service(ServiceKey.parse(text))
    except pyipvs.ServiceNotFound:
        return True
    except (pyipvs.IPVSError, ValueError) as error:
        report.left.append(f"service {name} ({text}): {error}")
        return False
    report.done.append(f"service {name} ({text}) deleted")
    return True


def _masquerades(local: LocalStore, report: Report) -> None:
    """Rules are noted one by one only for services that were released; the chain itself is known by its name."""
    try:
        gone = nat.remove_all()
    except FusisError as error:
        report.left.append(f"chain {nat.CHAIN}: {error}")
        return
    report.done.extend(f"masquerading removed: {rule}" for rule in gone)
    local.release("nat", local.owned("nat"))


def _switches(local: LocalStore, proc_sys: Path, report: Report) -> None:
    owned = local.owned("sysctl")
    restored = sysctl.restore(owned, proc_sys)
    report.done.extend(f"sysctl {name}={value} put back" for name, value in restored.done.items())
    report.left.extend(f"sysctl {name}: {why}" for name, why in (restored.changed | restored.failed).items())
    local.release("sysctl", owned.keys() - restored.failed.keys())
