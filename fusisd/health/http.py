"""HTTP and HTTPS: is a request answered with the code and the text that are expected?

One request, then the connection is reset; redirects are answers like others.
Does not: parse (answer.py does), or follow anything.
"""

from __future__ import annotations

import asyncio
import socket

from fusisd.health.answer import Answer
from fusisd.health.asking import Failed, Way, opened
from fusisd.health.tls import Plain, Tls
from fusisd.model import CheckKind, CheckTarget


async def ask(target: CheckTarget, way: Way) -> None:
    """Returns when the answer was as expected. Raises Failed, OSError."""
    request, spec = request_bytes(target), target.spec
    with opened(target, socket.SOCK_STREAM, way) as sock:
        await asyncio.get_running_loop().sock_connect(sock, (target.address, target.port))
        wire: Plain | Tls = Plain(sock)
        if spec.kind is CheckKind.HTTPS:
            wire = tls = Tls(sock, spec.tls_name)
            await tls.greet()
        await wire.send(request)
        answer = Answer(spec.codes, spec.body.encode(), spec.method)
        while data := await wire.receive():
            if answer.feed(data):
                return
            await asyncio.sleep(0)  # a fast sender of much is no reason to keep the loop
        answer.end()


def request_bytes(target: CheckTarget) -> bytes:
    """The request. Raises Failed when the check's own words cannot stand in one."""
    spec = target.spec
    host = spec.host or _host(target)
    for word in (spec.method, spec.path, host):
        if not word or not all("!" <= letter <= "~" for letter in word):
            raise Failed(f"the check itself is wrong: {word!r} must be printable ASCII without spaces")
    # Keep-alive would only make servers wait for a second request.
    fields = f"Host: {host}\r\nUser-Agent: fusisd-check\r\nAccept: */*\r\nConnection: close"
    return f"{spec.method} {spec.path} HTTP/1.1\r\n{fields}\r\n\r\n".encode("ascii")


def _host(target: CheckTarget) -> str:
    """The address as a Host header has it (RFC 9110 7.2): IPv6 in brackets, the port unless it is the scheme's own."""
    host = f"[{target.address}]" if ":" in target.address else target.address
    usual = 443 if target.spec.kind is CheckKind.HTTPS else 80
    return host if target.port == usual else f"{host}:{target.port}"
