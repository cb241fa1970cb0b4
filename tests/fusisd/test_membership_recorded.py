"""What a real agent listed while servers came, went and vanished (tests/serf/record_lists.py), and what we made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusisd import membership
from fusisd.model import Node, NodeStatus
from fusisd.serf.values import Member

LISTS = Path(__file__).parents[1] / "serf" / "lists"


def replayed(case: str) -> list[dict[str, Node]]:
    """The nodes after each list of the record; before the first of them, none."""
    nodes: dict[str, Node] = {}
    found = []
    for row in json.loads((LISTS / f"{case}.json").read_text()):
        if "list" in row:
            members = [Member(name, address, 7946, status, tags) for name, address, status, tags in row["list"]]
            nodes = dict(membership.update(nodes, members, row["at_s"]))
            found.append(nodes)
    return found


def lives(case: str, name: str) -> list[str]:
    """A node's status, place by place, with a ! where the list left it out; what repeats is said once."""
    said = []
    for nodes in replayed(case):
        if (node := nodes.get(name)) is not None:
            word = f"{node.status.value}{'!' if node.missing else ''}"
            said += [word] if said[-1:] != [word] else []
    return said


@pytest.mark.parametrize(
    ("case", "name", "life"),
    [
        ("leaves_and_returns", "n2", ["alive", "left", "left!", "alive"]),
        ("dies_and_returns_elsewhere", "n2", ["alive", "failed", "alive"]),
        ("dies_and_is_reaped", "n2", ["alive", "failed", "failed!"]),
        ("balancer_s_agent_restarts", "n2", ["alive", "alive!", "alive"]),
        ("balancer_is_cut_off", "n2", ["alive", "failed", "alive"]),
        ("tags_change", "n2", ["alive"]),
        ("leaves_and_returns", "n3", ["alive"]),
        ("dies_and_returns_elsewhere", "n3", ["alive"]),
        ("dies_and_is_reaped", "n3", ["alive"]),
        ("tags_change", "n4", ["alive"]),
    ],
)
def test_a_node_s_life(case: str, name: str, life: list[str]) -> None:
    assert lives(case, name) == life


def test_an_event_s_status_is_old_where_the_list_s_is_not() -> None:
    """The join event of a server that had left shows "leaving": whoever believed it would drain a server that is there."""
    rows = json.loads((LISTS / "leaves_and_returns.json").read_text())
    assert [row["member-join"][0][2] for row in rows if "member-join" in row][-1] == "leaving"
    assert replayed("leaves_and_returns")[-1]["n2"].status is NodeStatus.ALIVE


def test_a_list_comes_before_its_event_and_an_event_is_missing() -> None:
    rows = json.loads((LISTS / "balancer_is_cut_off.json").read_text())
    first = {next(iter(set(row) - {"at_s"})): row["at_s"] for row in reversed(rows) if row != rows[0]}
    assert first["list"] < first["member-failed"]
    restarted = json.loads((LISTS / "balancer_s_agent_restarts.json").read_text())
    kinds = {kind for row in restarted for kind in row if kind.startswith("member-")}
    assert kinds == {"member-join"}, "nobody said that n2 and n3 were gone from the list, for they were not gone"


def test_who_is_back_at_another_address_offers_itself_there() -> None:
    before, died, back = replayed("dies_and_returns_elsewhere")
    assert (before["n2"].address, died["n2"].address, back["n2"].address) == ("10.0.0.2", "10.0.0.2", "10.0.0.9")
    assert back["n2"].offers.keys() == {"web"}


def test_a_collapsed_list_takes_nothing_from_anybody() -> None:
    known, collapsed, back = replayed("balancer_s_agent_restarts")[-3:]
    assert {name for name, node in collapsed.items() if node.missing} == {"n2", "n3"}
    assert {name: node.offers for name, node in collapsed.items()} == {name: node.offers for name, node in known.items()}
    assert {name: (node.status, node.since_s) for name, node in back.items()} == {
        name: (node.status, node.since_s) for name, node in known.items()
    }


def test_tags_drain_drop_and_offer_again() -> None:
    offered, drains, dropped, again = (nodes["n2"] for nodes in replayed("tags_change"))
    assert [sorted(node.withdrawn) for node in (offered, drains, dropped, again)] == [[], ["web"], ["web"], []]
    assert drains.withdrawn["web"] <= dropped.withdrawn["web"], "what it dropped drains on"
    assert again.offers == offered.offers
