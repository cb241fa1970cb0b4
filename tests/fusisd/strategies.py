"""Hypothesis strategies for intent: everything that may be stored, and JSON that is nearly a document of it."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from fusisd.model import Announce, CheckKind, CheckSettings, CheckSpec, Destination, Intent, Service, Tier
from pyipvs import ForwardingMethod, Timeouts, Tunnel, TunnelType
from pyipvs import Service as KernelService
from tests.pyipvs import strategies as kernel

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True)
DRAINS = st.none() | st.floats(0, 86400)
WORDS = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
HEX = st.binary(max_size=6).map(bytes.hex)
CODE = st.integers(100, 599)

timings = st.builds(
    CheckSettings, st.floats(0.05, 86400), st.floats(0.01, 3600), st.integers(1, 1000), st.integers(1, 1000),
    st.floats(0.05, 86400),
)  # fmt: skip
_http: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(["GET", "HEAD", "POST"]),
    "path": WORDS.map(lambda word: f"/{word}?x=%20"),
    "host": st.just("") | WORDS,
    "codes": st.lists(st.tuples(CODE, CODE).map(lambda pair: (min(pair), max(pair))), min_size=1, max_size=3).map(tuple),
    "body": st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=9),
}
_asked: dict[CheckKind, dict[str, st.SearchStrategy[Any]]] = {
    CheckKind.NONE: {},
    CheckKind.TCP: {},
    CheckKind.HTTP: _http,
    CheckKind.HTTPS: _http | {"tls_name": WORDS},
    CheckKind.UDP: {"send": HEX, "expect": HEX},
    CheckKind.DNS: {"name": WORDS.map(lambda word: f"{word}.example."), "record": st.sampled_from(["A", "AAAA", "SOA"])},
    CheckKind.SCRIPT: {"argv": st.lists(WORDS, max_size=3).map(lambda words: ("/bin/true", *words))},
}


@st.composite
def checks(draw: st.DrawFn) -> CheckSpec:
    kind = draw(st.sampled_from(CheckKind))
    asked = {name: draw(values) for name, values in _asked[kind].items()}
    return CheckSpec(kind, draw(st.none() | st.integers(1, 65535)), draw(timings), **asked)


@st.composite
def destinations(draw: st.DrawFn) -> Destination:
    method = draw(st.sampled_from([ForwardingMethod.NAT, ForwardingMethod.ROUTE, ForwardingMethod.TUNNEL]))
    kinds = st.sampled_from([Tunnel(), Tunnel(TunnelType.GRE, flags=1), Tunnel(TunnelType.GUE, 6080, 2)])
    upper = draw(st.integers(0, 2**32 - 1))
    return Destination(
        name=draw(NAMES),
        address=draw(kernel.HOSTS),
        port=draw(st.integers(0, 65535)),
        weight=draw(st.integers(0, 65535)),
        method=method,
        upper_threshold=upper,
        lower_threshold=draw(st.integers(0, upper)),
        tunnel=draw(st.none() | kinds) if method is ForwardingMethod.TUNNEL else None,
        tier=draw(st.sampled_from(Tier)),
        check=draw(st.none() | checks()),
        drain_s=draw(DRAINS),
        managed_by=draw(st.just("") | NAMES),
    )


@st.composite
def services(draw: st.DrawFn, of_kernel: st.SearchStrategy[KernelService] = kernel.services()) -> Service:  # noqa: B008
    row = draw(of_kernel)
    lists = st.lists(destinations(), max_size=3, unique_by=(lambda one: one.name, lambda one: one.key))
    return Service(
        name=draw(NAMES),
        key=row.key,
        scheduler=row.scheduler,
        persistence_s=row.persistence_s,
        destinations={one.name: one for one in draw(lists)},
        excluded=frozenset(draw(st.sets(NAMES, max_size=2))),
        flags=row.flags,
        netmask=draw(st.sampled_from([None, row.netmask])),
        persistence_engine=row.persistence_engine,
        vip_managed=draw(st.booleans()),
        announce=draw(st.sampled_from(Announce)),
        check=draw(st.none() | checks()),
        drain_s=draw(DRAINS),
        managed_by=draw(st.just("") | NAMES),
    )


timeouts = st.builds(Timeouts, *[st.integers(0, 2_000_000)] * 3)
ranges = st.lists(st.sampled_from(["10.9.0.0/24", "10.9.1.0/29", "fd00:9::/64", "192.0.2.7/32"]), unique=True).map(tuple)


def _named(rows: list[Service]) -> dict[str, Service]:
    return {row.name: row for row in rows}


_rows = st.lists(services(), max_size=3, unique_by=(lambda row: row.name, lambda row: row.key))
intents = st.builds(lambda rows, times, nets: Intent(_named(rows), 0, times, nets), _rows, timeouts, ranges)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def spoilt(draw: st.DrawFn, document: Any) -> Any:
    """The document with one value, somewhere in it, exchanged, taken away or added."""
    if isinstance(document, Mapping) and document and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(document)))
        return {**document, key: draw(spoilt(document[key]))}
    if isinstance(document, Mapping):
        keys = st.text(max_size=3) | st.sampled_from(["check", "key", "port", "drain_s", "flags", "tunnel", "argv", "codes"])
        return {**document, draw(keys): draw(json_values)}
    return draw(json_values)
