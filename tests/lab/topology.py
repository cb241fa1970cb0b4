"""The lab's network as data, built in about a second from network namespaces.

    client 10.9.0.2 ── router 10.9.0.1 / 10.1.0.1 ──┬── lb1 10.1.0.2   lb2 10.1.0.3      (LAN 10.1.0.0/24, fd00:1::/64)
                                                    └── rs1 10.1.0.11  rs2 10.1.0.12 ...

VIPs are taken from 10.1.0.100 up: they lie in the LAN, so that the router finds their owner by ARP and announcements count.
Every host's LAN interface is eth0 (the client's too). Real servers route by way of the router (`routes="direct"`) or of
lb1 (`routes="nat"`: the balancer sees the replies). The balancers are bare: to prepare them is the daemon's work.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

VIP = "10.1.0.100"
VIP6 = "fd00:1::100"
COMMAND_LIMIT_S = 60


@dataclass(frozen=True)
class Host:
    """A machine of the lab: a network namespace with an address."""

    name: str
    address: str = ""
    address6: str = ""
    prefix: int = 24

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command there to its end; what it printed on stdout."""
        done = subprocess.run(self.argv(*command), capture_output=True, text=True, timeout=COMMAND_LIMIT_S)
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(command)} -> {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def argv(self, *command: str) -> list[str]:
        """The command line that runs `command` there. (An exec, so the process keeps its pid.)"""
        return ["ip", "netns", "exec", self.name, *command]

    def popen(self, *command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command there; its output goes to `log`, or nowhere."""
        with open(log or "/dev/null", "ab") as output:
            return subprocess.Popen(self.argv(*command), stdin=subprocess.DEVNULL, stdout=output, stderr=output)


ROUTER = Host("router", "10.1.0.1", "fd00:1::1")
LB1 = Host("lb1", "10.1.0.2", "fd00:1::2")
LB2 = Host("lb2", "10.1.0.3", "fd00:1::3")
CLIENT = Host("client", "10.9.0.2", "fd00:9::2")


def real_server(number: int) -> Host:
    """rs1, rs2 ..."""
    return Host(f"rs{number}", f"10.1.0.{10 + number}", f"fd00:1::{10 + number}")


@contextlib.contextmanager
def make_netns(name: str) -> Iterator[Host]:
    """A network namespace of its own with lo up, for tests that need no neighbours."""
    _batch([f"netns add {name}"])
    try:
        _batch(["link set lo up"], name)
        yield Host(name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=COMMAND_LIMIT_S)


class Lab:
    """The built network; a context manager."""

    def __init__(self, servers: int = 3, routes: str = "direct") -> None:
        self.client, self.router, self.lb1, self.lb2 = CLIENT, ROUTER, LB1, LB2
        self.servers = [real_server(number) for number in range(1, servers + 1)]
        self.gateway = ROUTER if routes == "direct" else LB1
        self._lan = [self.router, self.lb1, self.lb2, *self.servers]
        self._all = ["sw", self.client.name, *(host.name for host in self._lan)]

    def __enter__(self) -> Lab:
        _batch([f"netns add {name}" for name in self._all])
        wires = [f"link add eth0 netns {host.name} type veth peer name {host.name} netns sw" for host in self._lan]
        _batch([*wires, "link add eth0 netns client type veth peer name up0 netns router"])
        bridge = "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
        _batch([bridge, "link set br0 up", *self._ports()], "sw")
        for host in self._lan:
            _batch(self._lan_setup(host), host.name)
        _batch(["link set lo up", *_address(self.client), "route add default via 10.9.0.1",
                "-6 route add default via fd00:9::1"], "client")  # fmt: skip
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _batch([f"netns delete {name}" for name in self._all])

    def mac(self, host: Host) -> str:
        """The Ethernet address of a host's LAN interface."""
        return host.run("cat", "/sys/class/net/eth0/address").strip()

    def cable(self, host: Host, state: str) -> None:
        """Pull a host's cable ("down") or plug it in ("up"), at the switch's end: addresses and routes there stay."""
        _batch([f"link set {host.name} {state}"], "sw")

    def _ports(self) -> list[str]:
        return [line for host in self._lan for line in (f"link set {host.name} master br0", f"link set {host.name} up")]

    def _lan_setup(self, host: Host) -> list[str]:
        lines = ["link set lo up", *_address(host)]
        if host is self.router:
            return [*lines, "address add 10.9.0.1/24 dev up0", "address add fd00:9::1/64 dev up0 nodad", "link set up0 up"]
        gateway = self.gateway if host in self.servers else self.router
        return [*lines, f"route add default via {gateway.address}", f"-6 route add default via {gateway.address6}"]


def _address(host: Host) -> list[str]:
    return [
        f"address add {host.address}/{host.prefix} dev eth0",
        f"address add {host.address6}/64 dev eth0 nodad",
        "link set eth0 up",
    ]


def _batch(lines: list[str], netns: str | None = None) -> None:
    """One `ip -batch`: a process costs 25 ms in the guest, a line of it 1 ms."""
    where = ["-n", netns] if netns else []
    families = {"-6": [line[3:] for line in lines if line.startswith("-6 ")], "-4": [x for x in lines if x[0] != "-"]}
    for family in ("-4", "-6"):
        if families[family]:
            text = "\n".join(families[family]) + "\n"
            subprocess.run(["ip", *(["-6"] if family == "-6" else []), *where, "-batch", "-"],
                           input=text, text=True, check=True, timeout=COMMAND_LIMIT_S)  # fmt: skip
