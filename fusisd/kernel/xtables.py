"""The two kinds of iptables that may stand side by side on a host, and reading their chains without changing anything.

`iptables` is the nft or the legacy kind. Listing a table by the legacy one makes the table (it loads its module, and with
that hooks every packet), so a legacy table is looked at only when /proc says that it is there already.
Does not: write rules (nat.py does).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fusisd.kernel.command import CommandError, attempt, run

VARIANTS = {4: ("iptables", "iptables-legacy"), 6: ("ip6tables", "ip6tables-legacy")}
_LEGACY_TABLES = {4: "ip_tables_names", 6: "ip6_tables_names"}
_MODULES = {4: "iptable", 6: "ip6table"}
MODULES = Path("/sys/module")
PROC_NET = Path("/proc/thread-self/net")
WAIT = ("-w", "2")  # seconds for another's lock


@cache
def is_legacy(tool: str) -> bool | None:
    """Whether this command is of the legacy kind; None: it is not installed."""
    try:
        return "legacy" in run([tool, "-V"])
    except CommandError:
        return None


def holding(family: int, table: str, proc_net: Path = PROC_NET) -> Iterator[str]:
    """The commands of this family (4 or 6) that may find something in this table, each kind of iptables once."""
    kinds = set()
    for tool in VARIANTS[family]:
        legacy = is_legacy(tool)
        if legacy is None or legacy in kinds:
            continue
        kinds.add(legacy)
        if not legacy or _has_legacy(family, table, proc_net):
            yield tool


def _has_legacy(family: int, table: str, proc_net: Path) -> bool:
    try:
        return table in (proc_net / _LEGACY_TABLES[family]).read_text().split()
    except PermissionError:
        return (MODULES / f"{_MODULES[family]}_{table}").exists()
    except OSError:
        return False  # not loaded


def rules(tool: str, table: str, chain: str = "") -> list[str]:
    """A chain (or all of the table) as `iptables -S` writes it; [] when it is not there. Raises CommandError."""
    ended = attempt([tool, "-t", table, *WAIT, "-S", *([chain] if chain else [])])
    return ended.stdout.splitlines() if ended.status == 0 else []
