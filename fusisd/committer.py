"""Makes commands durable before control sees them: one task, one writer thread, everything that waits in one commit.

A command is checked against the intent as it will be once all earlier ones are durable, so two that clash cannot both
be accepted. Ownership is claimed before the intent that needs it is stored: a crash in between leaves a claim without a
service, never a service that we would take for a stranger's. When the store cannot be written the command is refused
(`Unavailable`) and the rest of the daemon goes on.
Does not: touch the kernel, decide what a command may do (door.py does, with state.py), or know HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fusisd import notes, state
from fusisd.commands import AddService, Command, EndDrain, One
from fusisd.control import Control
from fusisd.door import Door
from fusisd.drains import Drain, DrainKey
from fusisd.errors import Conflict, Refused, StoreError, Unavailable
from fusisd.inbox import Committed, PathsNoted
from fusisd.model import Intent, Path
from fusisd.notes import Notes
from fusisd.paths import text_of
from fusisd.ports import Change, Foreseen, IntentStore, LocalStore, Remembered, Snapshot, StoreCall
from pyipvs import ServiceKey

log = logging.getLogger(__name__)

QUEUE_LIMIT = 1000  # commands waiting for the store; more are refused at once
BATCH_LIMIT = 256  # commands of one commit: measured 59,000 changes a second in batches of 20 (2026-11)
AT_A_TIME = 200  # destinations of a compound command that are looked at before others get the loop: some milliseconds
OURSELVES = "fusisd"


@dataclass(slots=True)
class Waiting:
    """A command on its way to the disk and whoever waits for its answer."""

    command: Command
    who: str
    answer: asyncio.Future[Snapshot]


@dataclass(frozen=True, slots=True)
class Gone:
    """Services that left the kernel: their ownership is given up unless they are wanted again by now."""

    keys: tuple[ServiceKey, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What Serf brought, to be found again after our restart."""

    remembered: frozenset[Remembered]


@dataclass(frozen=True, slots=True)
class Paths:
    """Marks chosen for paths, to be noted before they are used."""

    rows: Mapping[ServiceKey, Path]


@dataclass(slots=True)
class Batch:
    """Commands that are committed together, and what they make of the intent and of the local notes."""

    intent: Intent
    drains: dict[DrainKey, Drain]
    accepted: list[Waiting] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)


