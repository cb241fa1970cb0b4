"""Asking the balancer where clients find a service, so that no VIP is typed on a server.

Over its HTTP API, whose reads are open to everybody (GET /v1/services/NAME), and not by Serf: a query's answer holds 1024
bytes and comes from whoever has the cluster's key, a user event holds 512 and nobody keeps it for who comes later, and a
balancer's tags hold 512 for all services together. The method is not asked: it stands in this server's own tag, from which
the balancer has it. What is learnt is kept (record.py), so that a balancer that is away takes nothing from a server that
was ready.
Does not: believe everything: a VIP that is this server's, the balancer's or no unicast address is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fusisd.agent.prepare import Vip
from fusisd.errors import FusisError, Invalid
from fusisd.fields import parsed, refused_at, text, whole
from fusisd.model import checked_address
from pyipvs import Protocol
from pyipvs.model import endpoint

LIMIT_S = 3.0
SIZE_LIMIT = 4 << 20  # a service with 10,000 destinations is shorter


class NotLearnt(FusisError):
    """No balancer said it; `str()` says why."""


async def vip_of(service: str, balancers: Iterable[str], port: int, refused: frozenset[str]) -> Vip:
    """The VIP of this service, from the first balancer that says one. Raises NotLearnt."""
    why = "no balancer is known"
    for balancer in balancers:
        where = endpoint(balancer, port)
        try:
            async with asyncio.timeout(LIMIT_S):
                head, body = await _get(balancer, port, where, f"/v1/services/{service}")
            return _vip(service, head, body, refused)
        except TimeoutError:
            why = f"{where} did not answer within {LIMIT_S:g} s"
        except OSError as error:
            why = f"cannot ask {where}: {error.strerror or error}"
        except (Invalid, NotLearnt) as error:
            why = f"{where}: {error}"
    raise NotLearnt(f"the VIP of {service} is not known: {why} (or give it: --vip)")


async def _get(balancer: str, port: int, where: str, path: str) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection(balancer, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode("ascii"))
        data = b""
        while (piece := await reader.read(65536)) and len(data) < SIZE_LIMIT:
            data += piece
    finally:
        writer.transport.abort()
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def _vip(service: str, head: bytes, body: bytes, refused: frozenset[str]) -> Vip:
    """What the answer says. Raises NotLearnt, Invalid."""
    status = head[9:12].decode("latin-1")
    if status == "404":
        raise NotLearnt(f"there is no service {service} yet")
    if status != "200":
        raise NotLearnt(f"answers {head.split(bytes([13, 10]))[0].decode('latin-1')[:60]!r}")
    document = parsed(body.decode("utf-8", "replace"))
    if not isinstance(document, dict) or "address" not in document:
        raise NotLearnt(f"{service} has no address of its own (a fwmark service): its VIP must be given")
    with refused_at(""):
        vip = Vip(
            checked_address(text(document["address"], "address")),
            whole(1, 65535)(document.get("port"), "port"),
            Protocol.of(document.get("protocol", "tcp"), "protocol"),
        )
    if vip.address in refused:
        raise NotLearnt(f"says that {service} is at {vip.address}, which is a server's own address: not believed")
    return vip


def written(vip: Vip) -> str:
    """As it is kept."""
    return f"{vip.protocol} {vip.address} {vip.port}"


def recalled(kept: str) -> Vip:
    """What was kept. Raises Invalid."""
    protocol, _, where = kept.partition(" ")
    address, _, port = where.partition(" ")
    if not (port.isascii() and port.isdigit()):
        raise Invalid(f"{kept!r} is no VIP as it is kept", "vips")
    with refused_at(""):
        return Vip(checked_address(address), int(port), Protocol.of(protocol, "protocol"))
