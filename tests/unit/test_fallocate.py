"""The place where pyfuse3 makes its session."""

from jfs.mount import fallocate


def test_the_entry_is_ours_for_a_while() -> None:
    entry = fallocate._entry()
    before = entry.value
    assert before
    with fallocate.handled_by(lambda place, mode, offset, length, answer: None) as kept:
        assert kept is not None
        assert entry.value != before
    assert entry.value == before
