"""A server that goes away under a mount: what is asked of it fails at once, and heals."""

import errno
import os
import time
from contextlib import suppress

import pytest

from jfs.server import EmbeddedServer
from tests.conftest import REPO
from tests.mount.conftest import Mounter
from tests.mount.mounting import Mounted

EXPECTED = ["the server is down: nothing listens there", "cannot be asked", r"EIO|Errno 5|error"]


def unknown(mounted: Mounted, number: int) -> int:
    """Look at a name that was never asked for; return the errno."""
    with pytest.raises(OSError, match="error") as caught:
        os.stat(mounted.root / f"unknown{number}")
    return caught.value.errno or 0


def test_the_thousandth_stat_of_an_outage_waits_for_nothing(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    server.deploy(REPO, "f", b"f")
    options = ("--retry-for=1", "--connect-timeout=2", "--timeout=5", "--attr-ttl=0")
    mounted = mounter(f"{server.url}/{REPO}", *options, JF_ACCESS_TOKEN=server.token)
    server.stop()
    began = time.monotonic()
    assert unknown(mounted, 0) == errno.EIO
    first_s = time.monotonic() - began
    began = time.monotonic()
    for number in range(1, 1001):
        assert unknown(mounted, number) == errno.EIO  # never ENOENT
    thousand_s = time.monotonic() - began
    # Each waiting for its own deadline would take a quarter of an hour.
    assert first_s < 20
    assert thousand_s < 30
    server.start()
    began = time.monotonic()
    while time.monotonic() < began + 30:
        with suppress(OSError):
            assert (mounted.root / "f").read_bytes() == b"f"
            break
    else:
        pytest.fail("it does not heal")
    log = mounted.log()
    assert log.count("the server is down") == 1
    assert log.count("the server is back after") == 1
    mounted.stop(expected=EXPECTED)
