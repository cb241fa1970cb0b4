"""From a request's thread to a durable, applied change: committer, bridge, real store, fake kernel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fusisd.bridge import Bridge
from fusisd.commands import AddDestination, AddService, DeleteDestination, DeleteService, Release, SetGlobals, Together
from fusisd.committer import Committer
from fusisd.counts import Counts
from fusisd.door import Door
from fusisd.errors import Conflict, NotFound, StoreError, Unavailable
from fusisd.inbox import Beginning, MembersSeen, Told
from fusisd.kernel.ipvs import IpvsKernel
from fusisd.ports import Reading
from fusisd.statistics import Statistics
from fusisd.store.sqlite import SqliteIntents, SqliteLocal, open_database
from tests.fusisd.world import WEB_KEY, Daemon, at, member, web


class Whole:
    """Committer and bridge around a Daemon, with a loop that runs for the time of `scenario`."""

    def __init__(self, path: Path) -> None:
        self._executor = ThreadPoolExecutor(1)
        self.file = path / "fusisd.db"
        self.store_error: StoreError | None = None

    def run(self, scenario: Callable[[Whole], Awaitable[None]]) -> None:
        asyncio.run(self._run(scenario))

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        def work() -> Any:
            if self.store_error is not None:
                raise self.store_error
            return function(*args, **kwargs)

        return asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _run(self, scenario: Callable[[Whole], Awaitable[None]]) -> None:
        database = await self.call(open_database, self.file)
        self.intents = SqliteIntents(database, self.file)
        self.local = await self.call(SqliteLocal, database, self.file, "this boot")
        intent = await self.call(self.intents.load)
        self.daemon = Daemon(Beginning(intent, serf_expected=False))
        control = self.daemon.control
        self.committer = Committer(self.intents, self.local, self.call, intent, {}, self.daemon.clock)
        self.committer.attach(control, Door(control, self.daemon.host))
        control._told = Told(self.committer.gone, self.committer.remember, self.committer.drained, self.committer.paths)
        clock, self.counts = self.daemon.clock, Counts()
        self.statistics = Statistics(IpvsKernel(self.daemon.ipvs, None), clock)
        loop = asyncio.get_running_loop()
        self.bridge = Bridge(loop, control, self.committer, self.statistics, self.counts, clock)
        want = self.daemon.host.want

        def settle(wanted: Any) -> None:
            want(wanted)
            asyncio.get_running_loop().call_soon(lambda: control.enter(self.daemon.host.seen()))

        self.daemon.host.want = settle  # type: ignore[method-assign]
        tasks = [asyncio.ensure_future(control.run()), asyncio.ensure_future(self.committer.run())]
        try:
            async with asyncio.timeout(20):
                await scenario(self)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.call(database.close) if self.store_error is None else None
            self._executor.shutdown()


@pytest.fixture
def whole(tmp_path: Path) -> Whole:
    return Whole(tmp_path)


def test_a_command_is_durable_and_in_the_kernel_when_it_is_answered(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        snapshot = await w.committer.submit(AddDestination("web", at(1)), "test")
        assert w.daemon.weights() == {"10.0.0.11": 1}
        assert [view.name for view in snapshot.services] == ["web"]
        assert (await w.call(w.intents.load)).services["web"].destinations == {"d1": at(1)}
        assert await w.call(w.local.owned, "service") == {str(WEB_KEY): "web"}
        await w.committer.submit(DeleteService("web"), "test")
        assert w.daemon.ipvs.services() == []

    whole.run(scenario)


def test_of_many_at_once_each_gets_its_own_answer(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        twice = AddDestination("web", at(1, "same"))
        commands = [AddService(web()), AddDestination("web", at(1)), twice, DeleteService("x")]
        answers = await asyncio.gather(*(w.committer.submit(c, "test") for c in commands), return_exceptions=True)
        assert [type(a).__name__ for a in answers] == ["Snapshot", "Snapshot", "Conflict", "NotFound"]
        assert w.daemon.weights() == {"10.0.0.11": 1}

    whole.run(scenario)


def test_commands_that_belong_together_are_one_commit_or_none(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        before = w.daemon.control.intent
        changes = (AddDestination("web", at(1)), AddService(web("dns", "udp/10.0.0.2:53")))
        w.daemon.ipvs.add_service("tcp/10.0.0.9:80")
        foreign = AddService(web("theirs", "tcp/10.0.0.9:80"))
        with pytest.raises(Conflict, match="not ours") as caught:
            await w.committer.submit(Together((*changes, foreign)), "test")
        assert caught.value.of == "services.theirs"
        assert (await w.call(w.intents.load), w.daemon.weights()) == (before, {})
        assert await w.call(w.local.owned, "service") == {str(WEB_KEY): "web"}
        await w.committer.submit(Together(changes), "test")
        assert w.daemon.control.intent.revision == before.revision + 1
        assert (w.daemon.weights(), len(w.daemon.ipvs.services())) == ({"10.0.0.11": 1}, 3)
        assert set((await w.call(w.intents.load)).services) == {"web", "dns"}

    whole.run(scenario)


def test_of_commands_together_an_address_is_asked_for_once_and_promises_end_with_a_refusal(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        asked: list[str] = []
        answers = w.daemon.host.answers

        async def answered(address: str) -> str:
            asked.append(address)
            return await answers(address)

        w.daemon.host.answers = answered  # type: ignore[method-assign]
        w.daemon.host.neighbours["10.0.0.9"] = "02:00:00:00:00:07"
        ranges = SetGlobals(ranges=("10.0.1.0/30",))
        any_vip = [AddService(web(f"any{n}", f"tcp/0.0.0.0:{n}")) for n in (1, 2)]
        taken = AddService(web("taken", "tcp/10.0.0.9:80"))
        with pytest.raises(Conflict, match="02:00:00:00:00:07") as caught:
            await w.committer.submit(Together((ranges, *any_vip, taken)), "test")
        assert (caught.value.of, w.daemon.control.intent.revision) == ("services.taken", 0)
        same = [AddService(web(f"s{port}", f"tcp/10.0.0.2:{port}")) for port in (1, 2, 3)]
        asked.clear()
        await w.committer.submit(Together((ranges, *any_vip, *same)), "test")
        services = w.daemon.control.intent.services
        allocated = {services[f"any{n}"].key.address for n in (1, 2)}
        assert allocated == {"10.0.1.1", "10.0.1.2"}, "nothing is kept of the first try"
        assert asked.count("10.0.0.2") == 1

    whole.run(scenario)


def test_what_is_foreign_at_this_moment_is_refused(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        w.daemon.ipvs.add_service(WEB_KEY)
        with pytest.raises(Conflict, match="not ours"):
            await w.committer.submit(AddService(web()), "test")
        assert (await w.call(w.intents.load)).services == {}

    whole.run(scenario)


def test_only_a_destination_that_is_there_can_be_deleted(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        with pytest.raises(NotFound, match="rs1"):
            await w.committer.submit(DeleteDestination("web", "rs1"), "test")
        w.daemon.control.enter(MembersSeen((member(1),)))
        await asyncio.sleep(0)
        await w.committer.submit(DeleteDestination("web", "rs1"), "test")
        assert w.daemon.control.intent.services["web"].excluded == {"rs1"}

    whole.run(scenario)


def test_a_store_that_cannot_be_written_refuses_the_change_and_nothing_is_applied(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        w.store_error = StoreError("disk full")
        with pytest.raises(Unavailable, match="disk full"):
            await w.committer.submit(AddService(web()), "test")
        assert w.daemon.ipvs.services() == []
        w.store_error = None
        await w.committer.submit(AddService(web()), "test")
        assert len(w.daemon.ipvs.services()) == 1

    whole.run(scenario)


def test_a_service_added_again_right_after_its_deletion_stays_ours(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        for _ in range(5):
            await w.committer.submit(AddService(web()), "test")
            await asyncio.gather(
                w.committer.submit(DeleteService("web"), "test"), w.committer.submit(AddService(web()), "test")
            )
            assert len(w.daemon.ipvs.services()) == 1
            await w.committer.submit(AddDestination("web", at(1)), "test")
            assert await w.call(w.local.owned, "service") == {str(WEB_KEY): "web"}
            await w.committer.submit(DeleteService("web"), "test")

    whole.run(scenario)


def test_threads_read_the_counters_through_the_bridge_and_the_old_ones_after_its_end(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        reading = await asyncio.to_thread(w.bridge.statistics)
        assert set(reading.entries) == {WEB_KEY}
        assert w.bridge.counts() is w.counts
        w.bridge.close()
        w.daemon.clock.now_s += 60
        assert await asyncio.to_thread(w.bridge.statistics) is reading

    whole.run(scenario)


def test_counters_that_cannot_be_had_in_time_are_given_as_they_are(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusisd.bridge.STATISTICS_LIMIT_S", 0.01)

    async def scenario(w: Whole) -> None:
        async def never() -> Reading:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        monkeypatch.setattr(w.statistics, "read", never)
        assert await asyncio.to_thread(w.bridge.statistics) is w.statistics.last

    whole.run(scenario)


def test_while_the_loop_is_late_for_one_reader_no_other_waits_for_it(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusisd.bridge.STATISTICS_LIMIT_S", 0.01)

    async def scenario(w: Whole) -> None:
        asked, late = list[None](), asyncio.get_running_loop().create_future()

        async def read() -> Reading:
            asked.append(None)
            return Reading(await asyncio.shield(late))

        monkeypatch.setattr(w.statistics, "read", read)
        for _ in range(3):
            assert await asyncio.to_thread(w.bridge.statistics) is w.statistics.last
        assert len(asked) == 1
        late.set_result(7.0)
        await asyncio.sleep(0)
        while (await asyncio.to_thread(w.bridge.statistics)).at_s != 7.0:
            pass  # the scenario's own limit ends this

    whole.run(scenario)


def test_threads_read_and_write_through_the_bridge_and_are_refused_after_its_end(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        def work() -> tuple[str, ...]:
            assert threading.current_thread() is not threading.main_thread()
            w.bridge.submit(AddService(web()), "test")
            return tuple(view.name for view in w.bridge.snapshot().services)

        assert await asyncio.to_thread(work) == ("web",)
        w.daemon.ipvs.add_service("tcp/10.9.9.9:80")
        w.daemon.clock.now_s += 1
        views = (await asyncio.to_thread(w.bridge.snapshot)).services
        assert [view.name for view in views] == ["web", ""]
        w.bridge.close()
        with pytest.raises(Unavailable, match="stopping"):
            await asyncio.to_thread(w.bridge.submit, DeleteService("web"), "test")
        assert [view.name for view in (await asyncio.to_thread(w.bridge.snapshot)).services] == ["web", ""]

    whole.run(scenario)


def test_a_service_released_and_added_again_in_one_commit_is_ours(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        await asyncio.gather(
            w.committer.submit(Release("web"), "test"), w.committer.submit(AddService(web()), "test")
        )
        assert w.daemon.control.owned == {WEB_KEY}
        assert await w.call(w.local.owned, "service") == {str(WEB_KEY): "web"}

    whole.run(scenario)


def test_each_that_asks_at_once_gets_an_address_of_its_own(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        await w.committer.submit(SetGlobals(ranges=("10.0.1.0/29",)), "test")
        w.daemon.host.neighbours["10.0.1.2"] = "02:00:00:00:00:01"
        asked = [web(f"s{n}", f"tcp/0.0.0.0:{80 + n % 2}") for n in range(4)]
        await asyncio.gather(*(w.committer.submit(AddService(service), "test") for service in asked))
        given = {service.key.address for name, service in w.daemon.control.intent.services.items() if name != "web"}
        assert given == {"10.0.1.1", "10.0.1.3", "10.0.1.4", "10.0.1.5"}
        again = await w.committer.submit(AddService(asked[0]), "test")
        assert len(again.services) == 5

    whole.run(scenario)


def test_a_range_that_is_used_up_is_a_conflict_and_what_leaves_is_given_again(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        w.daemon.host.addresses = frozenset({"10.0.1.1"})
        await w.committer.submit(AddService(web()), "test")
        await w.committer.submit(SetGlobals(ranges=("10.0.1.0/29",)), "test")
        asked = [web(f"s{n}", "tcp/0.0.0.0:80") for n in range(6)]
        for service in asked[:5]:
            await w.committer.submit(AddService(service), "test")
        given = [service.key.address for name, service in w.daemon.control.intent.services.items() if name != "web"]
        assert given == [f"10.0.1.{n}" for n in range(2, 7)], "neither the network's nor the broadcast nor the host's own"
        with pytest.raises(Conflict, match="no VIP is free"):
            await w.committer.submit(AddService(asked[5]), "test")
        await w.committer.submit(DeleteService("s2"), "test")
        await w.committer.submit(AddService(asked[5]), "test")
        assert w.daemon.control.intent.services["s5"].key.address == "10.0.1.4"

    whole.run(scenario)


def test_when_all_of_a_range_answers_on_the_wire_it_is_said_and_nothing_is_promised(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        await w.committer.submit(SetGlobals(ranges=("10.0.1.0/29",)), "test")
        w.daemon.host.neighbours.update({f"10.0.1.{n}": "02:00:00:00:00:01" for n in range(1, 7)})
        with pytest.raises(Conflict, match="no VIP is free"):
            await w.committer.submit(AddService(web("any", "tcp/0.0.0.0:80")), "test")
        w.daemon.host.neighbours.clear()
        await w.committer.submit(AddService(web("any", "tcp/0.0.0.0:80")), "test")
        assert w.daemon.control.intent.services["any"].key.address == "10.0.1.1"

    whole.run(scenario)


def test_now_cuts_what_serf_brought_even_while_it_drains(whole: Whole) -> None:
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        w.daemon.control.enter(MembersSeen((member(1),)))
        await asyncio.sleep(0)
        await w.committer.submit(DeleteDestination("web", "rs1", 60.0), "test")
        assert list(await w.call(w.local.owned, "drain"))
        await w.committer.submit(DeleteDestination("web", "rs1"), "test")
        assert await w.call(w.local.owned, "drain") == {}

    whole.run(scenario)
