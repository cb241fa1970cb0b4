"""Noticing a firewall that drops what method nat forwards: the chain FORWARD closed, as Docker leaves it (policy DROP).

A server's reply to a masqueraded connection is turned back to the client and passes FORWARD; requests do not (IPVS takes
them in INPUT), and neither do route and tunnel. Judged by what decides for every established connection: the first rule
without conditions of its own, else the policy. A rule that needs more (an interface, an address) is not counted.
Does not: change anything; the warning says what does.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from fusisd.kernel import xtables
from fusisd.kernel.command import CommandError, run

_DEPTH = 8  # of chains that call each other
_RULE = re.compile(
    r"-A (?P<chain>\S+)(?P<state>(?: -m (?:conntrack|state) --(?:ctstate|state) \S*\bESTABLISHED\b\S*)?)"
    r"(?: -m comment --comment (?:\S+|\"[^\"]*\"))? -[jg] (?P<target>\S+)(?: --reject-with \S+)?\Z"
)
_NFT_ACCEPT = re.compile(r"\s*ct state\b.*\bestablished\b.*\baccept\b|\s*accept\s*\Z")
_OPEN, _CLOSED = "ACCEPT", ("DROP", "REJECT")


def warnings(families: Iterable[int]) -> tuple[str, ...]:
    """A sentence for each closed FORWARD of these families (4, 6), with what opens it. Raises CommandError: too slow."""
    families = sorted(families)
    found = [_warning(tool, family == 6) for family in families for tool in xtables.holding(family, "filter")]
    return (*filter(None, found), *(_nft_warnings(families) if shutil.which("nft") else ()))


def _warning(tool: str, ipv6: bool) -> str:
    why = closed_by(xtables.rules(tool, "filter"))
    mend = f"{tool} -I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    return f"{'IPv6 ' if ipv6 else ''}replies of servers by NAT are dropped by {why} of {tool}: {mend}" if why else ""


def closed_by(lines: Sequence[str]) -> str:
    """What in the filter table (as of `iptables -S`) drops established connections in FORWARD; "" when nothing does."""
    verdict = _walk("FORWARD", [match for line in lines if (match := _RULE.match(line))], 0)
    if verdict is None and "-P FORWARD DROP" in lines:
        return "the policy DROP of FORWARD"
    return "" if verdict in (None, _OPEN) else f"a rule {verdict} in FORWARD"


def _walk(chain: str, rules: list[re.Match[str]], depth: int) -> str | None:
    """The verdict of a chain on every established packet; None: it comes back without one."""
    for match in rules:
        if match["chain"] != chain or depth > _DEPTH:
            continue
        target = match["target"]
        if target == "RETURN":
            return None
        if target == _OPEN or target in _CLOSED:
            return target
        verdict = _walk(target, rules, depth + 1)
        if verdict is not None:
            return verdict
    return None


def _nft_warnings(families: Sequence[int]) -> list[str]:
    """The same of nftables' own chains, which iptables does not show."""
    try:
        chains = forward_chains(run(["nft", "-j", "list", "chains"]), families)
        closed = [(name, run(["nft", "list", "chain", *name])) for name in chains]
    except CommandError:
        return []  # no nf_tables in this kernel, or no right to look
    mend = "ct state established,related accept"
    return [
        f"replies of servers by NAT are dropped by the policy drop of the nft chain {' '.join(name)}: nft insert rule"
        f" {' '.join(name)} {mend}"
        for name, text in closed
        if not any(map(_NFT_ACCEPT.match, text.splitlines()))
    ]


def forward_chains(document: str, families: Sequence[int]) -> list[tuple[str, str, str]]:
    """(family, table, chain) of those that are hooked into forward, with policy drop and not iptables' own."""
    known = {"inet", *({"ip"} if 4 in families else ()), *({"ip6"} if 6 in families else ())}
    try:
        rows: list[dict[str, Any]] = json.loads(document)["nftables"]
    except (ValueError, KeyError):
        return []
    chains = [row["chain"] for row in rows if "chain" in row]
    return sorted(
        (chain["family"], chain["table"], chain["name"])
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("policy") == "drop"
        and chain["family"] in known
        and (chain["table"], chain["name"]) != ("filter", "FORWARD")
    )
