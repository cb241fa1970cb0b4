"""Masquerading for method nat, in a chain of our own, replaced as a whole by iptables-restore.

With it a real server needs no route back through the balancer: it answers the balancer's own address. The price is the
client's address. Rules match the connection's original destination (`-m conntrack --ctorigdst VIP`), so that only
balanced connections are rewritten. `iptables` may be the nft or the legacy kind: the first that this kernel answers is
kept (a kernel without nf_tables answers only the legacy one).
Does not: touch any chain or rule of others; one jump in POSTROUTING is all that stands outside the own chain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from fusisd.kernel.command import CommandError, run
from fusisd.model import Masquerade

CHAIN = "FUSIS-MASQ"
_VARIANTS = {4: ("iptables", "iptables-legacy"), 6: ("ip6tables", "ip6tables-legacy")}


class Nat:
    """The masquerade rules of both families."""

    def __init__(self) -> None:
        """Nothing is asked of the kernel before the first rule is wanted."""
        self._tools: dict[int, str] = {}

    def apply(self, masquerades: Iterable[Masquerade]) -> None:
        """Make our chains hold exactly these rules. Raises CommandError."""
        wanted = sorted(masquerades, key=repr)
        for family in (4, 6):
            rules = [rule(row) for row in wanted if (":" in row.vip) == (family == 6)]
            if rules or family in self._tools:
                tool = self._restore(family, restore_text(rules))
                self._jump(tool, bool(rules))

    def leftover(self) -> bool:
        """Whether a chain of ours is there from an earlier life (then `apply` will work it over)."""
        for family, variants in _VARIANTS.items():
            for tool in variants:
                with contextlib.suppress(CommandError):
                    run([tool, "-t", "nat", "-w", "2", "-n", "-L", CHAIN])
                    self._tools[family] = tool
        return bool(self._tools)

    def _restore(self, family: int, text: str) -> str:
        """Write our chain; the variant of iptables that did it. Only writing tells: the nft one lists even where the
        kernel has no nf_tables (seen 2026-11)."""
        known = self._tools.get(family)
        failures = []
        for tool in (known,) if known else _VARIANTS[family]:
            try:
                run([f"{tool}-restore", "--noflush", "--wait", "2"], text)
            except CommandError as error:
                failures.append(str(error))
            else:
                self._tools[family] = tool
                return tool
        raise CommandError("; ".join(failures))

    def _jump(self, tool: str, wanted: bool) -> None:
        """The one rule in POSTROUTING, there exactly when it has something to do."""
        where = ["POSTROUTING", "-j", CHAIN]
        try:
            run([tool, "-t", "nat", "-w", "2", "-C", *where])
            there = True
        except CommandError:
            there = False
        if wanted != there:
            run([tool, "-t", "nat", "-w", "2", "-A" if wanted else "-D", *where])


def rule(row: Masquerade) -> str:
    """One rule: packets to this real server that were sent to this VIP leave with our address."""
    size = 128 if ":" in row.address else 32
    protocol = str(row.protocol)
    return (
        f"-A {CHAIN} -p {protocol} -d {row.address}/{size} --dport {row.port}"
        f" -m conntrack --ctorigdst {row.vip} --ctorigdstport {row.vip_port} -j MASQUERADE"
    )


def restore_text(rules: Iterable[str]) -> str:
    """Input of iptables-restore --noflush: naming the chain empties it, the rules fill it, COMMIT makes it one step."""
    return "\n".join(["*nat", f":{CHAIN} - [0:0]", *rules, "COMMIT", ""])
