"""Every rule of the door that intent alone can decide."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusisd import state
from fusisd.commands import (
    AddDestination,
    AddService,
    CancelDrain,
    Command,
    DeleteDestination,
    DeleteService,
    UpdateDestination,
    UpdateService,
)
from fusisd.errors import Conflict, Invalid, NotFound, Stale
from fusisd.limits import cannot_forward
from fusisd.model import Intent
from tests.fusisd.world import NAT, TUNNEL, at, web


def after(*commands: Command) -> Intent:
    intent = Intent()
    for command in commands:
        intent = state.apply(intent, command)
    return intent


def test_what_is_added_is_there_and_what_is_deleted_is_gone() -> None:
    intent = after(AddService(web()), AddDestination("web", at(1)), AddDestination("web", at(2)))
    assert set(intent.services["web"].destinations) == {"d1", "d2"}
    intent = state.apply(intent, DeleteDestination("web", "d1"))
    assert set(intent.services["web"].destinations) == {"d2"}
    assert state.apply(intent, DeleteService("web")).services == {}


@pytest.mark.parametrize("again", [AddService(web()), AddDestination("web", at(1))])
def test_the_same_again_changes_nothing(again: Command) -> None:
    intent = after(AddService(web()), AddDestination("web", at(1)))
    assert state.apply(intent, again) is intent


@pytest.mark.parametrize(
    ("command", "error", "names"),
    [
        (AddService(web(scheduler="wrr")), Conflict, "web"),
        (AddService(web("other")), Conflict, "service web"),
        (AddService(web("x", "tcp/10.0.0.2:80", scheduler="fifo")), Invalid, "fifo"),
        (AddService(web("a/b", "tcp/10.0.0.2:80")), Invalid, "a/b"),
        (DeleteService("nosuch"), NotFound, "nosuch"),
        (AddDestination("nosuch", at(1)), NotFound, "nosuch"),
        (AddDestination("web", at(2, "d1")), Conflict, "d1"),
        (AddDestination("web", at(1, "other")), Conflict, "d1"),
        (AddDestination("web", at(3, weight=70000)), Invalid, "65535"),
        (AddDestination("web", at(3, port=81)), Invalid, "method route cannot change the port"),
    ],
)
def test_what_cannot_be_is_refused_and_names_the_culprit(command: Command, error: type[Exception], names: str) -> None:
    intent = after(AddService(web()), AddDestination("web", at(1)))
    with pytest.raises(error, match=names):
        state.apply(intent, command)


def test_only_nat_changes_ports_and_only_a_tunnel_joins_families() -> None:
    key = web().key
    assert not cannot_forward(key, at(1, port=8080, method=NAT))
    six = at(1)
    six = type(six)("six", "fd00::1", 80, method=NAT)
    assert "tunnel" in cannot_forward(key, six)
    assert not cannot_forward(key, type(six)("six", "fd00::1", 80, method=TUNNEL))


def test_a_name_that_no_operator_gave_is_kept_out_until_it_is_added() -> None:
    intent = after(AddService(web()), DeleteDestination("web", "rs1"))
    assert intent.services["web"].excluded == {"rs1"}
    intent = state.apply(intent, AddDestination("web", at(1, "rs1")))
    assert intent.services["web"].excluded == frozenset()


def test_only_rows_that_differ_are_stored() -> None:
    before = after(AddService(web()), AddService(web("b", "tcp/10.0.0.2:80")))
    intent = state.apply(before, AddDestination("web", at(1)))
    assert set(state.changed(before, intent, {"web": None, "b": None})) == {"web"}


@pytest.mark.parametrize(
    "command",
    [
        UpdateService(web(scheduler="wlc")),
        UpdateDestination("web", at(1, weight=7)),
        DeleteDestination("web", "d1"),
        DeleteDestination("web", "d1", 5.0),
        DeleteService("web"),
        DeleteService("web", 5.0),
        CancelDrain("web"),
        CancelDrain("web", "d1"),
    ],
    ids=lambda command: f"{type(command).__name__} {getattr(command, 'drain_s', '')}",
)
def test_a_change_that_is_made_from_an_older_revision_is_refused(command: Command) -> None:
    intent = after(AddService(web()), AddDestination("web", at(1)))
    revision = intent.services["web"].revision
    with pytest.raises(Stale, match="changed meanwhile"):
        state.apply(intent, replace(command, revision=revision + 1))  # type: ignore[call-arg]
    state.apply(intent, replace(command, revision=revision))  # type: ignore[call-arg]