class Committer:
    """Accepts commands. All methods run on the loop's thread."""

    def __init__(
        self,
        intents: IntentStore,
        local: LocalStore,
        store_call: StoreCall,
        intent: Intent,
        drains: dict[DrainKey, Drain],
        clock: Callable[[], float],
    ) -> None:
        """`intent` and `drains` are what the stores hold now; `clock` is monotonic seconds."""
        self._intents, self._local, self._store_call, self._clock = intents, local, store_call, clock
        self._intent, self._drains = intent, drains
        self._queue: asyncio.Queue[Waiting | Gone | Memory | Paths] = asyncio.Queue()
        self._claimed: set[ServiceKey] = set()  # noted as ours in the store, as far as we know
        self._control: Control | None = None
        self._door: Door | None = None

    def attach(self, control: Control, door: Door) -> None:
        """Tell it where durable commands go, and who checks them; before `run`."""
        self._control, self._door = control, door
        self._claimed = set(control.owned)

    async def submit(self, command: Command, who: str) -> Snapshot:
        """Accept a command; the snapshot after the turn that contains it. Raises Refused.

        Cancelling this call before the commit began withdraws the command; afterwards it is durable.
        """
        if self._queue.qsize() >= QUEUE_LIMIT:
            raise Unavailable("too many changes are waiting for the store; try again in a moment")
        assert self._door is not None, "attach() comes before submit()"
        command = await self._door.prepared(command, self._intent)
        answer: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Waiting(command, who, answer))
        try:
            return await answer
        finally:
            self._door.answered(command)

    async def foresee(self, command: Command) -> Callable[[], Foreseen]:
        """What works out what it would come to, were it given now, in any thread: of a whole table it takes a while. Nothing
        is stored. Raises Refused."""
        assert self._door is not None, "attach() comes before foresee()"
        command = await self._door.prepared(command, self._intent)
        try:
            batch = Batch(self._intent, dict(self._drains))
            before = self._intent
            await self._take(batch, command)
            value = _committed(batch, batch.intent, _change(before, batch.intent, [command]))
            return self._owner().foresight(before, value)
        finally:
            self._door.answered(command)

    def gone(self, keys: Iterable[ServiceKey]) -> None:
        """Give up the ownership of services that are no longer in the kernel."""
        self._queue.put_nowait(Gone(tuple(keys)))

    def remember(self, remembered: frozenset[Remembered]) -> None:
        """Note what Serf brought."""
        self._queue.put_nowait(Memory(remembered))

    def paths(self, rows: Mapping[ServiceKey, Path]) -> None:
        """Note these marks as ours; control hears when it is done."""
        self._queue.put_nowait(Paths(rows))

    def drained(self, command: EndDrain) -> None:
        """A drain is over: remove what drained."""
        answer: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits: control asks again
        self._queue.put_nowait(Waiting(command, OURSELVES, answer))

    async def run(self) -> None:
        """Commit what waits, for ever, until cancelled."""
        while True:
            items = [await self._queue.get()]
            while len(items) < BATCH_LIMIT and not self._queue.empty():
                items.append(self._queue.get_nowait())
            await self._commit([item for item in items if isinstance(item, Waiting)])
            for item in items:
                if not isinstance(item, Waiting):
                    await self._note(item)

    async def _commit(self, items: list[Waiting]) -> None:
        """One transaction for all of them; each that is refused is answered alone and leaves the others be."""
        batch = await self._checked(items)
        if not batch.accepted:
            return
        change = _change(self._intent, batch.intent, [waiting.command for waiting in batch.accepted])
        fresh = {key: name for key, name in _claimed(change).items() if key not in self._claimed}
        try:
            revision = await self._store_call(self._write, change, batch.notes, fresh)
        except (StoreError, Conflict) as error:
            self._owner().journal.tell("store", "cannot store what was asked for", logging.ERROR, cause=str(error))
            for waiting in batch.accepted:
                _refuse(waiting, Unavailable(f"the change was not stored and not applied: {error}"))
            return
        self._intent, self._drains = replace(batch.intent, revision=revision), batch.drains
        self._claimed.update(fresh)
        self._claimed -= batch.notes.let_go
        for waiting in batch.accepted:
            for command in state.parts(waiting.command):
                self._tell(command, waiting.who, revision)
        self._owner().enter(_committed(batch, self._intent, change))

    def _tell(self, command: One, who: str, revision: int) -> None:
        service, destination = state.service_of(command) or "", state.destination_of(command) or ""
        text = f"{_described(command)} revision={revision}"
        cause = "its drain is over" if isinstance(command, EndDrain) else ""
        tell = self._owner().journal.tell
        tell("accepted", text, service=service, destination=destination, who=who, cause=cause)

    async def _checked(self, items: list[Waiting]) -> Batch:
        """What becomes of the intent and the notes; whoever is refused is answered."""
        batch = Batch(self._intent, dict(self._drains))
        for waiting in items:
            if waiting.answer.done():
                continue  # withdrawn by its caller
            try:
                await self._take(batch, waiting.command)
            except Refused as error:
                _refuse(waiting, error)
                continue
            batch.accepted.append(waiting)
        notes.keep_wanted(batch.notes, batch.intent)
        return batch

    async def _take(self, batch: Batch, command: Command) -> None:
        """Take a command into a batch, with all of its parts. Raises Refused, and then nothing of it is in it."""
        for one, before, after in await self._steps(command, batch.intent):
            notes.take(batch.notes, one, before, self._owner().target, self._clock())
            notes.drains_after(batch.drains, batch.notes, one, after, self._clock())
            batch.intent = after

    async def _steps(self, command: Command, intent: Intent) -> list[tuple[One, Intent, Intent]]:
        """Each of its commands, as the door lets it in, with the intent before and after; the loop does other things in
        between. Raises Refused for all of them."""
        assert self._door is not None, "attach() comes before run()"
        steps, looked_at = [], 0
        for one in state.parts(command):
            looked_at += 1 + (len(one.service.destinations) if isinstance(one, AddService) else 0)
            if looked_at > AT_A_TIME:
                looked_at = 0
                await asyncio.sleep(0)
            with state.refusals_of(one):
                checked = self._door.check(one, intent)
                after = state.apply(intent, checked)
            steps.append((checked, intent, after))
            intent = after
        return steps

    def _write(self, change: Change, taken: Notes, claimed: dict[ServiceKey, str]) -> int:
        """In the store's thread: claim first, then store, then let go. The revision."""
        if claimed:
            self._local.claim("service", {str(key): name for key, name in claimed.items()})
        for kind, rows in taken.claims.items():
            self._local.claim(kind, rows)
        revision = self._intent.revision
        if change != Change():
            revision = self._intents.commit(revision, change)
        for kind, keys in taken.releases.items():
            self._local.release(kind, keys)
        return revision

    async def _note(self, item: Gone | Memory | Paths) -> None:
        """Bookkeeping that nobody waits for: when it fails, the log says so and the next start is the more careful."""
        if isinstance(item, Paths):
            self._owner().enter(PathsNoted(item.rows, await self._noted(item)))
            return
        try:
            if isinstance(item, Memory):
                await self._store_call(self._local.remember, item.remembered)
                return
            wanted = {service.key for service in self._intent.services.values()}
            keys = [key for key in item.keys if key not in wanted]
            self._claimed.difference_update(keys)
            await self._store_call(self._local.release, "service", [str(key) for key in keys])
            if marks := [str(key) for key in keys if key.mark is not None]:
                await self._store_call(self._local.release, "path", marks)
        except StoreError as error:
            log.error("cannot note in the store reason=%s", error)

    async def _noted(self, item: Paths) -> str:
        """ "" once the marks are noted, or why they are not."""
        try:
            rows = {str(key): text_of(path) for key, path in item.rows.items()}
            await self._store_call(self._local.claim, "path", rows)
        except StoreError as error:
            return str(error)
        return ""

    def _owner(self) -> Control:
        assert self._control is not None, "attach() comes before run()"
        return self._control


