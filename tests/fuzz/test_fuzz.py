"""The targets of the fuzzer in the ordinary suite: their corpus, and mutations of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = {name: [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))] for name in TARGETS}
FILES = [path.relative_to(CORPUS) for path in sorted(CORPUS.glob("*/*"))]
WORDS = [bytes.fromhex(word) for word in ("00000000", "ffffffff", "00000080", "04000100", "05000100", "08000100")]


def mutated(example: bytes) -> st.SearchStrategy[bytes]:
    """The example with a few pieces taken out, put in, doubled or changed; mostly along the four bytes of netlink."""
    place = st.integers(0, len(example)) | st.integers(0, len(example) // 4).map(lambda word: word * 4)
    length = st.sampled_from([0, 1, 2, 4, 8, 16])
    copied = st.tuples(place, length).map(lambda cut: example[cut[0] :][: cut[1]])
    new = st.sampled_from(WORDS) | st.binary(max_size=8) | copied
    edits = st.lists(st.tuples(place, length, new), min_size=1, max_size=4)
    return edits.map(lambda edits: _edited(example, edits))


def _edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, new in edits:
        data = data[:at] + new + data[at + length :]
    return data


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_corpus_holds(file: Path) -> None:
    TARGETS[file.parent.name]((CORPUS / file).read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_mutations_of_the_corpus_hold(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(st.binary(max_size=64) | st.sampled_from(EXAMPLES[name]).flatmap(mutated)))


def test_each_target_has_a_corpus_and_says_what_must_hold() -> None:
    assert {file.parent.name for file in FILES} == TARGETS.keys()
    assert all(function.__doc__ for function in TARGETS.values())
