"""The owner of the state, turn by turn, on a fake kernel: faults, drift, restarts."""

from __future__ import annotations

import asyncio
import errno

from fusisd.applier import RETRY_S
from fusisd.inbox import Beginning, Committed, MembersSeen, ProbeChanged, Refresh
from fusisd.model import CheckKind, CheckSpec, Destination, Intent
from fusisd.ports import Snapshot
from tests.fusisd.world import ALONE, UP, WEB_KEY, Daemon, alone, at, down, member, web

OURS = frozenset({WEB_KEY})
INTENT = Intent({"web": web(check=ALONE)}, 1)


def serving(*numbers: int) -> Daemon:
    """A daemon whose service has these servers, found by Serf and passing."""
    daemon = Daemon(Beginning(INTENT, OURS))
    daemon.turn(MembersSeen(tuple(member(n) for n in numbers)), *(ProbeChanged(alone(n), UP) for n in numbers))
    assert daemon.weights() == {f"10.0.0.{10 + n}": 1 for n in numbers}
    return daemon


def test_a_command_a_node_and_a_death_reach_the_kernel() -> None:
    daemon = serving(1, 2)
    assert daemon.checks.wanted == {alone(1), alone(2)}
    daemon.turn(ProbeChanged(alone(1), down(daemon.clock())))
    assert daemon.weights() == {"10.0.0.11": 0, "10.0.0.12": 1}
    daemon.turn(MembersSeen((member(1, "failed"), member(2))))
    assert daemon.weights() == {"10.0.0.12": 1}
    daemon.turn(MembersSeen((member(1), member(2))), ProbeChanged(alone(1), UP))
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_a_server_that_comes_back_waits_for_its_masquerade_rule_anew() -> None:
    """The host may just be taking the rule away: a connection at that moment would find no way back."""
    back = member(1, tags={"role": "agent", "s:web": "80/nat/1"})
    daemon = Daemon(Beginning(Intent({"web": web(check=CheckSpec(CheckKind.NONE, path_check=False))}, 1), OURS))
    daemon.turn(MembersSeen((back, member(2))))
    assert {row.address for row in daemon.host.wanted.masquerades} == {"10.0.0.11"}
    for members in ((member(1, "failed"), member(2)), (back, member(2))):
        daemon.control.enter(MembersSeen(members))
        daemon.control.turn()  # and the host has not answered yet
        assert daemon.weights() == {"10.0.0.12": 1}
    daemon.turn()
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_values_that_change_nothing_touch_nothing() -> None:
    daemon = serving(1, 2)
    before = daemon.control.snapshot.status["ops"]
    for _ in range(5):
        daemon.turn(MembersSeen((member(2), member(1))))
    assert daemon.control.snapshot.status["ops"] == before


def test_our_own_agent_s_restart_changes_nothing() -> None:
    daemon = serving(1, 2)
    daemon.turn(MembersSeen(()))
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_everybody_failed_at_once_but_answering_changes_nothing() -> None:
    daemon = serving(1, 2)
    daemon.turn(MembersSeen((member(1, "failed"), member(2, "failed"))))
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_what_is_done_by_hand_to_ours_is_repaired_and_to_others_is_left() -> None:
    daemon = serving(1, 2)
    daemon.ipvs.add_service("tcp/10.9.9.9:80")
    daemon.ipvs.delete_destination(WEB_KEY, "10.0.0.11:80")
    daemon.ipvs.add_destination(WEB_KEY, "10.0.0.99:80", method="route")
    daemon.clock.now_s += 2
    daemon.turn()
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
    assert {str(row.service.key) for row in daemon.ipvs.services()} == {str(WEB_KEY), "tcp/10.9.9.9:80"}


def test_a_restart_moves_nothing_before_serf_and_checks_have_spoken() -> None:
    daemon = serving(1, 2)
    (*_, memory) = daemon.memories
    again = Daemon(Beginning(INTENT, OURS, tuple(memory)), daemon.fake)
    assert again.control.snapshot.status["ops"] == 0
    again.turn(MembersSeen((member(1),)))
    assert again.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
    assert again.control.snapshot.status["ops"] == 0


def test_a_restart_without_any_memory_keeps_what_the_kernel_has_until_serf_speaks() -> None:
    daemon = serving(1, 2)
    again = Daemon(Beginning(INTENT, OURS), daemon.fake)
    assert again.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}
    again.turn(MembersSeen((member(1), member(2))))
    assert again.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_a_refused_operation_is_a_condition_and_tried_again() -> None:
    daemon = Daemon(Beginning(Intent(), OURS, serf_expected=False))
    daemon.turn()
    daemon.fake.fail_next(errno.ENOMEM)
    daemon.control.enter(Committed(INTENT, OURS))
    daemon.control.turn()
    (view,) = daemon.control.snapshot.services
    assert (view.applied, "ENOMEM" in view.reason) == (False, True)
    daemon.clock.now_s += RETRY_S[0] + 0.01
    daemon.turn()
    (view,) = daemon.control.snapshot.services
    assert (view.applied, view.reason) == (True, "")


