"""`make run` where the kernel has no IPVS: fusisd in the lab with three real servers, its API on the host's port 8000."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from tests.lab.expect import poll
from tests.lab.fusis import Balancer, RealServer
from tests.lab.topology import VIP, Lab


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fusis-run-") as home, Lab() as lab, contextlib.ExitStack() as stack:
        print("==> fusisd --iface eth0 on lb1, three real servers with fusis-agent", flush=True)
        balancer = stack.enter_context(Balancer(lab.lb1, Path(home, "lb1")))
        balancer.add_service()
        for host in lab.servers:
            server = RealServer(host, Path(home, host.name), balancer)
            stack.callback(server.stop)
            server.start()
        poll(lambda: len(balancer.weights("web")) == len(lab.servers), 60, "the real servers to join")
        token = (balancer.state_dir / "token").read_text().strip()
        print("==> Listening and serving HTTP on http://127.0.0.1:8000/ until Ctrl-C. Try, from another terminal:")
        print("    curl -i http://127.0.0.1:8000/services")
        print("    curl -s http://127.0.0.1:8000/status")
        print(f"    curl -i -X DELETE -H 'Authorization: Bearer {token}' http://127.0.0.1:8000/services/web/destinations/rs1")
        print(f"    (the service web is on {VIP}:80 inside the lab)", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
