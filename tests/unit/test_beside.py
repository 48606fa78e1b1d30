"""What pyfuse3 needs for READs beside the interpreter: its libfuse is changed, and as it was."""

import socket
from collections.abc import Iterator

import pytest

from jfs.mount.beside import Beside
from jfs.mount.libfuse import entry, library


@pytest.fixture
def device() -> Iterator[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours.fileno()


def _reads_by() -> int | None:
    """Return the address of what pyfuse3 reads requests by."""
    return entry(library(), b"fuse_session_receive_buf").value


def test_pyfuse3_reads_for_itself_until_it_waits_for_us(device: int) -> None:
    """One that waits by other means is never told that there is nothing."""
    before = _reads_by()
    beside = Beside()
    assert beside.replies is not None
    assert _reads_by() == before
    assert beside.requests(device) != device
    assert _reads_by() == beside.replies.receive
    beside.close()
    assert _reads_by() == before


def test_where_the_device_cannot_be_read_pyfuse3_does() -> None:
    before = _reads_by()
    beside = Beside()
    assert beside.requests(-1) == -1
    assert beside.replies is None
    assert _reads_by() == before
