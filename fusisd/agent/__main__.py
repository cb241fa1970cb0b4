"""The command `fusis-agent`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusisd.errors import FusisError, Invalid, StartupError

if TYPE_CHECKING:
    from fusisd.agent.agent import Options


def main(arguments: list[str] | None = None) -> int:
    """Run the agent with this command line (None: the process's own); the exit status."""
    line = _parser().parse_args(arguments)
    try:
        from fusisd.agent.agent import Agent
    except ModuleNotFoundError as error:
        if error.name != "msgpack":
            raise
        print("fusis-agent: the package msgpack is missing: pip install 'pyipvs[fusisd]'", file=sys.stderr)
        return 1
    logging.basicConfig(
        level=line.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        asyncio.run(Agent(_options(line)).run())
    except FusisError as error:
        print(f"fusis-agent: {error}", file=sys.stderr)
        if isinstance(error, StartupError):
            return error.status
        return 2 if isinstance(error, Invalid) else 1
    return 0


def _options(line: argparse.Namespace) -> Options:
    """The command line, checked. Raises Invalid."""
    from fusisd.agent.agent import Options, hostname
    from fusisd.model import checked_address, checked_name, checked_port, checked_weight

    return Options(
        balancers=tuple(checked_address(text, "--balancer") for text in line.balancer.split(",")),
        key_file=line.key_file,
        service=checked_name(line.service, "--service"),
        port=checked_port(line.port, "--port"),
        weight=checked_weight(line.weight),
        mode=line.mode,
        iface=line.iface,
        name=checked_name(line.name or hostname(), "--name"),
        state_dir=line.state_dir,
        rpc_port=checked_port(line.rpc_port, "--rpc-port"),
        bind_port=checked_port(line.bind_port, "--bind-port"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusis-agent",
        description="Bring this server into a Fusis balancer's service.",
        epilog="The whole line is printed by `fusisctl join-command` on the balancer.",
    )
    add = parser.add_argument
    add("--balancer", required=True, metavar="IP[,IP]", help="the balancers' addresses")
    add("--key-file", required=True, type=Path, metavar="FILE", help="the cluster's encryption key (mode 0600)")
    add("--service", required=True, metavar="NAME", help="the service that this server offers")
    add("--port", required=True, type=int, help="the port on which it answers")
    add("--weight", type=int, default=1, help="its share, 0 to 65535 (default 1)")
    add("--mode", default="nat", choices=("nat", "route", "tunnel"), help="forwarding method (default nat)")
    add(
        "--iface", metavar="NAME", help="interface of the address to offer (default: that of the route to the balancer)"
    )
    add("--name", metavar="NODE", help="node name, one per server (default: the host's name)")
    add("--state-dir", type=Path, default=Path("/var/lib/fusis-agent"), metavar="DIR", help="(default %(default)s)")
    add("--rpc-port", type=int, default=7373, metavar="PORT", help="Serf's RPC on loopback (default %(default)s)")
    add("--bind-port", type=int, default=7946, metavar="PORT", help="Serf's gossip port (default %(default)s)")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="(default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
