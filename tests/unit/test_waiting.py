"""What becomes of calls that nobody waits for any more."""

import pytest

from jfs.errors import DiskHangs
from jfs.waiting import _Call


def test_what_was_given_up_before_it_began_is_not_called() -> None:
    """Who gave it up was told so: buffers are used again."""
    called: list[str] = []
    call = _Call(called.append, ("late",), None, lambda: None)
    call.leave()
    assert not call.begun
    with pytest.raises(DiskHangs):
        call()
    assert called == []


def test_what_ends_after_it_was_given_up_is_taken_by_who_cares() -> None:
    taken: list[int] = []
    back: list[bool] = []

    def work() -> int:
        call.leave()
        return 7

    call = _Call(work, (), taken.append, lambda: back.append(True))
    assert call() == 7
    assert (taken, back, call.begun) == ([7], [True], True)
