"""Lists that are rendered once: never another list than was asked for, and nothing rendered twice that need not be."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from fusisd.ports import ServiceView
from fusisd.web.kept import KeptList, Views
from pyipvs import ServiceKey


def view(number: int, foreign: bool = False) -> ServiceView:
    key = ServiceKey.parse(f"tcp/10.0.0.{number}:80")
    return ServiceView(f"s{number}", key, "rr", 0, foreign, True, "", ())


class Counting:
    """A list of names, which counts what it renders."""

    def __init__(self) -> None:
        self.rendered: list[str] = []
        self.kept = KeptList(self._render, self._chosen, b"[", b"]")

    def _render(self, view: ServiceView) -> bytes:
        self.rendered.append(view.name)
        return view.name.encode()

    def _chosen(self, views: Views) -> list[ServiceView]:
        return [view for view in views if not view.foreign]


@given(st.lists(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=5, unique=True), max_size=8))
def test_whatever_is_published_the_list_is_of_it(lists: list[list[tuple[int, bool]]]) -> None:
    known = {(number, foreign): view(number, foreign) for number in range(1, 7) for foreign in (True, False)}
    counting = Counting()
    for names in lists:
        views = tuple(known[name] for name in names)
        wanted = b",".join(one.name.encode() for one in views if not one.foreign)
        assert counting.kept.whole(views) == b"[" + wanted + b"]"
        assert all(counting.kept.row(one) == one.name.encode() for one in views)


def test_only_what_changed_is_rendered_anew() -> None:
    counting, first, second, third = Counting(), view(1), view(2), view(3)
    published = (first, second)
    for _ in range(3):
        assert counting.kept.whole(published) == b"[s1,s2]"
    assert counting.rendered == ["s1", "s2"]
    assert counting.kept.whole((first, third)) == b"[s1,s3]"
    assert counting.kept.row(third) == b"s3"
    assert counting.rendered == ["s1", "s2", "s3"]
    assert counting.kept.whole(()) == b"[]"
    assert counting.kept.row(first) == b"s1"
    assert counting.rendered == ["s1", "s2", "s3", "s1"], "what was published no more is kept no more"


def test_those_who_ask_at_once_wait_for_one() -> None:
    counting, views = Counting(), tuple(view(number) for number in range(1, 200))
    start = threading.Barrier(8)

    def ask() -> bytes:
        start.wait(10)
        return counting.kept.whole(views)

    with ThreadPoolExecutor(8) as pool:
        bodies = {future.result(30) for future in [pool.submit(ask) for _ in range(8)]}
    assert len(bodies) == 1
    assert len(counting.rendered) == len(views)
