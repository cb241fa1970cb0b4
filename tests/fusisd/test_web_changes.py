"""Whole tables as commands, without a daemon: whatever was there, a file makes it so; then there is nothing to do."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusisd import state
from fusisd.commands import EndDrain
from fusisd.errors import Conflict
from fusisd.model import Destination, Intent, Service
from fusisd.web.v1 import changes
from pyipvs import ForwardingMethod, ServiceKey

NAMES = ("a", "b")
PLACES = (("10.0.0.11", 80), ("10.0.0.12", 80))
KEYS = ("tcp/10.0.0.1:80", "tcp/10.0.0.2:80")
MANY = settings(max_examples=500)


@st.composite
def destinations(draw: st.DrawFn) -> dict[str, Destination]:
    pairs = zip(draw(st.permutations(NAMES)), draw(st.permutations(PLACES)), strict=True)
    rows = [Destination(name, *place, draw(st.integers(0, 1)), ForwardingMethod.NAT) for name, place in pairs]
    return {one.name: one for one in rows[: draw(st.integers(0, 2))]}


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    pairs = zip(NAMES, draw(st.sampled_from([KEYS, KEYS, KEYS, KEYS[::-1]])), strict=True)
    rows = [Service(name, ServiceKey.parse(key), destinations=draw(destinations())) for name, key in pairs]
    services = {one.name: one for one in rows if draw(st.integers(0, 3))}
    return {"managed_by": draw(st.sampled_from(["lb", "lb", "other"])), "services": services}


def applied(intent: Intent, file: dict[str, Any], prune: bool = False) -> Intent:
    """The intent after it; all of it is one commit."""
    for step in changes.tried(intent, changes.apply_of(file, intent, prune)):
        intent = state.apply(intent, step.command)
    return intent


def drained(intent: Intent) -> Intent:
    """The intent when every drain is over."""
    for name, service in intent.services.items():
        intent = state.apply(intent, EndDrain(name))
        for one in service.destinations:
            intent = state.apply(intent, EndDrain(name, one))
    return intent


def as_asked(file: dict[str, Any]) -> dict[str, Service]:
    by = file["managed_by"]
    services: dict[str, Service] = file["services"]
    rows = {n: {d: replace(one, managed_by=by) for d, one in s.destinations.items()} for n, s in services.items()}
    return {n: replace(s, managed_by=by, destinations=rows[n]) for n, s in services.items()}


@MANY
@given(st.lists(st.tuples(files(), st.booleans(), st.booleans()), max_size=4), files())
def test_a_file_with_prune_is_all_there_is_and_the_same_again_is_nothing(before: list[Any], file: dict[str, Any]) -> None:
    intent = Intent()
    for earlier, prune, over in before:
        with suppress(Conflict):  # another's service or destination has its key: nothing of it is done
            intent = applied(intent, earlier, prune)
        intent = drained(intent) if over else intent
    try:
        intent = applied(intent, file, prune=True)
    except Conflict as error:
        holders = {f"is service {name} already" for name in file["services"]}
        assert any(said in str(error) for said in holders), error
        assume(False)  # two services exchange their keys: that takes two files
    wanted = as_asked(file)
    shown = {name: one for name, one in intent.services.items() if one.drain_s is None}
    kept = {n: {d: one for d, one in s.destinations.items() if one.drain_s is None} for n, s in shown.items()}
    assert {n: replace(s, destinations=kept[n]) for n, s in shown.items()} == wanted
    again = changes.tried(intent, changes.apply_of(file, intent, True))
    assert {step.outcome for step in again} <= {"unchanged"}
    assert drained(intent).services == wanted


@MANY
@given(files(), files(), files())
def test_without_prune_what_others_made_stays(mine: dict[str, Any], theirs: dict[str, Any], file: dict[str, Any]) -> None:
    mine["managed_by"], theirs["managed_by"], file["managed_by"] = "lb", "theirs", "lb"
    try:
        there = applied(applied(Intent(), mine), theirs)
        after = drained(applied(there, file))
    except Conflict:
        assume(False)  # what is theirs has the key or the place that the file wants
    for name, service in there.services.items():
        if service.managed_by == "theirs" and name not in file["services"]:
            assert after.services[name] == service
    gone = [n for n, s in there.services.items() if s.managed_by == "lb" and s.drain_s is None and n not in file["services"]]
    assert not set(gone) & set(after.services)
    for name, service in file["services"].items():
        mine_now = {d for d, one in after.services[name].destinations.items() if one.managed_by == "lb"}
        assert mine_now == set(service.destinations)


@pytest.mark.parametrize("between", [{"web": {}}, {}], ids=["the destination drains", "the service drains"])
@pytest.mark.parametrize(("name", "place"), [("b", 11), ("a", 12)], ids=["another name", "another place"])
def test_what_drains_gives_way_to_what_has_its_name_or_its_place(between: dict[str, Any], name: str, place: int) -> None:
    def file(services: dict[str, dict[str, Destination]]) -> dict[str, Any]:
        key = ServiceKey.parse(KEYS[0])
        return {"managed_by": "lb", "services": {n: Service(n, key, destinations=rows) for n, rows in services.items()}}

    intent = applied(Intent(), file({"web": {"a": Destination("a", *PLACES[0])}}))
    intent = applied(intent, file(between))
    assert intent.services["web"].drain_s or intent.services["web"].destinations["a"].drain_s
    last = file({"web": {name: Destination(name, f"10.0.0.{place}", 80)}})
    assert applied(intent, last).services == as_asked(last)
