"""How fast a balancer hears that a service died, by real Serf on loopback: `python -m tests.bench.agent [TIMES]`.

A service's listener is closed, as a kill -9 closes it; the time ends when a balancer's member list, followed as fusisd
follows it (SerfClient.watch), has the tag that says `down`. What the balancer then does takes a few milliseconds more.
"""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fusisd.serf.client import MembersSeen, SerfClient
from fusisd.serf.keys import load_or_make_key
from fusisd.tags import decode_all
from tests.serf.agents import Agents, address

RPC_PORT, BIND_PORT = 17373, 17946
LIMIT_S = 60.0


class Watched:
    """What the balancer's list says of service web on rs9."""

    def __init__(self) -> None:
        self.state = ""
        self.changed = asyncio.Event()

    def seen(self, seen: MembersSeen) -> None:
        offers = {member.name: decode_all(member.tags)[0] for member in seen.members}
        offer = offers.get("rs9", {}).get("web")
        self.state = "" if offer is None else offer.state.value
        self.changed.set()

    async def until(self, state: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.state != state:
                self.changed.clear()
                await self.changed.wait()


def listener(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(512)
    return sock


async def measure(times: int, port: int) -> dict[str, list[float]]:
    """Seconds from death to `down` and from return to `ready`."""
    client, watched = SerfClient(address(1), 7373), Watched()
    watching = asyncio.create_task(client.watch(watched.seen, lambda lost: None))
    found: dict[str, list[float]] = {"down": [], "ready": []}
    try:
        for _ in range(times):
            sock = listener(port)
            began_s = time.monotonic()
            await watched.until("ready")
            found["ready"].append(time.monotonic() - began_s)
            await asyncio.sleep(random.uniform(1.0, 2.0))
            sock.close()
            began_s = time.monotonic()
            await watched.until("down")
            found["down"].append(time.monotonic() - began_s)
            await asyncio.sleep(random.uniform(1.0, 2.0))
    finally:
        watching.cancel()
    return found


def main(times: int) -> None:
    with tempfile.TemporaryDirectory(prefix="fusis-bench-") as home, Agents(Path(home)) as agents:
        key = load_or_make_key(Path(home, "key"))
        agents.start(1, "role=balancer", key=key, port=BIND_PORT)
        with listener(0) as free:
            port = free.getsockname()[1]
        words = [sys.executable, "-m", "fusisd.agent", "--balancer", address(1), "--key-file", str(Path(home, "key"))]
        words += ["--service", "web", "--port", str(port), "--name", "rs9", "--state-dir", str(Path(home, "state"))]
        words += ["--rpc-port", str(RPC_PORT), "--bind-port", str(BIND_PORT)]
        with open(Path(home, "log"), "ab") as log, subprocess.Popen(words, stdout=log, stderr=log) as agent:
            try:
                found = asyncio.run(measure(times, port))
            finally:
                agent.terminate()
    for state, took in found.items():
        tenths = statistics.quantiles(took, n=10)
        print(f"{state:6} n={times}  median {statistics.median(took):.3f} s  90 % {tenths[-1]:.3f} s  max {max(took):.3f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
