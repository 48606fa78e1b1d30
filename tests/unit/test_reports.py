"""What ``.jfs/stats`` says of the server and of uploads, in names that programs rely on."""

from jfs.artifactory.breaker import Breakers
from jfs.artifactory.circuits import Plane
from jfs.errors import Unavailable
from jfs.metrics import Metrics
from jfs.mount import reports
from jfs.vfs.files.queue import QueueState
from jfs.vfs.namespace.reports import shown_lines

URL = "http://127.0.0.1:1/artifactory"


def test_a_server_that_is_up() -> None:
    found = reports.server(Breakers(URL, Metrics()), Metrics())
    assert found == {
        "state": "up",
        "since": None,
        "reason": None,
        "stale_since": None,
        "outages": [],
    }
    assert shown_lines({"server": found}).splitlines()[:2] == ["server.state up", "server.since -"]


def test_a_repository_that_is_down() -> None:
    breakers, metrics = Breakers(URL, Metrics()), Metrics()
    call = breakers.call("ml", Plane.NAMES, patience_s=0, deadline_s=1)
    assert call.hold_s() == 0
    assert call.failed(Unavailable("no\nworkers", status=503, url=f"{URL}/ml")) is None
    found = reports.server(breakers, metrics)
    assert found["state"] == "impaired"
    assert found["reason"] == "no workers"
    lines = dict(line.split(" ", 1) for line in shown_lines(found).splitlines())
    assert lines["outages.0.what"] == "ml"
    assert lines["since"] == lines["outages.0.since"]


def test_uploads_that_wait() -> None:
    assert reports.uploads(QueueState())["pending"] == 0
    found = reports.uploads(QueueState(pending=2, size=10, oldest_ns=1_500_000_000))
    assert (found["pending"], found["pending_bytes"], found["oldest_since"]) == (2, 10, 1.5)
