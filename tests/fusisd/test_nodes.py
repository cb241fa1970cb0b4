"""A node's life: the table's rules, and that any sequence of lists, restarts and jumps of the clock keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fusisd import membership, tags
from fusisd.membership import LOST_AFTER_S, WITHDRAWN_KEPT_S, Nodes
from fusisd.model import Node, NodeStatus
from fusisd.nodes import DRAINS, MEANING, TABLE, Sight, diagram, sight_of
from fusisd.serf.values import Member
from tests.fusisd.world import member

WORDS = ["alive", "leaving", "left", "failed", "hibernating"]
TAGS = [{"role": "agent", "s:web": "80/route/1"}, {"role": "agent", "s:web": "81/route/1", "s:dns": "53"}]
TAGS += [{"role": "agent"}, {"role": "balancer", "s:web": "80"}, {}]

ODD = "<nil>"  # as Go shows an address of no length
WHERE = ["", "10.9.0.1", ODD]  # "": its own


def seen(number: int, word: str, said: dict[str, str], address: str) -> Member:
    return replace(member(number, word, said), address=address or member(number).address)


lists = st.lists(
    st.builds(seen, st.integers(1, 3), st.sampled_from(WORDS), st.sampled_from(TAGS), st.sampled_from(WHERE)),
    max_size=3,
    unique_by=lambda one: one.name,
)
# None is our own restart. Jumps of the clock reach the end of what is remembered of a withdrawal, and of a node.
GAPS_S = [0.0, 0.5, 60.0, WITHDRAWN_KEPT_S, LOST_AFTER_S + 1]
stories = st.lists(st.tuples(st.none() | lists, st.sampled_from(GAPS_S)), max_size=12)
Story = list[tuple[list[Member] | None, float]]


def lived(story: Story) -> Iterator[tuple[Nodes, list[Member] | None, Nodes, float]]:
    """What we held before each list or restart (None), that, what we held after it, and when."""
    nodes, now_s = dict[str, Node](), 0.0
    for members, gap_s in story:
        now_s += gap_s
        before = nodes
        if members is None:
            nodes = membership.recalled(membership.memory(before), now_s)
        else:
            nodes = membership.update(before, members, now_s)
        yield before, members, nodes, now_s


def test_the_table_is_whole_and_a_word_counts_the_same_whatever_was_before() -> None:
    assert set(TABLE) == {(status, sight) for status in NodeStatus for sight in Sight}
    assert set(MEANING) == set(Sight)
    for (_, sight), status in TABLE.items():
        if sight not in (Sight.OTHER, Sight.ABSENT, Sight.GONE, Sight.LOST):
            assert status is NodeStatus(sight.value)
    assert {status for (_, sight), status in TABLE.items() if sight is Sight.LOST} == {NodeStatus.UNSEEN}


def test_absence_and_unknown_words_are_no_evidence() -> None:
    none = (Sight.OTHER, Sight.ABSENT, Sight.GONE)
    changes = {(before, sight): after for (before, sight), after in TABLE.items() if sight in none and before is not after}
    assert changes == {
        (NodeStatus.LEAVING, Sight.GONE): NodeStatus.UNSEEN,
        (NodeStatus.LEFT, Sight.GONE): NodeStatus.UNSEEN,
        (NodeStatus.UNSEEN, Sight.OTHER): NodeStatus.FAILED,
    }


def test_serf_s_words_are_read_and_ours_are_not_taken_from_it() -> None:
    assert [sight_of(word) for word in WORDS] == [Sight.ALIVE, Sight.LEAVING, Sight.LEFT, Sight.FAILED, Sight.OTHER]
    assert {sight_of(word) for word in ("remembered", "unseen", "absent", "another word", "")} == {Sight.OTHER}


def test_the_diagram_draws_every_change_of_the_table() -> None:
    drawn = {tuple(line.strip().partition(":")[0].split(" --> ")) for line in diagram().splitlines() if " --> " in line}
    outside = {NodeStatus.UNSEEN: "[*]"}
    changes = {(outside.get(a, a.value), outside.get(b, b.value)) for (a, _), b in TABLE.items() if a is not b}
    assert drawn == changes | {("[*]", "remembered")}
    assert "    left --> [*]: absent for long, absent and of no use\n" in diagram()


@given(stories)
def test_a_list_that_leaves_a_node_out_changes_nothing_of_it(story: Story) -> None:
    for before, members, after, now_s in lived(story):
        if members is None:
            continue
        for name in before.keys() - {one.name for one in members}:
            since_s = before[name].missing_s
            if before[name].status in DRAINS and now_s - before[name].since_s > WITHDRAWN_KEPT_S:
                assert name not in after
            elif since_s is not None and now_s - since_s > LOST_AFTER_S:
                assert name not in after
                kept = membership.update(before, members, now_s, serving=before.keys)
                assert kept[name] == before[name], "what serves is not lost"
            else:
                assert after[name].missing_s == (now_s if since_s is None else since_s)
                assert replace(after[name], missing_s=since_s) == before[name]


@given(stories)
def test_what_a_list_shows_is_what_we_hold(story: Story) -> None:
    for before, members, after, _ in lived(story):
        for one in members or ():
            if one.name not in before and one.tags.get("role") != "agent":
                assert one.name not in after
                continue
            node = after[one.name]
            assert not node.missing
            assert node.status.value == one.status or (one.status == "hibernating" and node.problems)
            if one.address == ODD:
                assert node.problems
                assert node.address == (before[one.name].address if one.name in before else "")
            else:
                assert node.address == one.address
            if not node.address:
                assert node.offers == {}
                continue
            assert set(tags.decode_all(one.tags)[0]) == set(node.offers) - set(node.withdrawn)


@given(stories)
def test_a_status_is_as_old_as_its_first_sight_and_a_drain_of_a_node_survives_our_restart(story: Story) -> None:
    for before, members, after, now_s in lived(story):
        for name, node in after.items():
            assert node.since_s <= now_s
            assert node.status is not NodeStatus.UNSEEN
            known = before.get(name)
            if members is None:
                assert node.status is NodeStatus.REMEMBERED
            elif known is not None and known.address != node.address:
                assert node.since_s == now_s, "a node that moved is a new one"
            elif known is not None and (known.status is node.status or {known.status, node.status} <= DRAINS):
                assert node.since_s == known.since_s
            elif known is None or known.status is not NodeStatus.REMEMBERED:
                assert node.since_s == now_s
        if members is None:
            left = {node.name: node.since_s for node in before.values() if node.status in DRAINS}
            for name in left.keys() & after.keys():
                assert set(after[name].withdrawn.values()) == {left[name]}


@given(stories)
def test_what_was_dropped_drains_from_when_it_was_dropped_and_is_forgotten_in_the_end(story: Story) -> None:
    for before, members, after, now_s in lived(story):
        for name, node in after.items():
            assert node.withdrawn.keys() <= node.offers.keys()
            assert all(at_s <= now_s for at_s in node.withdrawn.values())
            if members is not None and not node.missing:
                assert all(now_s - at_s < WITHDRAWN_KEPT_S for at_s in node.withdrawn.values())
            for service in node.withdrawn.keys() & (before[name].withdrawn.keys() if name in before else ()):
                assert node.withdrawn[service] == before[name].withdrawn[service] or members is None


@given(stories)
def test_the_same_list_again_changes_nothing_and_so_does_a_second_restart(story: Story) -> None:
    for _, members, after, now_s in lived(story):
        if members is not None:
            again = membership.update(after, members, now_s)
            assert again == after
        else:
            assert membership.recalled(membership.memory(after), now_s) == after


@given(stories)
def test_our_restart_loses_nothing_that_serves(story: Story) -> None:
    for before, members, after, _ in lived(story):
        if members is None:
            places = Counter((s, node.address, one.port) for node in before.values() for s, one in node.offers.items())
            for name, node in before.items():
                serves = {} if node.status in DRAINS else dict(node.offers)
                for service in serves.keys() - node.withdrawn.keys():
                    if places[service, node.address, serves[service].port] > 1:
                        continue  # of those at one place one serves
                    assert after[name].offers[service] == node.offers[service]
                    assert service not in after[name].withdrawn
