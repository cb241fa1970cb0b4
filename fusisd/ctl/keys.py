"""fusisctl's command for the cluster's gossip key: `serf rotate-key`, spoken to the balancer's own Serf agent.

Does not: know HTTP (fusisd has no part in it), or the order of the steps (fusisd.serf.rotation).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fusisd.ctl import render, words
from fusisd.ctl.client import Client, CtlError
from fusisd.errors import FusisError
from fusisd.tags import BALANCER_ROLE, ROLE_TAG

if TYPE_CHECKING:
    from fusisd.serf.client import SerfClient

log = logging.getLogger(__name__)

STATE_DIR = Path("/var/lib/fusisd")


def declare(commands: words.Commands) -> None:
    """Add the commands of this module."""
    serf = words.group(commands, "serf", "the balancer's own Serf agent")
    text = "give the whole cluster another encryption key"
    rotate = words.command(serf, "rotate-key", rotate_key, text, "fusisctl serf rotate-key")
    rotate.add_argument("--anyway", action="store_true", help="though nodes are failed: they must be given the key by hand")
    rotate.add_argument("--state-dir", type=Path, default=STATE_DIR, metavar="DIR", help="fusisd's (default %(default)s)")


def rotate_key(client: Client, options: argparse.Namespace) -> int:
    """Rotate, step by step."""
    try:
        from fusisd.serf import rotation
    except ModuleNotFoundError as error:
        if error.name != "msgpack":
            raise
        raise CtlError("the package msgpack is missing: pip install 'pyipvs[fusisd]'") from None
    directory: Path = options.state_dir / "serf"
    steps: list[str] = []

    def say(step: str) -> None:
        steps.append(step)
        if not options.json:
            render.say(step)

    async def work() -> None:
        serf = await connected(directory)
        try:
            await rotation.rotate(serf, directory / "key", options.anyway, say)
        finally:
            await serf.close()

    try:
        asyncio.run(work())
    except (FusisError, OSError) as error:
        raise error if isinstance(error, CtlError) else CtlError(str(error)) from None
    if options.json:
        render.say_json({"steps": steps})
    return 0


def in_use(state_dir: Path) -> str:
    """The key that the balancer's agent writes with: its ring's first, without a ring the key file's. Raises CtlError."""
    ring = state_dir / "serf" / "keyring"
    try:
        if ring.exists():
            return str(json.loads(secret(ring))[0])
    except (PermissionError, ValueError, LookupError):
        pass  # the key file says more of what is wrong, or is right
    return secret(state_dir / "serf" / "key")


def secret(file: Path) -> str:
    """What a file for root holds. Raises CtlError."""
    try:
        return file.read_text("ascii").strip()
    except PermissionError:
        raise CtlError(f"{file} is for root: run fusisctl as root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CtlError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None


def balancers(state_dir: Path) -> list[str]:
    """The addresses of all balancers that the balancer's own Serf agent lists alive; none when it cannot be asked."""

    async def ask() -> list[str]:
        serf = await connected(state_dir / "serf")
        try:
            members = await serf.members()
        finally:
            await serf.close()
        return sorted(m.address for m in members if m.status == "alive" and m.tags.get(ROLE_TAG) == BALANCER_ROLE)

    try:
        return asyncio.run(ask())
    except (FusisError, ModuleNotFoundError) as error:
        log.debug("balancers not asked reason=%s", error)
        return []


async def connected(directory: Path) -> SerfClient:
    """The RPC of the agent that fusisd keeps, found by the settings that it was started with. Raises CtlError, SerfError."""
    from fusisd.serf.client import SerfClient

    file = directory / "agent.json"
    if directory.is_dir() and not file.exists():
        raise CtlError("this fusisd keeps no Serf agent of its own (--serf managed): rotate the key of yours there")
    try:
        settings = json.loads(secret(file))
        host, _, port = settings["rpc_addr"].rpartition(":")
        client = SerfClient(host, int(port), settings["rpc_auth"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CtlError(f"{file} is not as fusisd writes it: start fusisd anew") from None
    await client.connect()
    return client
