"""fusisctl's `events`, `why` and `withdraw`: the real application over a core in memory, on a Unix socket."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fusisd.commands import Command, Withdraw
from fusisd.ctl import events
from fusisd.journal import Journal
from fusisd.ports import Snapshot
from tests.fusisd.test_ctl_v1 import Ctl, LivelyCore, core, ctl, web  # noqa: F401
from tests.fusisd.test_why import with_service
from tests.fusisd.world import Clock, at
from tests.fusisd.world import web as a_service


@pytest.fixture
def journal(core: LivelyCore) -> Journal:  # noqa: F811
    journal = Journal(Clock(1e9))
    journal.ring = core.events
    journal.tell("op", "add it", service="web", destination="rs1", cause="rs1 up")
    journal.tell("accepted", "AddService", service="web", who="unix")
    journal.tell("node", "alive \x1b[1m", node="rs1")
    journal.tell("serf", "connected")
    return journal


LINES = [
    "2001-09-09T01:46:40.000Z op web/rs1: add it (rs1 up)",
    "2001-09-09T01:46:40.000Z accepted web: AddService by unix",
    "2001-09-09T01:46:40.000Z node rs1: alive \\x1b[1m",
    "2001-09-09T01:46:40.000Z serf -: connected",
]


def test_events_are_lines_or_json(journal: Journal, ctl: Ctl) -> None:  # noqa: F811
    assert ctl("events") == (0, "\n".join(LINES) + "\n", "")
    assert ctl("events", "--service", "web")[1].splitlines() == LINES[:2]
    assert ctl("events", "--limit", "1")[1].splitlines() == LINES[3:]
    assert ctl("events", "--after", "7f-2")[1].splitlines() == LINES[2:]
    page = json.loads(ctl("events", "--json")[1])
    assert ([event["id"] for event in page["events"]], page["next"]) == (["7f-1", "7f-2", "7f-3", "7f-4"], "7f-4")
    status, said, error = ctl("events", "--after", "old-1")
    assert (status, said.splitlines(), error.startswith("fusisctl: some events are lost")) == (0, LINES, True)
    assert ctl("events", "--after", "x") == (1, "", "fusisctl: after 'x' is no id of an event\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_following_goes_on_with_what_happens_until_interrupted(
    journal: Journal, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, as_json: bool  # noqa: F811
) -> None:
    happens = [lambda: journal.tell("op", "later", service="web"), lambda: None]

    def sleep(_: float) -> None:
        if not happens:
            raise KeyboardInterrupt
        happens.pop(0)()

    monkeypatch.setattr(events.time, "sleep", sleep)
    status, said, _ = ctl("events", "-f", "--limit", "3", *(["--json"] if as_json else []))
    lines = said.splitlines()
    texts = [json.loads(line)["text"] for line in lines] if as_json else [line.rpartition(": ")[2] for line in lines]
    assert (status, texts[-2:], len(texts)) == (130, ["connected", "later"], 4)


def test_why_tells_every_input_and_the_last_events(journal: Journal, web: Ctl) -> None:  # noqa: F811
    status, said, _ = web("why", "web/rs1")
    assert (status, said.splitlines()) == (
        0,
        [
            "web/rs1 10.0.0.11:80 by route",
            "  state    up",
            "  weight   none, wanted 1",
            "  decided  by operator: it has no check: it has the weight that was asked for",
            "  asked    by operator, weight 1, primary",
            "  kernel   not there",
            "last events:",
            *(f"  {line}" for line in LINES[:2]),
        ],
    )
    status, said, _ = web("why", "web")
    assert said.splitlines()[:4] == [
        "web tcp/10.0.0.1:80 not applied: not applied yet",
        "  vip      10.0.0.1 not on this host, wanted",
        "web/rs1 weight none, wanted 1, up",
        "  decided  by operator: it has no check: it has the weight that was asked for",
    ]
    assert json.loads(web("why", "web", "--json")[1])["destinations"][0]["destination"] == "rs1"
    assert web("why", "web/rs9") == (1, "", "fusisctl: service web has no destination 'rs9'\n")
    assert web("why", "mail") == (1, "", "fusisctl: there is no service 'mail'\n")


def test_why_of_what_fails_and_drains(core: LivelyCore, ctl: Ctl) -> None:  # noqa: F811
    def tell(service: str, destination: str | None) -> dict[str, Any]:
        told: Any = with_service(a_service(destinations={"d1": at(1)})).control.snapshot.why("web", "d1")
        check = {"kind": "tcp", "address": "fd00::1", "port": 80}
        health = {"check": check, "state": "down", "reason": "refused", "since_s": 12.0}
        serf = {"node": "rs1", "status": "failed", "since_s": 3.2}
        drain = {"reason": "an operator deleted it", "left_s": 9.0}
        return {**told, "health": health, "serf": serf, "drain": drain, "hold": "changes are paused"}

    core.published = replace(core.published, tell_why=tell)
    assert ctl("why", "web/d1")[1].splitlines()[4:] == [
        "  hold     changes are paused",
        "  asked    by operator, weight 1, primary",
        "  kernel   0 active, 0 inactive",
        "  health   tcp [fd00::1]:80 down for 12 s: refused",
        "  serf     node rs1 failed for 3 s",
        "  drain    an operator deleted it, cut in 9 s at the latest",
    ]


def test_withdraw_and_its_end(core: LivelyCore, ctl: Ctl) -> None:  # noqa: F811
    assert ctl("withdraw") == (0, "this balancer is withdrawn; fusisctl withdraw --undo ends it\n", "")
    assert ctl("withdraw", "--undo") == (0, "this balancer is back\n", "")
    assert [command for command, _ in core.seen] == [Withdraw(), Withdraw(withdrawn=False)]
    assert json.loads(ctl("withdraw", "--json")[1]) == {"withdrawn": True, "vips": [], "external": []}
    submit = core.submit

    def slow(command: Command, who: str) -> Snapshot:
        return replace(submit(command, who), tell_status=lambda: {"vips": ["10.0.0.1"]})

    core.submit = slow  # type: ignore[method-assign]
    status, said, _ = ctl("withdraw")
    assert (status, "still on the host: 10.0.0.1" in said) == (1, True)
