"""The place where pyfuse3 makes its session."""

from jfs.mount import libfuse


def test_the_entry_is_ours_for_a_while() -> None:
    entry = libfuse._entry()
    before = entry.value
    assert before
    with libfuse.table_changed_by([]) as kept:
        assert kept
        assert entry.value != before
    assert entry.value == before
