"""Circuit breakers, by a clock of the test's own."""

import errno
import random

import httpx
import pytest

from jfs.artifactory import Outage, Plane, log_changes, retry
from jfs.artifactory.breaker import Breakers, Call
from jfs.errors import (
    Conflict,
    DeadlineExceeded,
    JfsError,
    NotFound,
    RateLimited,
    RemoteError,
    ServerDown,
    Unavailable,
    Untrusted,
    errno_of,
)
from jfs.metrics import Metrics

URL = "http://artifactory.example/artifactory"


class Server:
    """Breakers, a clock, and calls on one repository."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.breakers = Breakers(URL, self.metrics, clock=lambda: self.now)
        self.changes: list[tuple[str, bool]] = []
        self.breakers.on_change(self._changed)

    def _changed(self, outage: Outage, up: bool) -> None:
        self.changes.append((outage.what, up))

    def call(
        self,
        repo: str = "r",
        plane: Plane = Plane.NAMES,
        patience_s: float = 5,
        *,
        once: bool = False,
        deadline_s: float = 15,
    ) -> Call:
        return self.breakers.call(
            repo, plane, patience_s=patience_s, deadline_s=deadline_s, once=once
        )

    def fail(self, call: Call, error: RemoteError, seconds: float = 0.0) -> float:
        """Attempt until the call gives up; return how long that took."""
        began = self.now
        while True:
            if hold := call.hold_s():
                self.now += hold
                continue
            self.now += seconds
            wait = call.failed(error)
            if wait is None:
                return self.now - began
            self.now += wait

    def wait(self, call: Call) -> None:
        """Wait until an attempt may be made."""
        while hold := call.hold_s():
            self.now += hold

    def down(self, error: RemoteError | None = None) -> None:
        self.fail(self.call(), error or refused())


def refused(url: str = URL) -> Unavailable:
    error = Unavailable("nothing listens there", method="GET", url=f"{url}/api/storage/r")
    error.__cause__ = httpx.ConnectError("refused")
    return error


def status(code: int) -> Unavailable:
    return Unavailable("maintenance", status=code, method="GET", url=f"{URL}/api/storage/r")


def silent() -> DeadlineExceeded:
    return DeadlineExceeded("silent", method="GET", url=f"{URL}/api/storage/r")


def test_a_server_that_refuses_is_asked_for_its_patience_and_then_not_any_more() -> None:
    server = Server()
    assert server.fail(server.call(), refused()) <= 5
    assert server.changes == [("the server", False)]
    server.breakers.attend(lambda call: call(), lambda: None)
    server.now += 10  # what is left of its patience
    for repo in ("r", "other", "/api/search"):
        with pytest.raises(ServerDown, match=r"down for \d+ s: nothing listens there"):
            server.call(repo).hold_s()
    assert server.breakers.is_down
    assert server.breakers.outages()[0].reason == "nothing listens there"


@pytest.mark.parametrize("code", [502, 503, 504])
def test_what_one_repository_answers_is_no_matter_of_others(code: int) -> None:
    server = Server()
    server.down(status(code))
    server.now += 10
    assert server.changes == [("r (names)", False)]
    assert server.call("other").hold_s() == 0
    for plane in (Plane.BYTES, Plane.CHANGES):
        assert server.call("r", plane).hold_s() == 0


@pytest.mark.parametrize(("error", "number"), [(silent(), errno.ETIMEDOUT), (refused(), errno.EIO)])
def test_the_errno_stays_that_of_the_failure(error: RemoteError, number: int) -> None:
    server = Server()
    server.down(error)
    call = server.call()
    server.now += 10
    server.breakers.attend(lambda call: call(), lambda: None)
    with pytest.raises(ServerDown) as caught:
        call.hold_s()
    assert errno_of(caught.value) == number
    assert not caught.value.retryable
    assert f"{error.message} (GET {URL}/api/storage/r)" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no", status=404, url=URL),
        Conflict("no", status=409, url=URL),
        Unavailable("once", status=500, url=URL),
        refused("http://storage.example"),
    ],
)
def test_answers_open_nothing(error: RemoteError) -> None:
    server = Server()
    plane = Plane.BYTES if "storage.example" in error.url else Plane.NAMES
    call = server.call("r", plane)
    call.hold_s()
    call.failed(error)
    assert server.changes == []
    assert server.call("r", Plane.NAMES).hold_s() == 0


def test_patience_counts_from_the_beginning_of_the_outage() -> None:
    server = Server()
    server.down()
    server.breakers.attend(lambda call: call(), lambda: None)
    began = server.now
    reader = server.call("r", Plane.BYTES, 30)  # a job waits for a restart of the server
    with pytest.raises(ServerDown):
        server.wait(reader)
    assert 10 <= server.now - began <= 15  # its deadline
    late = server.call("r", Plane.BYTES, 30)
    server.now += 15
    with pytest.raises(ServerDown):
        late.hold_s()


def test_who_waits_goes_on_as_soon_as_it_is_up() -> None:
    server = Server()
    server.down()
    server.breakers.attend(lambda call: call(), lambda: None)
    reader = server.call("r", Plane.BYTES, 30)
    assert 0 < reader.hold_s() <= 0.25
    server.breakers.probed("", None, server.now)
    assert reader.hold_s() == 0
    assert server.changes == [("the server", False), ("the server", True)]
    assert server.breakers.outages() == []


def test_where_nobody_watches_one_caller_at_a_time_is_let_through() -> None:
    server = Server()
    server.down()
    server.now += 60
    probe = server.call()
    assert probe.hold_s() == 0
    with pytest.raises(ServerDown):
        server.call().hold_s()
    assert probe.failed(refused()) is None
    with pytest.raises(ServerDown):
        server.call().hold_s()
    server.now += 3
    probe = server.call()
    assert probe.hold_s() == 0
    probe.succeeded()
    assert server.call().hold_s() == 0
    assert server.changes == [("the server", False), ("the server", True)]


def test_who_probes_may_queue_for_its_turn() -> None:
    server = Server()
    server.down()
    server.now += 60
    probe = server.call()
    assert probe.hold_s() == 0
    assert probe.hold_s() == 0


def test_a_probe_whose_caller_went_away_is_left_to_another() -> None:
    server = Server()
    server.down()
    server.now += 60
    gone = server.call()
    assert gone.hold_s() == 0
    gone.end()
    assert server.call().hold_s() == 0


def test_probes_come_at_intervals_that_grow_to_three_seconds() -> None:
    server = Server()
    server.breakers.attend(lambda call: call(), lambda: None)
    server.down()
    intervals = []
    for _ in range(60):
        interval = server.breakers.next_probe_s()
        intervals.append(interval)
        server.now += interval
        assert server.breakers.due() == [""]
        server.breakers.probed("", refused(), server.now)
    assert max(intervals[:3]) <= 1
    assert min(intervals[-5:]) >= 1.5
    assert max(intervals[-5:]) <= 3


def test_what_goes_wrong_for_one_call_among_good_ones_is_no_outage() -> None:
    server = Server()
    unlucky = server.call()
    while True:
        unlucky.hold_s()
        wait = unlucky.failed(status(503))
        server.now += 0.01
        good = server.call()
        assert good.hold_s() == 0
        good.succeeded()
        if wait is None:
            break
        server.now += wait
    assert server.changes == []


def test_failures_far_apart_are_not_of_one_outage() -> None:
    server = Server()
    call = server.call()
    call.hold_s()
    assert call.failed(status(503)) is not None  # and its caller was cancelled
    server.now += 3600
    assert server.fail(server.call(), status(503)) > 1


def test_an_answer_to_what_was_asked_before_says_nothing() -> None:
    server = Server()
    early = server.call()
    early.hold_s()
    server.down()
    early.succeeded()
    assert server.breakers.is_down


def test_a_failure_of_what_was_asked_during_the_outage_does_not_begin_another() -> None:
    server = Server()
    server.breakers.attend(lambda call: call(), lambda: None)
    hanging = server.call()
    hanging.hold_s()
    server.down()
    server.now += 10
    server.breakers.probed("", None, server.now)
    hanging.failed(refused())
    assert not server.breakers.is_down


def test_a_server_that_tls_refuses_is_down_at_once() -> None:
    server = Server()
    error = Untrusted("its certificate has expired", url=URL)
    error.__cause__ = httpx.ConnectError("tls")
    call = server.call(patience_s=30)
    call.hold_s()
    assert call.failed(error) is None
    server.breakers.attend(lambda call: call(), lambda: None)
    with pytest.raises(ServerDown):
        server.call(patience_s=30).hold_s()


def test_a_call_that_must_not_be_repeated_proves_no_outage() -> None:
    server = Server()
    call = server.call("r", Plane.CHANGES, once=True)
    call.hold_s()
    assert call.failed(status(503)) is None
    assert server.changes == []


def test_a_call_that_was_never_sent_is_repeated_whatever_it_is() -> None:
    server = Server()
    call = server.call("r", Plane.CHANGES, once=True)
    call.hold_s()
    assert call.failed(refused()) is not None


@pytest.mark.parametrize("kind", [RateLimited, Unavailable])
def test_a_pause_that_the_server_asks_for_holds_its_repository(
    kind: type[RateLimited | Unavailable],
) -> None:
    server = Server()
    error = kind("slow down", status=429 if kind is RateLimited else 503, url=URL)
    error.retry_after_s = 7.0
    call = server.call()
    call.hold_s()
    wait = call.failed(error)
    assert wait is not None
    assert wait >= 7
    assert 7 <= server.call().hold_s() <= 8
    assert server.call("other").hold_s() == 0
    server.now += 7.1
    assert server.call().hold_s() == 0


def test_a_pause_longer_than_the_deadline_fails_at_once_with_what_it_said() -> None:
    server = Server()
    error = RateLimited("slow down", status=429, url=URL)
    error.retry_after_s = 600.0
    call = server.call()
    call.hold_s()
    assert call.failed(error) is None
    with pytest.raises(RateLimited, match="slow down"):
        server.call().hold_s()
    server.now += 61  # however long a pause it asks for
    assert server.call().hold_s() == 0
    assert server.changes == []


def test_a_pause_that_is_longer_than_it_is_held_keeps_nobody_waiting_in_vain() -> None:
    server = Server()
    error = RateLimited("slow down", status=429, url=URL)
    error.retry_after_s = 120.0
    call = server.call(deadline_s=60)
    call.hold_s()
    assert call.failed(error) is None
    server.now += 30
    with pytest.raises(RateLimited, match="slow down") as raised:
        server.call(deadline_s=60).hold_s()  # until then it is asked again, and refuses again
    assert raised.value.retry_after_s == 90
    assert 30 <= server.call(deadline_s=600).hold_s() <= 31


def test_a_download_that_moves_is_not_given_up() -> None:
    server = Server()
    call = server.call("r", Plane.BYTES, 30)
    for _ in range(20):
        assert call.hold_s() == 0
        server.now += 8
        call.moved(15)
        wait = call.failed(silent())
        assert wait is not None
        server.now += wait
    assert server.changes == []


def test_a_repository_that_was_down_with_its_server_is_probed_when_that_is_back() -> None:
    server = Server()
    server.breakers.attend(lambda call: call(), lambda: None)
    server.down(status(503))
    server.breakers.probed("", status(503), server.now)
    server.now += 60
    server.breakers.probed("", None, server.now)
    assert server.breakers.due() == ["", "r"]
    server.breakers.probed("r", None, server.now)
    assert server.changes[-1] == ("r (names)", True)
    assert server.breakers.due() == []


def test_a_proxy_that_lets_no_ping_through_leaves_it_to_real_calls() -> None:
    server = Server()
    server.breakers.attend(lambda call: call(), lambda: None)
    server.down()
    server.now += 60
    server.breakers.probed("", JfsError("something else answers"), server.now)
    server.now += 3
    call = server.call()
    assert call.hold_s() == 0
    call.succeeded()
    assert server.breakers.outages() == []


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends(
    caplog: pytest.LogCaptureFixture, expected_logs: list[str]
) -> None:
    expected_logs.append("the server is down: nothing listens there")
    caplog.set_level("INFO", "jfs")
    server = Server()
    server.breakers.on_change(log_changes)
    server.breakers.attend(lambda call: call(), lambda: None)
    server.down()
    server.now += 15
    for _ in range(1000):
        with pytest.raises(ServerDown):
            server.call().hold_s()
    server.breakers.probed("", None, server.now)
    first, last = caplog.messages
    assert first == "the server is down: nothing listens there"
    assert "the server is back after" in last
    assert "1000 calls were refused" in last
    assert server.metrics.snapshot()["refused_calls"] == 1000


def test_jitter_is_full() -> None:
    delays = retry.delays(random.Random(1))
    drawn = [next(delays) for _ in range(400)][10:]
    assert min(drawn) < 0.1
    assert 2.9 < max(drawn) <= 3.0
    assert 1.3 < sum(drawn) / len(drawn) < 1.7


def test_an_error_without_a_method_names_its_url_without_a_blank() -> None:
    assert str(Unavailable("no", url=URL)) == f"no ({URL})"
    assert str(ServerDown.after(Unavailable("no", url=URL), 7)) == f"down for 7 s: no ({URL})"


def test_a_call_that_is_silent_while_others_are_answered_is_no_outage() -> None:
    server = Server()
    slow = server.call()
    slow.hold_s()
    server.now += 20
    other = server.call()
    other.hold_s()
    server.now += 1
    other.succeeded()
    server.now += 9
    assert slow.failed(silent()) is None
    assert server.changes == []
    assert server.call().hold_s() == 0


def test_silence_after_the_last_answer_is_an_outage() -> None:
    server = Server()
    other = server.call()
    other.hold_s()
    other.succeeded()
    server.now += 1
    slow = server.call()
    slow.hold_s()
    server.now += 30
    assert slow.failed(silent()) is None
    assert server.changes == [("r (names)", False)]
