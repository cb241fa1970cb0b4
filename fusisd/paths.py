"""Path checks: does a server take packets for the VIP, sent the way that the kernel sends a client's? Pure.

A server reached by route or tunnel gets packets for the VIP and must have it (on its loopback, or its tunnel device). A
check of its own address proves nothing of that. So such a server is asked a second question: the probe connects to the VIP
with a firewall mark for which IPVS has one hidden service, with that server as its one destination, forwarded as in the
real service. The destination's port is 0, which keeps the packet's own: one hidden service serves all VIPs and ports.
What is asked is a TCP connect at a TCP service's port, for the check has spoken of what is behind it; by UDP what the check
asks, where only an answer passes.
Not asked, so not known: whether the way back to clients is open (the answer comes to the balancer, not to a client), a
service by firewall mark (no VIP), one family in the other's tunnel (no source address to answer to), SCTP, and by NAT
(there the server's own address is what clients reach, and the way back is that of its replies).
Does not: say which mark stands for which path (marks.py does).
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace

from fusisd.errors import Invalid
from fusisd.model import (
    CheckKind,
    CheckSettings,
    CheckSpec,
    CheckState,
    CheckTarget,
    Destination,
    Health,
    Path,
    checked_address,
)
from pyipvs import Family, ForwardingMethod, Protocol, ServiceKey, Tunnel, TunnelType

INTERVAL_S = 10.0  # what it finds is a server set up wrongly: rarer than a dead one, and as rarely made in a moment

_WAITS = Health(reason="waiting for its first check through the VIP")
_HINTS = {
    ForwardingMethod.ROUTE: "is the VIP on its loopback?",
    ForwardingMethod.TUNNEL: "is its tunnel device up, with the VIP on it?",
}


def path_check(key: ServiceKey, destination: Destination, spec: CheckSpec) -> CheckTarget | None:
    """What to ask a destination through the VIP besides what `spec` asks it, None: nothing."""
    if not spec.path_check or spec.kind is CheckKind.NONE or destination.method not in _HINTS or key.address is None:
        return None
    if (":" in destination.address) != (key.family is Family.INET6):
        return None
    asked, port = _question(key.protocol, spec), key.port or destination.port
    if asked is None or not port:
        return None
    path = Path(destination.address, destination.method, destination.tunnel or _plain(destination.method))
    return CheckTarget(key.address, port, asked, path)


def both(own: Health, path: Health, target: CheckTarget, at: CheckTarget) -> Health:
    """What the check of the own address `at` and that of the path `target` say together: up when both are, and down when
    one is."""
    if own.state is CheckState.DOWN or path.state is CheckState.UP:
        return own
    if path.state is CheckState.UNKNOWN:
        return own if own.state is CheckState.UNKNOWN else _WAITS
    assert target.path is not None, "a path check has a path"
    vip = CheckTarget(target.address, target.port)
    although = f" although {at} itself answers" if own.state is CheckState.UP else ""
    method = target.path.method
    reason = f"path check through the VIP {vip} by {method}: {path.reason}{although}: {_HINTS[method]}"
    return Health(CheckState.DOWN, path.since_s, reason)


def text_of(path: Path) -> str:
    """A path as one line of text, for the local store."""
    tunnel = path.tunnel
    options = [] if tunnel is None else [str(tunnel.type), tunnel.port, tunnel.flags]
    return json.dumps([path.address, str(path.method), *options])


def path_of(text: str) -> Path:
    """The path of such a line. Raises Invalid."""
    try:
        address, method, *options = json.loads(text)
        tunnel = Tunnel(TunnelType.of(options[0]), *options[1:]) if options else None
        return Path(checked_address(address), ForwardingMethod.of(method), tunnel)
    except (ValueError, TypeError, IndexError):
        raise Invalid(f"{text!r} is no path ([address, method, tunnel...])") from None


@functools.lru_cache(maxsize=256)  # the same for all destinations of a service, and of most services
def _question(protocol: Protocol | None, spec: CheckSpec) -> CheckSpec | None:
    timing = _slow(spec.timing)
    if protocol is Protocol.TCP:
        return CheckSpec(timing=timing)
    speaks = spec.kind is CheckKind.DNS or (spec.kind is CheckKind.UDP and spec.expect != "")
    if protocol is Protocol.UDP and speaks and spec.port is None:
        return replace(spec, timing=timing)
    return None


def _slow(timing: CheckSettings) -> CheckSettings:
    return replace(timing, interval_s=max(timing.interval_s, INTERVAL_S))


def _plain(method: ForwardingMethod) -> Tunnel | None:
    return Tunnel() if method is ForwardingMethod.TUNNEL else None
