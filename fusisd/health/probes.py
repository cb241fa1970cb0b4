"""One probe of a target: asks as its check says, within its time, and says in words why not.

Does not: count, repeat, or decide.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from fusisd.health import dns, http, script, tcp, udp
from fusisd.health.asking import DIRECT, Failed, Way, deadline, ours, words
from fusisd.model import CheckKind, CheckTarget

_ASK: dict[CheckKind, Callable[[CheckTarget, Way], Awaitable[None]]] = {
    CheckKind.TCP: tcp.ask,
    CheckKind.HTTP: http.ask,
    CheckKind.HTTPS: http.ask,
    CheckKind.UDP: udp.ask,
    CheckKind.DNS: dns.ask,
    CheckKind.SCRIPT: script.ask,
}


async def probe(target: CheckTarget, timeout_s: float, way: Way = DIRECT) -> str:
    """ "" when the target passed, else the reason. Raises OSError when this machine could not even ask.

    `way` is for those that go through a socket (scripts go their own). A target of kind NONE is not to be probed.
    """
    try:
        async with deadline(timeout_s):
            await _ASK[target.spec.kind](target, way)
    except Failed as failed:
        return str(failed)
    except OSError as error:
        return _reason(target, timeout_s, error)
    return ""


def _reason(target: CheckTarget, timeout_s: float, error: OSError) -> str:
    """What an error says of the server; raises it again when it says nothing."""
    silent = isinstance(error, TimeoutError)
    if ours(error) or (target.spec.kind is CheckKind.SCRIPT and not silent):
        raise error
    if silent and target.spec.kind is CheckKind.UDP and not target.spec.expect:
        return ""
    if silent:
        return f"no answer within {timeout_s:g} s"
    return "connection refused" if error.errno == errno.ECONNREFUSED else words(error)