def test_a_service_that_somebody_made_in_the_meantime_is_theirs() -> None:
    daemon = Daemon(Beginning(serf_expected=False))
    daemon.turn()
    daemon.ipvs.add_service(WEB_KEY, scheduler="sh")
    daemon.turn(Committed(INTENT, OURS))
    assert daemon.ipvs.service(WEB_KEY).service.scheduler == "sh"
    assert (daemon.control.owned, daemon.released) == (frozenset(), [WEB_KEY])
    (view,) = daemon.control.snapshot.services
    assert (view.name, view.applied, "not ours" in view.reason) == ("web", False, True)


def test_a_kernel_that_cannot_be_read_is_a_condition_and_what_is_known_stands() -> None:
    daemon = serving(1, 2)
    daemon.fake.fail_next(errno.ENOBUFS)
    daemon.clock.now_s += 2
    daemon.control.turn()
    problems = daemon.control.snapshot.status["problems"]
    assert isinstance(problems, list)
    assert "ENOBUFS" in " ".join(problems)
    daemon.clock.now_s += 2
    daemon.turn()
    assert "ENOBUFS" not in str(daemon.control.snapshot.status["problems"])
    assert daemon.weights() == {"10.0.0.11": 1, "10.0.0.12": 1}


def test_a_deleted_service_leaves_the_kernel_and_is_not_ours_any_more() -> None:
    daemon = serving(1)
    daemon.turn(Committed(Intent({}, 2)))
    assert daemon.ipvs.services() == []
    assert (daemon.control.owned, daemon.released) == (frozenset(), [WEB_KEY])
    assert daemon.host.wanted.vips == frozenset()


def refreshed(daemon: Daemon) -> Snapshot:
    """What a reader gets who finds the published snapshot too old."""

    async def ask() -> Snapshot:
        waiter: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        daemon.control.enter(Refresh(waiter))
        daemon.control.turn()
        return await waiter

    return asyncio.run(ask())


def test_while_nothing_changes_the_views_are_the_very_same_so_that_readers_keep_what_they_made_of_them() -> None:
    daemon = serving(1, 2)
    before = refreshed(daemon).services
    daemon.clock.now_s += 5  # the kernel is looked at
    assert refreshed(daemon).services is before
    daemon.ipvs.add_service("tcp/10.0.0.9:80")
    after = refreshed(daemon).services
    assert (len(after), after[0] is before[0]) == (2, True)


def test_a_foreign_service_is_shown_without_a_name() -> None:
    daemon = Daemon()
    daemon.ipvs.add_service("tcp/10.0.0.1:80", scheduler="rr")
    (view,) = refreshed(daemon).services
    assert (view.name, view.foreign, str(view.key), view.scheduler) == ("", True, "tcp/10.0.0.1:80", "rr")


def test_an_answer_waits_for_the_host_but_not_for_ever() -> None:
    async def scenario() -> None:
        daemon = Daemon(Beginning(Intent(), serf_expected=False))
        answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
        daemon.control.enter(Committed(INTENT, OURS, (answers[0],)))
        daemon.control.turn()
        assert not answers[0].done(), "the VIP is not on the host yet"
        daemon.control.enter(daemon.host.seen())
        daemon.control.turn()
        assert answers[0].done()
        daemon.control.enter(Committed(Intent({"web": web(destinations={"d1": at(1)})}, 2), OURS, (answers[1],)))
        daemon.control.turn()
        assert answers[1].done(), "the host has nothing to do for a destination by route"

    asyncio.run(scenario())


def test_operations_beyond_a_turn_s_budget_go_on_in_the_next() -> None:
    daemon = Daemon(Beginning(Intent(), serf_expected=False))
    daemon.clock.step_s = 0.06  # each look at the clock takes longer than a turn may
    many = {f"d{n}": Destination(f"d{n}", f"10.1.{n // 250}.{n % 250 + 1}", 80) for n in range(1200)}
    daemon.control.enter(Committed(Intent({"web": web(destinations=many)}, 1), OURS))
    daemon.control.turn()
    first = len(daemon.weights())
    assert 0 < first < 1200
    for _ in range(20):
        daemon.control.turn()
    assert len(daemon.weights()) == 1200
