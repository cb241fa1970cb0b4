"""Keeps the host prepared for every service: asks for VIPs, makes the steps true, again every few seconds.

What can block (iproute2, the record's fsync) runs in a thread, one thing at a time.
Does not: know what the steps are (prepare.py), or how they are made (host.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fusisd.agent import host
from fusisd.agent.config import Config
from fusisd.agent.learn import NotLearnt, recalled, vip_of, written
from fusisd.agent.prepare import Step, Vip, steps
from fusisd.agent.record import RecordFile
from fusisd.agent.standing import Standing, Standings
from fusisd.agent.states import Event, State
from fusisd.errors import FusisError, Invalid

log = logging.getLogger(__name__)

PERIOD_S = 10.0  # how long what somebody else took away stays away
RETRY_S = 1.0
_UNSURE = frozenset({State.STARTING, State.PREPARING})

P = ParamSpec("P")
T = TypeVar("T")


class Preparing:
    """The preparation of one server."""

    def __init__(self, config: Config, address: str, rows: Standings, file: RecordFile) -> None:
        """`address`: this server's own; `file`: what was made here before."""
        self._config, self._address, self._rows, self._file = config, address, rows, file
        self._host = host.Host(file)
        self._lock, self._kicked = asyncio.Lock(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.problems: tuple[str, ...] = ()

    def kick(self) -> None:
        """Look at once."""
        self._kicked.set()

    def reloaded(self, config: Config) -> None:
        """Another configuration is in force."""
        self._config = config
        self.kick()

    def keep_order(self, name: str, order: dict[str, Any]) -> None:
        """Write down what an operator ordered, so that it outlives us."""
        record = self._file.record
        record.orders = {**record.orders, name: order}  # never changed in place: a thread may be writing it
        task = asyncio.get_running_loop().create_task(self._keep())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        """Prepare, for ever."""
        while True:
            self._kicked.clear()
            well = await self._once()
            try:
                async with asyncio.timeout(PERIOD_S if well else RETRY_S):
                    await self._kicked.wait()
            except TimeoutError:
                continue

    async def undo(self) -> tuple[str, ...]:
        """Undo all that was made; a sentence for each thing that could not be."""
        await asyncio.gather(*self._tasks)
        async with self._lock:
            try:
                return (await _in_thread(self._host.bring, ())).problems
            except FusisError as error:
                return (str(error),)

    async def _once(self) -> bool:
        """Prepare once; whether everything is as it should be."""
        unknown: dict[str, str] = {}
        rows = list(self._rows)  # one that comes meanwhile is not prepared by this look
        for row in rows:
            if _touched(row) and (said := await self._find_vip(row)):
                unknown[row.config.name] = said
        unmade, blind, problems = await self._bring(rows) if self._config.prepare else ({}, False, ())
        for row in filter(self._rows.has, rows):
            name = row.config.name
            if blind and _touched(row) and name not in unknown and row.state not in _UNSURE:
                continue  # what was prepared and cannot be looked at is not unprepared
            reason = unknown.get(name, "") or unmade.get(name, "")
            self._rows.happened(name, Event.UNPREPARED if reason else Event.PREPARED, reason)
        self._say((*unknown.values(), *problems))
        return not self.problems

    def _say(self, problems: tuple[str, ...]) -> None:
        for sentence in problems:
            if sentence not in self.problems:
                log.warning("not ready reason=%s", sentence)
        self.problems = problems

    async def _find_vip(self, row: Standing) -> str:
        """Find a service's VIP: as configured, as the balancer says, as it said before; why there is none."""
        config, kept = row.config, self._file.record.vips
        refused = frozenset({self._address, *self._config.balancers})
        if config.vip in refused:
            return f"the VIP {config.vip} is this server's own or a balancer's address: give the service's"
        if config.vip is not None:
            row.vip = Vip(config.vip, config.port)
            return ""
        try:
            row.vip = await vip_of(config.name, self._config.balancers, self._config.api_port, refused)
        except NotLearnt as error:
            if row.vip is None and config.name in kept:
                row.vip = _recalled(kept[config.name])
            return "" if row.vip is not None else str(error)
        if kept.get(config.name) != written(row.vip):
            self._file.record.vips = {**kept, config.name: written(row.vip)}
            await self._keep()
        return ""

    async def _bring(self, rows: list[Standing]) -> tuple[dict[str, str], bool, tuple[str, ...]]:
        """Make the steps of all services true: why which of them is not ready, whether nothing could be seen at all, and
        what else is wrong."""
        async with self._lock:
            try:
                needs = await self._needs(rows)
                brought = await _in_thread(self._host.bring, needs.values())
            except FusisError as error:
                return {row.config.name: str(error) for row in rows if _touched(row)}, True, (str(error),)
        failed = {name: [brought.failed[step] for step in steps if step in brought.failed] for name, steps in needs.items()}
        return {name: "; ".join(said) for name, said in failed.items() if said}, False, brought.problems

    async def _needs(self, rows: list[Standing]) -> dict[str, tuple[Step, ...]]:
        """The steps of each service that needs any. Raises HostError, StartupError."""
        touched = [row for row in rows if _touched(row)]
        if not touched:
            return {}
        place = await _in_thread(host.place, self._address, self._config.balancers[0])
        return {row.config.name: steps([(row.config, row.vip)], place) for row in touched}

    async def _keep(self) -> None:
        async with self._lock:
            try:
                await _in_thread(self._file.write)
            except OSError as error:
                log.warning("record not written reason=%s", error)


def _touched(row: Standing) -> bool:
    """Whether anything is made on this server for it."""
    return row.config.needs_vip or row.config.route_back


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`call` in a thread, waited for to its end even by who is cancelled: no other may begin before."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _recalled(kept: str) -> Vip | None:
    try:
        return recalled(kept)
    except Invalid:
        return None
