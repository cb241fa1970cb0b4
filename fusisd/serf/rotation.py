"""Another gossip key for the whole cluster, without a moment in which two nodes do not understand each other.

The order is Serf's own (install-key, use-key, remove-key), and each step is taken by every node before the next begins: all
can read the new key before anybody writes with it, and nobody forgets the old one before all write with the new one. What
is made is noted on disk first, so that a rotation that was cut off goes on with the same key when it is run again.
A node that is failed takes no part and would come back with a key that nobody writes with: so there must be none, or the
operator says that it will be given the new key by hand.
Does not: start an agent, or print.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from fusisd.files import move
from fusisd.serf.client import refused_keys
from fusisd.serf.errors import SerfError, SerfProtocolError, SerfRefused
from fusisd.serf.keys import load_or_make_key
from fusisd.serf.values import KeyReport, Member

TRIES = 3  # a query goes by gossip, which may lose an answer under load
PAUSE_S = 1.0


class Keys(Protocol):
    """What is asked of an agent; SerfClient does it."""

    async def members(self) -> Iterable[Member]:
        """The member list. All raise SerfError."""

    async def list_keys(self) -> KeyReport:
        """Who has which keys."""

    async def install_key(self, key: str) -> KeyReport:
        """All read with this key, too."""

    async def use_key(self, key: str) -> KeyReport:
        """All write with it."""

    async def remove_key(self, key: str) -> KeyReport:
        """All forget it."""


class RotationError(SerfError):
    """The key was not rotated, or not to the end; `str()` says how far it came and what to do."""


def pending(key_file: Path) -> Path:
    """Where the next key stands until every node writes with it."""
    return key_file.with_name(f"{key_file.name}.next")


async def rotate(serf: Keys, key_file: Path, anyway: bool = False, say: Callable[[str], None] = lambda step: None) -> None:
    """Give the cluster a new key and replace `key_file` by it. `anyway`: though nodes are failed. `say` hears each step.

    Raises RotationError, SerfError (the agent is gone), SupervisorError and OSError (files). Run again it goes on.
    """
    failed = sorted(member.name for member in await serf.members() if member.status == "failed")
    if failed and not anyway:
        raise RotationError(
            f"nothing was changed: failed and would be locked out: {', '.join(failed)}. Bring them back, make them leave"
            " (serf force-leave), or give --anyway and then each of them the new key (fusisctl join-command)"
        )
    new = load_or_make_key(pending(key_file))
    report = await _all(partial(serf.install_key, new), "nothing is lost, the old key is in use; run it again")
    say(f"{report.nodes} nodes can read with the new key")
    await _all(partial(serf.use_key, new), "some nodes write with the new key and all can read it; run it again")
    move(pending(key_file), key_file)
    say("all write with the new key")
    report = await _all(serf.list_keys, "the new key is in use, the old one is accepted still; run it again")
    for old in sorted(report.keys.keys() - {new}):
        await _all(partial(serf.remove_key, old), "the new key is in use, some nodes accept the old one still; run it again")
    say("nobody accepts another key")


async def _all(ask: Callable[[], Awaitable[KeyReport]], otherwise: str) -> KeyReport:
    """What every node said yes to, within TRIES. Raises RotationError."""
    tries = 0
    while True:
        try:
            return await ask()
        except SerfRefused as error:
            tries += 1
            if tries == TRIES:
                raise RotationError(f"{error}{_who(error)}: {otherwise}") from None
        await asyncio.sleep(PAUSE_S)


def _who(refusal: SerfRefused) -> str:
    """The nodes that said why not."""
    try:
        said = refused_keys(refusal).messages
    except SerfProtocolError:
        return ""
    return "".join(f"; {node}: {text}" for node, text in sorted(said.items()) if text)
