"""Who is let in at the front: which addresses, under which names, with which limits. Pure but for the certificate.

Does not: know tokens or methods (auth.py), or sockets.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from fusisd.admission import Network
from fusisd.web.certificate import Certificate

UNIX = "unix"
_AUTHORITY = re.compile(r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[^\s:\[\]@/]+))(?::[0-9]{1,5})?\Z", re.IGNORECASE)


def _everywhere(address: str) -> bool:
    del address
    return False


@dataclass(frozen=True, slots=True)
class Entry:
    """`refuse_address` is asked with the local address of each new TCP connection; true (a VIP) closes it.

    `host_names`: names that clients may call us by, in lower case, beside addresses and localhost. `trusted_proxies`: peers
    that are many clients, so that no limit for one applies. With a `certificate` the TCP listeners speak TLS to who begins
    with it, and plain HTTP to others.
    """

    refuse_address: Callable[[str], bool] = _everywhere
    host_names: frozenset[str] = frozenset()
    trusted_proxies: tuple[Network, ...] = ()
    certificate: Certificate | None = field(default=None, repr=False)

    def limits(self, peer: str) -> bool:
        """The limit of connections for one peer applies: not to the Unix socket and loopback, where a proxy may be."""
        if peer == UNIX:
            return False
        address = ipaddress.ip_address(peer)
        return not (address.is_loopback or any(address in network for network in self.trusted_proxies))

    def answers_to(self, host: str | None, peer: str) -> bool:
        """A request with this Host header is for us; else a page of another site may speak by a name that it made lead here.

        (DNS rebinding.) None, in HTTP/1.0, is no browser's. Over the Unix socket any name without a dot will do: nobody in
        the Internet has one, and a browser may be led to the socket (`ssh -L`).
        """
        if host is None:
            return True
        match = _AUTHORITY.match(host)
        if match is None:
            return False
        name = (match["literal"] or match["name"]).lower().removesuffix(".")
        local = peer == UNIX and "." not in name
        return local or name == "localhost" or name in self.host_names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