def _change(before: Intent, after: Intent, commands: Iterable[Command]) -> Change:
    """What must be stored."""
    parts = (one for command in commands for one in state.parts(command))
    names = {name for one in parts if (name := state.service_of(one)) is not None}
    return Change(
        state.changed(before, after, dict.fromkeys(names)),
        after.timeouts if after.timeouts != before.timeouts else None,
        after.ranges if after.ranges != before.ranges else None,
    )


def _claimed(change: Change) -> dict[ServiceKey, str]:
    """The keys that a change needs as ours, with the names."""
    return {service.key: name for name, service in change.services.items() if service is not None}


def _committed(batch: Batch, intent: Intent, change: Change) -> Committed:
    """What control is told of a batch."""
    answers = tuple(waiting.answer for waiting in batch.accepted)
    here = (batch.notes.paused_until_s, batch.notes.withdrawn)
    return Committed(intent, frozenset(_claimed(change)), answers, frozenset(batch.notes.let_go), batch.drains, *here)


def _refuse(waiting: Waiting, error: Refused) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _described(command: One) -> str:
    """A command in a few words: what it is, and its figures."""
    found = ((name, getattr(command, name, None)) for name in ("drain_s", "seconds", "withdrawn"))
    return " ".join([type(command).__name__, *(f"{name}={value}" for name, value in found if value is not None)])
