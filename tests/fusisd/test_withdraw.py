"""Withdraw: the VIPs leave the host and nothing else changes; noted, so that a restart does not end it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fusisd import target
from fusisd.commands import AddDestination, AddService, DeleteService, Pause, Withdraw
from fusisd.inbox import Beginning, Committed
from fusisd.model import Intent
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from tests.fusisd.test_committer import Whole, whole  # noqa: F401
from tests.fusisd.web_helpers import TOKEN, MemoryCore, call
from tests.fusisd.world import NAT, VIP, WEB_KEY, Daemon, at, web

INTENT = Intent({"web": web(destinations={"d1": at(1, method=NAT)})}, 1)
OURS = frozenset({WEB_KEY})


def test_the_vips_leave_and_the_table_and_the_rules_stay() -> None:
    daemon = Daemon(Beginning(INTENT, OURS, serf_expected=False))
    daemon.turn()
    before, ops = daemon.host.wanted, daemon.control.snapshot.status["ops"]
    assert (before.vips, len(before.masquerades)) == (frozenset({VIP}), 1)
    daemon.turn(Committed(INTENT, withdrawn=True))
    assert daemon.host.wanted == replace(before, withdrawn=True)
    assert (daemon.weights(), daemon.control.snapshot.status["ops"]) == ({"10.0.0.11": 1}, ops)
    assert daemon.control.target.host == target.build(daemon.control._world, daemon.clock()).host
    status = daemon.control.snapshot.status
    assert (status["withdrawn"], status["vips"]) == (True, [])
    assert any("withdraw --undo" in problem for problem in status["problems"])  # type: ignore[attr-defined]
    told: Any = daemon.control.snapshot.why("web")
    assert (told["vip"]["withdrawn"], told["vip"]["wanted"], told["applied"]) == (True, False, True)
    events = daemon.control.journal.ring.page(None, 99).events
    assert [event.cause for event in events if event.kind == "vip"][-1] == "this balancer is withdrawn"
    daemon.turn(Committed(INTENT, withdrawn=False))
    assert (daemon.host.wanted, daemon.control.snapshot.status["problems"]) == (before, [])
    assert daemon.control.target.host == target.build(daemon.control._world, daemon.clock()).host


def test_changes_go_on_meanwhile_and_a_service_that_goes_does_not_wait_for_its_vip() -> None:
    daemon = Daemon(Beginning(INTENT, OURS, serf_expected=False))
    daemon.turn(Committed(INTENT, withdrawn=True))
    daemon.turn(Committed(Intent({"web": web(destinations={"d1": at(1, weight=7)})}, 2)))
    assert daemon.weights() == {"10.0.0.11": 7}
    assert daemon.host.wanted.standing == frozenset(), "nor does another command end it"
    daemon.turn(Committed(Intent({}, 3)))
    assert daemon.ipvs.services() == []


def test_a_restart_does_not_end_it(whole: Whole) -> None:  # noqa: F811
    async def scenario(w: Whole) -> None:
        await w.committer.submit(AddService(web()), "test")
        await w.committer.submit(AddDestination("web", at(1)), "test")
        revision = w.daemon.control.intent.revision
        snapshot = await w.committer.submit(Withdraw(), "unix")
        assert (snapshot.status["vips"], snapshot.status["withdrawn"]) == ([], True)
        assert w.daemon.control.intent.revision == revision, "of this machine alone: the intent is as it was"
        assert await w.call(w.local.owned, "withdraw") == {"withdrawn": "true"}
        await w.committer.submit(Pause(0), "unix")
        await w.committer.submit(DeleteService("web"), "unix")
        assert w.daemon.control.snapshot.status["withdrawn"] is True
        snapshot = await w.committer.submit(Withdraw(withdrawn=False), "unix")
        assert await w.call(w.local.owned, "withdraw") == {"withdrawn": "false"}
        assert snapshot.status["withdrawn"] is False

    whole.run(scenario)
    again = Daemon(Beginning(INTENT, OURS, serf_expected=False, withdrawn=True))
    again.turn()
    assert (again.host.wanted.standing, again.control.snapshot.status["withdrawn"]) == (frozenset(), True)
    assert again.weights() == {"10.0.0.11": 1}


def test_the_routes_are_commands() -> None:
    core = MemoryCore()
    app = make_app(core, WritePolicy.for_token(TOKEN))
    assert call(app, "POST", "/v1/withdraw").json == {"withdrawn": True, "vips": [], "external": []}
    assert call(app, "DELETE", "/v1/withdraw").json == {"withdrawn": False, "vips": [], "external": []}
    assert [command for command, _ in core.seen] == [Withdraw(), Withdraw(withdrawn=False)]
    assert call(app, "POST", "/v1/withdraw", peer="127.0.0.1").status == 401
    assert call(app, "POST", "/v1/withdraw", QUERY_STRING="seconds=3").status == 422


@pytest.mark.parametrize("withdrawn", [True, False])
def test_the_same_again_changes_nothing(withdrawn: bool) -> None:
    daemon = Daemon(Beginning(INTENT, OURS, serf_expected=False, withdrawn=withdrawn))
    daemon.turn()
    wanted = daemon.host.wanted
    daemon.turn(Committed(INTENT, withdrawn=withdrawn))
    assert daemon.host.wanted is wanted
