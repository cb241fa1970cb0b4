"""Why: for every way in which a weight comes about, the input that decided it and the rule; and how a service stands."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from fusisd.drains import Drain
from fusisd.inbox import Beginning, Committed, MembersSeen, ProbeChanged
from fusisd.journal import Journal
from fusisd.judge import Candidate, Verdict
from fusisd.model import CheckKind, CheckSpec, HostSeen, Intent, Service, Tier
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.why import decided as decide
from pyipvs import ServiceKey
from tests.fusisd.web_helpers import TOKEN, MemoryCore, call
from tests.fusisd.world import NAT, UP, VIP, WEB_KEY, Clock, Daemon, at, check, down, member, web

OURS = frozenset({WEB_KEY})
CHECKED = CheckSpec()
UDP = ServiceKey.parse(f"udp/{VIP}:80")


def with_service(service: Service, serf: bool = False, owned: bool = True, **more: Any) -> Daemon:
    keys = frozenset({service.key}) if owned else frozenset()
    return Daemon(Beginning(Intent({service.name: service}, 1), keys, serf_expected=serf, **more))


def why(daemon: Daemon, destination: str = "d1") -> Any:
    told = daemon.control.snapshot.why("web", destination)
    assert told is not None
    return told


def decided(daemon: Daemon, destination: str = "d1") -> tuple[Any, ...]:
    """By what, the weight wanted, the state, the beginning of the rule."""
    told = why(daemon, destination)
    rule = told["decided"]["rule"].partition(":")[0]
    return told["decided"]["input"], told["wanted"], told["state"], rule


def test_an_operator_s_word_alone() -> None:
    daemon = with_service(web(destinations={"d1": at(1, weight=5)}))
    assert decided(daemon) == ("operator", 5, "up", "it has no check")
    assert why(daemon) == {
        "service": "web",
        "destination": "d1",
        "state": "up",
        "reason": "",
        "weight": 5,
        "wanted": 5,
        "applied": True,
        "decided": {"input": "operator", "rule": "it has no check: it has the weight that was asked for"},
        "desired": {
            "address": "10.0.0.11", "port": 80, "method": "route", "weight": 5, "tier": "primary", "asked_by": "operator",
        },
        "kernel": {"active": 0, "inactive": 0, "weight": 5},
        "health": None,
        "path": None,
        "serf": None,
        "drain": None,
        "hold": "",
    }  # fmt: skip


def test_a_check_of_its_conclusion_or_none() -> None:
    daemon = with_service(web(check=CHECKED, destinations={"d1": at(1, weight=5), "d2": at(2)}))
    assert decided(daemon) == ("kernel", None, "checking", "its check has come to no conclusion yet")
    assert why(daemon)["health"] == {
        "check": {"kind": "tcp", "address": "10.0.0.11", "port": 80}, "state": "unknown", "reason": "", "since_s": None,
    }  # fmt: skip
    daemon.turn(ProbeChanged(check(1), UP), ProbeChanged(check(2), UP))
    assert decided(daemon) == ("check", 5, "up", "its check passes")
    daemon.turn(ProbeChanged(check(1), down(daemon.clock())))
    assert decided(daemon) == ("check", 0, "down", "its check fails")
    daemon.clock.now_s += 10
    daemon.turn()
    assert (why(daemon)["health"]["since_s"], why(daemon)["health"]["reason"]) == (10.0, "connection refused")
    daemon.clock.now_s += 30
    daemon.turn()
    assert decided(daemon) == ("check", None, "down", "its check fails, for 30 s or since before it was in the kernel")
    assert (why(daemon)["kernel"], why(daemon)["weight"], why(daemon)["applied"]) == (None, None, True)


def test_udp_has_no_thirty_seconds() -> None:
    service = Service("web", UDP, check=CHECKED, destinations={"d1": at(1), "d2": at(2)})
    daemon = with_service(service)
    daemon.turn(ProbeChanged(check(1), UP), ProbeChanged(check(2), UP))
    daemon.turn(ProbeChanged(check(1), down(daemon.clock())))
    told = why(daemon)["decided"]
    assert told == {"input": "check", "rule": "its check fails: by UDP it is out of the kernel at once"}


def test_serf_with_a_check_and_without_one() -> None:
    daemon = Daemon(Beginning(Intent({"web": web()}, 1), OURS))
    daemon.turn(MembersSeen((member(1), member(2))), ProbeChanged(check(1), UP), ProbeChanged(check(2), UP))
    daemon.clock.now_s += 5
    daemon.turn(MembersSeen((member(1, "failed"), member(2))))
    by, weight, _, rule = decided(daemon, "rs1")
    assert (by, weight, rule) == ("check", 1, "its check passes")
    assert "silence is none" in why(daemon, "rs1")["decided"]["rule"]
    daemon.clock.now_s += 3
    daemon.turn(ProbeChanged(check(1), down(daemon.clock())))
    assert decided(daemon, "rs1")[:3] == ("check and serf", None, "down")
    assert why(daemon, "rs1")["serf"] == {
        "node": "rs1", "address": "10.0.0.11", "status": "failed", "since_s": 3.0, "missing": False, "problems": [],
    }  # fmt: skip
    unchecked = with_service(web(check=CheckSpec(CheckKind.NONE)), serf=True)
    unchecked.turn(MembersSeen((member(1), member(2))))
    assert decided(unchecked, "rs1")[:3] == ("serf", 1, "up")
    unchecked.turn(MembersSeen((member(1, "failed"), member(2))))
    assert decided(unchecked, "rs1")[:3] == ("serf", None, "failed")


def test_what_serf_remembered_waits_for_its_word() -> None:
    daemon = with_service(web(check=CheckSpec(CheckKind.NONE)), serf=True)
    daemon.turn(MembersSeen((member(1),)))
    again = Daemon(Beginning(daemon.control.intent, OURS, tuple(daemon.memories[-1])), daemon.fake)
    assert decided(again, "rs1") == ("kernel", 1, "checking", "Serf has not spoken yet")


def test_tiers_and_the_last_good_set() -> None:
    backup = at(2, tier=Tier.BACKUP)
    daemon = with_service(web(check=CHECKED, destinations={"d1": at(1), "d2": backup}))
    daemon.turn(ProbeChanged(check(1), UP), ProbeChanged(check(2), UP))
    assert decided(daemon, "d2")[:3] == ("tier", 0, "standby")
    daemon.turn(ProbeChanged(check(1), down(daemon.clock())))
    assert decided(daemon, "d2")[:3] == ("check", 1, "up")
    assert "no primary one serves" in why(daemon, "d2")["decided"]["rule"]
    daemon.turn(ProbeChanged(check(2), down(daemon.clock())))
    assert decided(daemon, "d2")[:3] == ("last good", 1, "down")
    assert daemon.control.snapshot.why("web")["warning"] == "every check fails: the last good destinations are kept"  # type: ignore[index]


def test_a_drain_that_runs_and_one_that_is_over() -> None:
    daemon = with_service(
        web(destinations={"d1": at(1), "d2": at(2, drain_s=60.0), "d3": at(3, drain_s=60.0)}),
        drains={("web", "d2"): Drain(95.0, 60.0)},
    )
    assert decided(daemon, "d3")[:3] == ("drain", None, "drained")
    daemon = with_service(web(destinations={"d1": at(1), "d2": at(2)}))
    service = web(destinations={"d1": at(1), "d2": at(2, drain_s=60.0)})
    drains = {("web", "d2"): Drain(daemon.clock(), 60.0)}
    daemon.turn(Committed(Intent({"web": service}, 2), drains=drains))
    assert decided(daemon, "d2")[:3] == ("drain", 0, "draining")
    assert why(daemon, "d2")["drain"] == {"reason": "an operator deleted it", "left_s": 60.0}


def test_a_refusal_of_the_kernel_and_a_pause_hold_it_up() -> None:
    daemon = with_service(web(check=CHECKED, destinations={"d1": at(1), "d2": at(2)}))
    daemon.turn(ProbeChanged(check(2), UP))
    daemon.fake.fail_next(errno.ENOMEM)
    daemon.control.enter(ProbeChanged(check(1), UP))
    daemon.control.turn()
    assert (why(daemon)["applied"], why(daemon)["weight"], why(daemon)["wanted"]) == (False, None, 1)
    assert "memory" in why(daemon)["hold"]
    assert "memory" in daemon.control.snapshot.why("web")["refusal"]  # type: ignore[index]
    daemon.clock.now_s += 1
    daemon.turn()
    assert (why(daemon)["applied"], why(daemon)["hold"]) == (True, "")
    daemon.turn(Committed(daemon.control.intent, paused_until_s=1e9), ProbeChanged(check(1), down(daemon.clock())))
    assert (why(daemon)["applied"], why(daemon)["hold"]) == (False, "changes are paused")


def test_a_new_destination_by_nat_waits_for_the_host() -> None:
    daemon = with_service(web(destinations={"d1": at(1, method=NAT)}))
    assert decided(daemon)[:3] == ("host", None, "preparing")
    daemon.turn()
    assert decided(daemon)[:3] == ("operator", 1, "up")


def test_what_cannot_be_balanced() -> None:
    daemon = Daemon(Beginning(Intent({"web": web()}, 1), OURS))
    daemon.turn(MembersSeen((member(1, tags={"role": "agent", "s:web": "81/route/1"}),)))
    assert decided(daemon, "rs1")[:3] == ("configuration", None, "refused")


def test_a_service_says_how_it_stands_with_vip_and_key() -> None:
    daemon = with_service(web(destinations={"d1": at(1)}))
    told: Any = daemon.control.snapshot.why("web")
    vip = {"address": VIP, "managed": True, "announce": "always", "withdrawn": False, "wanted": True, "failure": ""}
    assert told["vip"] == {**vip, "on_host": ""}
    daemon.turn()
    told = daemon.control.snapshot.why("web")
    assert told["vip"] == {**vip, "on_host": "ours"}
    assert (told["applied"], told["conflict"], told["kernel"], told["refusal"]) == (True, False, {"scheduler": "rr"}, "")
    assert [(row["destination"], row["decided"]["input"]) for row in told["destinations"]] == [("d1", "operator")]
    daemon.control.enter(HostSeen(failures={f"vip {VIP}": "eth0 is down"}))
    daemon.control.turn()
    told = daemon.control.snapshot.why("web")
    assert (told["reason"], told["vip"]["failure"]) == ("eth0 is down", "eth0 is down")
    foreign = with_service(web(destinations={"d1": at(1)}), owned=False)
    told = foreign.control.snapshot.why("web")
    assert (told["conflict"], told["applied"], told["destinations"], "not ours" in told["reason"]) == (True, False, [], True)
    mark: Any = with_service(web(key="fwmark/7")).control.snapshot.why("web")
    assert mark["vip"] is None


def test_what_is_not_there_has_no_why() -> None:
    daemon = with_service(web(destinations={"d1": at(1)}))
    assert daemon.control.snapshot.why("mail") is None
    assert daemon.control.snapshot.why("web", "d9") is None
    assert daemon.control.snapshot.why("mail", "d1") is None


def test_a_server_s_own_word_that_it_does_not_answer() -> None:
    candidate = Candidate(at(1), down_s=5.0)
    by, rule = decide(Verdict(candidate, 0, "down"), None)
    assert (by, rule.endswith("weight 0 for 30 s, then out of the kernel")) == ("serf", True)
    assert decide(Verdict(candidate, None, "down"), None)[1].endswith("does not answer: out of the kernel")


# The routes.


@pytest.fixture
def app() -> Any:
    core = MemoryCore()
    app = make_app(core, WritePolicy.for_token(TOKEN))
    destinations = {"d1": {"address": "10.0.0.11", "port": 80}}
    service = {"name": "web", "address": VIP, "port": 80, "protocol": "tcp", "destinations": destinations}
    assert call(app, "POST", "/v1/services", service).status == 201
    journal = Journal(Clock())
    journal.ring = core.events
    journal.tell("op", "one", service="web", destination="d1")
    journal.tell("op", "two", service="web", destination="d2")
    journal.tell("accepted", "three", service="web", who="unix")
    journal.tell("op", "four", service="mail", destination="d1")
    return app


def test_the_routes_add_the_last_events(app: Any) -> None:
    told = call(app, "GET", "/v1/services/web/destinations/d1/why").json
    assert [event["text"] for event in told["transitions"]] == ["one", "three"]
    assert told["decided"]["input"] == "operator"
    told = call(app, "GET", "/v1/services/web/why").json
    assert [event["text"] for event in told["transitions"]] == ["one", "two", "three"]
    assert call(app, "GET", "/v1/services/mail/why").status == 404
    assert call(app, "GET", "/v1/services/web/destinations/d9/why").json["detail"] == "service web has no destination 'd9'"
    assert call(app, "GET", "/v1/services/mail/destinations/d9/why").json["detail"] == "there is no service 'mail'"
