"""Where the answers of path checks come in: the interface that has the address which the probes carry.

An answer's source is the VIP, which the balancer has, too, so IPv4 drops it unless told otherwise there (sysctl.py); IPv6
has no such rule (both measured on Linux 6.1, 2026-11). Does not: change a switch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusisd.model import Path
from fusisd.routing import source_towards


def interfaces(
    paths: Iterable[Path], present: Mapping[str, Iterable[str]]
) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """({interface: the IPv4 paths whose answers come in there}, {path: why none can come in}); `present` are the host's
    addresses with their interfaces."""
    where: dict[str, list[Path]] = {}
    no_path: dict[Path, str] = {}
    for path in paths:
        try:
            source = source_towards(path.address)
        except OSError as error:
            no_path[path] = f"no way to {path.address}: {error.strerror}"
            continue
        for iface in () if ":" in source else present.get(source, ()):
            where.setdefault(iface, []).append(path)
    return where, no_path


def warnings(no_path: Mapping[Path, str]) -> tuple[str, ...]:
    """A sentence for each reason why path checks are not made."""
    counts: dict[str, int] = {}
    for why in no_path.values():
        counts[why] = counts.get(why, 0) + 1
    return tuple(
        f"path checks of {count} servers are not made, so one without the VIP is not found out: {why}"
        for why, count in sorted(counts.items())
    )
