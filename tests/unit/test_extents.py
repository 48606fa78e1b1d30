"""Extents and extent sets against a plain set of integers."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from jfs.extents import Extent, ExtentSet

SIZE = 64
extents = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(
    lambda pair: Extent(min(pair), max(pair))
)


def covered(extent: Extent) -> set[int]:
    return set(range(extent.start, extent.stop))


@given(extents, extents)
def test_relations_agree_with_sets(one: Extent, other: Extent) -> None:
    assert one.overlaps(other) == bool(covered(one) & covered(other))
    assert one.contains(other) == (covered(other) <= covered(one))
    assert covered(one.intersection(other)) == covered(one) & covered(other)
    assert one.size == len(covered(one))


@given(extents, st.integers(1, 20), st.integers(0, SIZE))
def test_aligned_is_the_smallest_run_of_blocks(extent: Extent, block: int, size: int) -> None:
    extent = extent.clipped(size)
    aligned = extent.aligned(block, size)
    blocks = {byte // block for byte in covered(extent)}
    assert covered(aligned) == {byte for byte in range(size) if byte // block in blocks}


@given(extents, st.integers(1, 20))
def test_pieces_rebuild_the_extent(extent: Extent, piece: int) -> None:
    pieces = list(extent.pieces(piece))
    assert [byte for part in pieces for byte in range(*part)] == list(range(*extent))
    assert all(part.start // piece == (part.stop - 1) // piece for part in pieces)


@given(st.lists(st.tuples(st.booleans(), extents)), extents)
def test_a_set_of_extents_is_a_set(steps: list[tuple[bool, Extent]], question: Extent) -> None:
    subject, oracle = ExtentSet(), set[int]()
    for add, extent in steps:
        if add:
            subject.add(extent)
            oracle |= covered(extent)
        else:
            subject.remove(extent)
            oracle -= covered(extent)
    assert {byte for extent in subject for byte in covered(extent)} == oracle
    assert subject.size == len(oracle)
    assert subject.contains(question) == (covered(question) <= oracle)
    missing = subject.missing(question)
    assert {byte for extent in missing for byte in covered(extent)} == covered(question) - oracle
    runs = list(subject)
    assert all(a.stop < b.start for a, b in itertools.pairwise(runs))
    assert all(runs)
