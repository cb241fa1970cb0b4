"""The lab itself: traffic flows by each forwarding method, through a VIP, over real IPVS."""

from __future__ import annotations

import pytest

from pyipvs import IPVS
from tests.lab.backends import backends
from tests.lab.expect import ask, poll
from tests.lab.topology import VIP, Host, Lab


def _prepare(server: Host, method: str) -> None:
    """What a real server needs to answer for the VIP itself."""
    device = "tunl0" if method == "tunnel" else "lo"
    server.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")
    if method == "tunnel":
        server.run("modprobe", "ipip")
        server.run("ip", "link", "set", "tunl0", "up")
    server.run("ip", "address", "add", f"{VIP}/32", "dev", device)


@pytest.mark.parametrize("method", ["nat", "route", "tunnel"])
def test_the_client_reaches_every_real_server_through_the_vip(method: str) -> None:
    with Lab(routes="nat" if method == "nat" else "direct") as lab, backends(lab.servers), IPVS(netns="lb1") as ipvs:
        lab.lb1.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
        lab.lb1.run("ip", "address", "add", f"{VIP}/32", "dev", "eth0")
        ipvs.add_service(f"tcp/{VIP}:80", scheduler="rr")
        for server in lab.servers:
            if method != "nat":
                _prepare(server, method)
            ipvs.add_destination(f"tcp/{VIP}:80", f"{server.address}:80", method=method)
        poll(lambda: ask(VIP, 80, "client"), what=f"an answer by {method}")
        seen = {ask(VIP, 80, "client") for _ in range(6)}
        assert seen == {server.name for server in lab.servers}
        poll(lambda: ipvs.service(f"tcp/{VIP}:80").stats.connections >= 7, what="the kernel's counters")
