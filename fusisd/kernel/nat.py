"""Masquerading for method nat, in a chain of our own, replaced as a whole by iptables-restore.

With it a real server needs no route back through the balancer: it answers the balancer's own address. The price is the
client's address. Rules match the connection's original destination (`-m conntrack --ctorigdst VIP`), so that only
balanced connections are rewritten. `iptables` may be the nft or the legacy kind: the first that this kernel answers is
kept (a kernel without nf_tables answers only the legacy one). A hand on the chain is noticed: it looked otherwise before.
Does not: touch any chain or rule of others; one jump in POSTROUTING is all that stands outside the own chain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fusisd.kernel import xtables
from fusisd.kernel.command import CommandError, run
from fusisd.model import Masquerade

CHAIN = "FUSIS-MASQ"
_JUMP = ("POSTROUTING", "-j", CHAIN)


@dataclass(slots=True)
class _Written:
    """A chain of ours: the command that wrote it, how many rules, and what it looked like at the first audit after."""

    tool: str
    size: int
    shown: list[str] | None = None

    def intact(self) -> bool:
        """Whether nobody changed it or the jump to it. Each iptables writes rules its own way, so what it says itself
        is compared."""
        rules = xtables.rules(self.tool, "nat", CHAIN)
        if self.shown is None and sum(line.startswith("-A") for line in rules) == self.size:
            self.shown = rules
        return rules == self.shown and _jumps(self.tool) > 0


class Nat:
    """The masquerade rules of both families."""

    def __init__(self) -> None:
        """Nothing is asked of the kernel before the first rule is wanted."""
        self._written: dict[int, _Written] = {}

    def apply(self, masquerades: Iterable[Masquerade]) -> None:
        """Make our chains hold exactly these rules; a chain without any goes. Raises CommandError."""
        wanted = sorted(masquerades, key=repr)
        for family in (4, 6):
            texts = [rule(row) for row in wanted if (":" in row.vip) == (family == 6)]
            if texts:
                tool = self._restore(family, restore_text(texts))
                if not _jumps(tool):
                    run([tool, "-t", "nat", *xtables.WAIT, "-A", *_JUMP])
                self._written[family] = _Written(tool, len(texts))
            elif family in self._written:
                _remove(self._written[family].tool)
                del self._written[family]

    def leftover(self) -> bool:
        """Whether a chain of ours is there from an earlier life (then `apply` will work it over). Raises CommandError."""
        self._written |= {family: _Written(tool, 0) for family, tool in _ours()}
        return bool(self._written)

    def intact(self) -> bool:
        """Whether chains and jumps are as they were written. Raises CommandError."""
        return all([written.intact() for written in self._written.values()])

    def _restore(self, family: int, text: str) -> str:
        """Write our chain; the variant of iptables that did it. Only writing tells: the nft one lists even where the
        kernel has no nf_tables (seen 2026-11)."""
        known = self._written.get(family)
        failures = []
        for tool in (known.tool,) if known else xtables.VARIANTS[family]:
            try:
                run([f"{tool}-restore", "--noflush", "--wait", "2"], text)
            except CommandError as error:
                failures.append(str(error))
            else:
                return tool
        raise CommandError("; ".join(failures))


def fault(family: int) -> str:
    """What is missing of our masquerading in this family (4, 6): the chain, its rules or the jump; "" when nothing is.
    Raises CommandError."""
    if all(xtables.is_legacy(tool) is None for tool in xtables.VARIANTS[family]):
        return "iptables is not installed"
    tools = [tool for ours, tool in _ours() if ours == family]
    if not any(line.startswith("-A") for tool in tools for line in xtables.rules(tool, "nat", CHAIN)):
        return f"there is no rule in a chain {CHAIN}"
    return "" if any(map(_jumps, tools)) else f"no jump to {CHAIN} in {_JUMP[0]}"


def remove_all() -> list[str]:
    """Take away our chains and the jumps to them, of both families and both kinds of iptables; the rules that were in
    them. What is not there is fine. Raises CommandError."""
    gone = []
    for _family, tool in _ours():
        gone += [f"{tool} -t nat {text}" for text in xtables.rules(tool, "nat", CHAIN) if text.startswith("-A")]
        _remove(tool)
    return gone


def _ours() -> list[tuple[int, str]]:
    """(family, command) wherever our chain is."""
    where = [(family, tool) for family in xtables.VARIANTS for tool in xtables.holding(family, "nat")]
    return [(family, tool) for family, tool in where if xtables.rules(tool, "nat", CHAIN)]


def _remove(tool: str) -> None:
    """The jump (however often somebody put it there), then the chain."""
    for _ in range(_jumps(tool)):
        run([tool, "-t", "nat", *xtables.WAIT, "-D", *_JUMP])
    if xtables.rules(tool, "nat", CHAIN):
        run([f"{tool}-restore", "--noflush", "--wait", "2"], f"*nat\n-F {CHAIN}\n-X {CHAIN}\nCOMMIT\n")


def _jumps(tool: str) -> int:
    return xtables.rules(tool, "nat", _JUMP[0]).count(f"-A {' '.join(_JUMP)}")


def rule(row: Masquerade) -> str:
    """One rule: packets to this real server that were sent to this VIP leave with our address. Port 0 is any."""
    size = 128 if ":" in row.address else 32
    to = f" --dport {row.port}" if row.port else ""
    was_to = f" --ctorigdstport {row.vip_port}" if row.vip_port else ""
    return (
        f"-A {CHAIN} -p {row.protocol} -d {row.address}/{size}{to}"
        f" -m conntrack --ctorigdst {row.vip}{was_to} -j MASQUERADE"
    )


def restore_text(rules: Iterable[str]) -> str:
    """Input of iptables-restore --noflush: naming the chain empties it, the rules fill it, COMMIT makes it one step."""
    return "\n".join(["*nat", f":{CHAIN} - [0:0]", *rules, "COMMIT", ""])

