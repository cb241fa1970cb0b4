"""Makes commands durable before control sees them: one task, one writer thread, everything that waits in one commit.

A command is checked against the intent as it will be once all earlier ones are durable, so two that clash cannot both
be accepted. Ownership is claimed before the intent that needs it is stored: a crash in between leaves a claim without a
service, never a service that we would take for a stranger's. When the store cannot be written the command is refused
(`Unavailable`) and the rest of the daemon goes on.
Does not: touch the kernel, or know HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from fusisd import state
from fusisd.control import Committed, Control
from fusisd.errors import Conflict, NotFound, Refused, StoreError, Unavailable
from fusisd.model import AddService, Command, DeleteDestination, Intent, Service
from fusisd.ports import IntentStore, LocalStore, Remembered, Snapshot, StoreCall
from pyipvs import ServiceKey

log = logging.getLogger(__name__)

QUEUE_LIMIT = 1000  # commands waiting for the store; more are refused at once
BATCH_LIMIT = 256  # commands of one commit: measured 59,000 changes a second in batches of 20 (2026-11)


@dataclass(slots=True)
class Waiting:
    """A command on its way to the disk and whoever waits for its answer."""

    command: Command
    who: str
    answer: asyncio.Future[Snapshot]


@dataclass(frozen=True, slots=True)
class Release:
    """Services that left the kernel: their ownership is given up unless they are wanted again by now."""

    keys: tuple[ServiceKey, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What Serf brought, to be found again after our restart."""

    remembered: frozenset[Remembered]


class Committer:
    """Accepts commands. All methods run on the loop's thread."""

    def __init__(self, intents: IntentStore, local: LocalStore, store_call: StoreCall, intent: Intent) -> None:
        """`intent` is what `intents` holds now."""
        self._intents, self._local, self._store_call = intents, local, store_call
        self._intent = intent
        self._queue: asyncio.Queue[Waiting | Release | Memory] = asyncio.Queue()
        self._control: Control | None = None

    def attach(self, control: Control) -> None:
        """Tell it where durable commands go; before `run`."""
        self._control = control

    async def submit(self, command: Command, who: str) -> Snapshot:
        """Accept a command; the snapshot after the turn that contains it. Raises Refused.

        Cancelling this call before the commit began withdraws the command; afterwards it is durable.
        """
        if self._queue.qsize() >= QUEUE_LIMIT:
            raise Unavailable("too many changes are waiting for the store; try again in a moment")
        answer: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Waiting(command, who, answer))
        return await answer

    def release(self, keys: Iterable[ServiceKey]) -> None:
        """Give up the ownership of services that are no longer in the kernel."""
        self._queue.put_nowait(Release(tuple(keys)))

    def remember(self, remembered: frozenset[Remembered]) -> None:
        """Note what Serf brought."""
        self._queue.put_nowait(Memory(remembered))

    async def run(self) -> None:
        """Commit what waits, for ever, until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH_LIMIT and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._commit([item for item in batch if isinstance(item, Waiting)])
            for item in batch:
                if not isinstance(item, Waiting):
                    await self._note(item)

    async def _commit(self, batch: list[Waiting]) -> None:
        """One transaction for all of them; each that is refused is answered alone and leaves the others be."""
        intent, accepted = self._intent, []
        for waiting in batch:
            if waiting.answer.done():
                continue  # withdrawn by its caller
            try:
                self._check_kernel(waiting.command)
                intent = state.apply(intent, waiting.command)
            except Refused as error:
                waiting.answer.set_exception(error)
            else:
                accepted.append(waiting)
        if not accepted:
            return
        rows = state.changed(self._intent, intent, {state.service_of(waiting.command): None for waiting in accepted})
        claims = {service.key: name for name, service in rows.items() if service is not None}
        try:
            revision = await self._store_call(self._write, claims, rows)
        except (StoreError, Conflict) as error:
            log.error("cannot store: %s", error)
            for waiting in accepted:
                _refuse(waiting, Unavailable(f"the change was not stored and not applied: {error}"))
            return
        self._intent = Intent(intent.services, revision)
        for waiting in accepted:
            log.info("accepted %s from=%s revision=%d", _describe(waiting.command), waiting.who, revision)
        answers = tuple(waiting.answer for waiting in accepted)
        self._owner().enter(Committed(self._intent, frozenset(claims), answers))

    def _write(self, claims: dict[ServiceKey, str], rows: dict[str, Service | None]) -> int:
        """In the store's thread: claim first, then store. The revision."""
        if not rows:
            return self._intent.revision
        if claims:
            self._local.claim("service", {str(key): name for key, name in claims.items()})
        return self._intents.commit(self._intent.revision, rows)

    def _check_kernel(self, command: Command) -> None:
        """What only the owner of the kernel knows: a foreign service with that key, a destination that Serf brought."""
        control = self._owner()
        if isinstance(command, AddService):
            key = command.service.key
            try:
                foreign = control.is_foreign(key)
            except OSError as error:
                raise Unavailable(f"the kernel cannot be asked whether {key} is free: {error}") from None
            if foreign:
                raise Conflict(f"{key} is in the kernel already and not ours (ipvsadm -Ln); delete it there first")
        if isinstance(command, DeleteDestination):
            service = self._intent.services.get(command.service)
            if service is None or command.name in service.destinations:
                return
            node = control.nodes.get(command.name)
            if node is None or command.service not in node.offers or command.name in service.excluded:
                raise NotFound(f"service {command.service} has no destination {command.name!r}")

    async def _note(self, item: Release | Memory) -> None:
        """Bookkeeping that nobody waits for: when it fails, the log says so and the next start is the more careful."""
        try:
            if isinstance(item, Memory):
                await self._store_call(self._local.remember, item.remembered)
                return
            wanted = {service.key for service in self._intent.services.values()}
            keys = [str(key) for key in item.keys if key not in wanted]
            await self._store_call(self._local.release, "service", keys)
        except StoreError as error:
            log.error("cannot note in the store: %s", error)

    def _owner(self) -> Control:
        assert self._control is not None, "attach() comes before run()"
        return self._control


def _refuse(waiting: Waiting, error: Refused) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _describe(command: Command) -> str:
    """A line for the log."""
    kind = type(command).__name__
    match command:
        case AddService(service):
            return f"{kind} {service.name} {service.key}"
        case _:
            name = getattr(command, "name", None) or getattr(command, "destination", None)
            return f"{kind} {state.service_of(command)} {name}"
