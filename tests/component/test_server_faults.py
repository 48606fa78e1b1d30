"""Planned faults: the weather that clients are tried in."""

import gzip
import hashlib
import json
import threading
from http.client import BadStatusLine, IncompleteRead, RemoteDisconnected
from pathlib import Path

import pytest

from jfs.errors import ConfigError
from jfs.server import EmbeddedServer, Fault, FaultPlan
from tests.component.server_requests import REPO, Reply, Requests, connected

BODY = bytes(range(256)) * 100
FILE = f"/{REPO}/d/f.bin"


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    server.deploy(REPO, "d/f.bin", BODY)
    server.deploy(REPO, "d/g.bin", b"g")
    return Requests(server)


def test_a_fault_acts_on_what_it_names_and_no_more(ask: Requests) -> None:
    fault = ask.server.faults.add(
        Fault.status(
            503, "/*/d/f.bin", method="GET", after=1, times=2, headers={"Retry-After": "7"}
        )
    )
    statuses = []
    for _ in range(5):
        statuses.append(ask.get(FILE).status)
        assert ask.head(FILE).status == 200
        assert ask.get(f"/{REPO}/d/g.bin").status == 200
    assert statuses == [200, 503, 503, 200, 200]
    assert fault.hits == 2
    fault.wait_hit(0)


def test_statuses_and_garbage(ask: Requests) -> None:
    faults = ask.server.faults
    faults.add(Fault.status(429, headers={"Retry-After": "3"}, times=1))
    reply = ask.get(FILE)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "3")
    assert reply.message == "A fault was planned."
    faults.add(Fault.status(502, body=b"<html>Bad Gateway</html>", times=1))
    assert ask.get(FILE).body == b"<html>Bad Gateway</html>"
    faults.add(Fault.garbage(times=1))
    reply = ask.get(f"/api/storage/{REPO}")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html")
    faults.add(Fault.garbage(body=b'{"files": [{]', times=1))
    assert ask.get(f"/api/storage/{REPO}?list").body == b'{"files": [{]'
    assert ask.get(FILE).body == BODY


def test_weather_for_one_client_that_ends(ask: Requests) -> None:
    fault = ask.server.faults.add(Fault.status(503, agent="jfs/*"))
    assert ask.get(FILE).status == 200
    assert ask.get(FILE, User_Agent="jfs/0.1").status == 503
    ask.server.faults.remove(fault)
    assert ask.get(FILE, User_Agent="jfs/0.1").status == 200


def test_an_upload_meets_a_fault(ask: Requests) -> None:
    ask.server.faults.add(Fault.status(503, times=1))
    assert ask.put(f"/{REPO}/up", b"x" * 5_000_000).status == 503
    assert ask.get(f"/{REPO}/up").status == 404
    ask.server.faults.add(Fault.drop(method="PUT", times=1))
    with pytest.raises((ConnectionError, BadStatusLine)):
        ask.put(f"/{REPO}/up", b"x" * 5_000_000)
    assert ask.put(f"/{REPO}/up", b"x").status == 201


def test_connections_that_break(ask: Requests) -> None:
    ask.server.faults.add(Fault.drop(times=1))
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        ask.get(FILE)
    ask.server.faults.add(Fault.drop(after_bytes=1000, times=1))
    with pytest.raises(IncompleteRead) as error:
        ask.get(FILE)
    assert error.value.partial == BODY[:1000]
    ask.server.faults.add(Fault.short(size=10, times=1))
    reply = ask.get(FILE, Range="bytes=100-199")
    assert reply.headers["Content-Range"] == f"bytes 100-199/{len(BODY)}"
    assert reply.body == BODY[100:110]


@pytest.mark.parametrize("after_bytes", [None, 500])
def test_a_stall_holds_until_it_is_released(ask: Requests, after_bytes: int | None) -> None:
    fault = ask.server.faults.add(Fault.stall("/*/f.bin", after_bytes=after_bytes))
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(ask.get(FILE)))
    thread.start()
    fault.wait_hit()
    assert replies == []
    assert ask.get(f"/{REPO}/d/g.bin").body == b"g"  # others are served
    fault.release()
    thread.join(30)
    assert replies[0].body == BODY


def test_a_stop_lets_go_on_what_is_stalled(ask: Requests) -> None:
    fault = ask.server.faults.add(Fault.stall())
    failures: list[Exception] = []

    def get() -> None:
        try:
            ask.get(FILE)
        except (OSError, BadStatusLine) as error:
            failures.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    fault.wait_hit()
    ask.server.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_ranges_that_lie(ask: Requests) -> None:
    faults = ask.server.faults
    faults.add(Fault.wrong_content_range(times=1))
    reply = ask.get(FILE, Range="bytes=0-9")
    assert reply.headers["Content-Range"] == f"bytes 1-10/{len(BODY)}"
    assert reply.body == BODY[:10]
    faults.add(Fault.wrong_content_range(value="bytes 0-9/5", times=1))
    assert ask.get(FILE, Range="bytes=0-9").headers["Content-Range"] == "bytes 0-9/5"
    faults.add(Fault.ignore_range(times=1))
    reply = ask.get(FILE, Range="bytes=0-9")
    assert (reply.status, reply.body) == (200, BODY)


def test_bodies_and_headers_that_lie(ask: Requests) -> None:
    faults = ask.server.faults
    faults.add(Fault.gzip(times=1))
    reply = ask.get(FILE, Range="bytes=5-300")
    assert reply.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(reply.body) == BODY[5:301]
    faults.add(Fault.corrupt(offset=3, times=1))
    body = ask.get(FILE).body
    assert [at for at in range(len(BODY)) if body[at] != BODY[at]] == [3]
    faults.add(Fault.wrong_etag(times=1))
    assert ask.get(FILE).headers["ETag"] == "0" * 40
    faults.add(Fault.set_headers({"ETag": "", "X-Odd": "1"}, times=1))
    reply = ask.get(FILE)
    assert (reply.headers["ETag"], reply.headers["X-Odd"]) == (None, "1")
    faults.add(Fault.wrong_checksums(times=2))
    assert ask.head(FILE).headers["X-Checksum-Sha256"] == "0" * 64
    sums = ask.get(f"/api/storage{FILE}").json()["checksums"]
    assert sums == {"sha1": "0" * 40, "md5": "0" * 32, "sha256": "0" * 64}
    assert ask.get(FILE).headers["X-Checksum-Sha1"] == hashlib.sha1(BODY).hexdigest()


def signed(location: str, **headers: str) -> Reply:
    with connected(location) as connection:
        connection.request(
            "GET",
            location.partition("/bucket/")[1] + location.partition("/bucket/")[2],
            headers=headers,
        )
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())


def test_an_answer_without_a_length(ask: Requests) -> None:
    ask.server.faults.add(Fault.chunked("/*/f.bin"))
    for reply in (ask.get(FILE), ask.head(FILE)):
        assert "Content-Length" not in reply.headers
        assert reply.headers["X-Checksum-Sha1"] == hashlib.sha1(BODY).hexdigest()
    assert ask.get(FILE).body == BODY
    assert ask.get(FILE, Range="bytes=1-3").body == BODY[1:4]


def test_redirects_to_signed_storage(ask: Requests) -> None:
    ask.server.faults.add(Fault.redirect("/*/f.bin"))
    reply = ask.get(FILE, Range="bytes=0-9")
    assert reply.status == 302
    assert reply.headers["X-Checksum-Sha256"] == hashlib.sha256(BODY).hexdigest()
    location = reply.headers["Location"]
    assert not location.startswith(ask.server.url.removesuffix("/artifactory"))
    sha1 = hashlib.sha1(BODY).hexdigest()
    assert f"/filestore/{sha1[:2]}/{sha1}?" in location
    assert ask.head(FILE).status == 200
    assert ask.get(f"{FILE}?artifactory.disableRedirect=true").body == BODY
    missing = ask.get(f"/{REPO}/absent/f.bin")
    assert (missing.status, missing.message) == (404, "File not found.")

    part = signed(location, Range="bytes=0-9")
    assert (part.status, part.body) == (206, BODY[:10])
    assert part.headers["Content-Range"] == f"bytes 0-9/{len(BODY)}"
    assert part.headers["ETag"].startswith('"')
    assert part.headers["ETag"] == signed(location).headers["ETag"]
    assert "X-Checksum-Sha1" not in part.headers
    assert signed(location).body == BODY
    assert signed(location, Range="bytes=999999-").status == 416
    for name in ("Authorization", "X-JFrog-Art-Api", "Cookie"):
        refused = signed(location, **{name: "x"})
        assert refused.status == 400
        assert b"Only one auth mechanism allowed" in refused.body
    assert signed(location[:-3] + "xxx").status == 403
    assert signed(location.replace(sha1, "0" * 40)).status == 403
    assert ask.server.stats.by_route["GET signed"] == 9


def test_a_location_names_content(ask: Requests) -> None:
    """What was replaced, or removed, is served under its old location while that lives."""
    fault = ask.server.faults.add(Fault.redirect("/*/f.bin"))
    old = ask.get(FILE).headers["Location"]
    ask.put(FILE, b"other")
    new = ask.get(FILE).headers["Location"]
    assert (signed(old).body, signed(new).body) == (BODY, b"other")
    ask.delete(FILE)
    assert (signed(old).body, signed(new).body) == (BODY, b"other")
    assert fault.hits == 2


def test_shapes_and_lies_of_redirects(ask: Requests) -> None:
    ask.put(f"/{REPO}/other", b"other")
    faults = ask.server.faults

    faults.add(Fault.redirect("/*/f.bin", opaque=True, silent=True))
    reply = ask.get(FILE)
    assert f"/bucket{FILE}?" in reply.headers["Location"]
    assert "X-Checksum-Sha1" not in reply.headers
    assert "ETag" not in reply.headers
    assert signed(reply.headers["Location"]).body == BODY
    ask.put(FILE, b"replaced")
    assert signed(reply.headers["Location"]).body == b"replaced"
    assert ask.get(f"{FILE}?artifactory.disableRedirect=true").status == 302
    faults.clear()

    faults.add(Fault.redirect("/*/f.bin", to=f"{REPO}/other", headers={"ETag": "W/x"}))
    reply = ask.get(FILE)
    assert reply.headers["ETag"] == "W/x"
    assert signed(reply.headers["Location"]).body == b"other"
    faults.clear()

    faults.add(Fault.redirect("/*/f.bin", relative=True))
    faults.add(Fault.other_content(f"{REPO}/other", f"/bucket{FILE}", times=1))
    location = ask.get(FILE).headers["Location"]
    assert location.startswith("//127.0.0.1:")
    assert signed(f"http:{location}").body == b"other"
    assert signed(f"http:{location}").body == b"replaced"
    faults.clear()

    faults.add(Fault.redirect("/*/f.bin", method="*"))
    head = ask.head(FILE)
    assert head.status == 302
    assert signed(head.headers["Location"]).status == 403  # signed for HEAD


def test_signed_locations_that_end(ask: Requests) -> None:
    ask.server.faults.add(Fault.redirect(expired=True, times=1))
    assert signed(ask.get(FILE).headers["Location"]).status == 403
    ask.server.faults.add(Fault.redirect(uses=2, times=1))
    location = ask.get(FILE).headers["Location"]
    assert [signed(location).status for _ in range(3)] == [200, 200, 403]


def test_faults_of_signed_storage(ask: Requests) -> None:
    ask.server.faults.add(Fault.redirect("/*/f.bin"))
    ask.server.faults.add(Fault.status(503, "/bucket/*", times=1))
    location = ask.get(FILE).headers["Location"]
    assert signed(location).status == 503
    ask.server.faults.add(Fault.drop("/bucket/*", after_bytes=5, times=1))
    with pytest.raises(IncompleteRead):
        signed(location)
    assert signed(location).body == BODY


def test_bytes_are_counted_as_they_were_sent(ask: Requests) -> None:
    stats = ask.server.stats
    stats.reset()
    ask.get(FILE)
    ask.get(FILE, Range="bytes=0-9")
    ask.head(FILE)
    assert (stats.requests, stats.bytes_sent) == (3, len(BODY) + 10)
    ask.put(f"/{REPO}/up", b"12345")
    assert stats.bytes_received == 5
    assert stats.by_route == {"GET content": 2, "HEAD content": 1, "PUT content": 1}
    ask.get(f"/api/storage/{REPO}?list")
    assert stats.by_route["GET api/storage?list"] == 1


def test_a_plan_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(
        json.dumps(
            [
                {"kind": "status", "path": "/r/*", "code": 500, "times": 1, "body": "no"},
                {"kind": "redirect", "uses": 3, "times": None, "opaque": True},
            ]
        )
    )
    plan = FaultPlan.load(path)
    first = plan.match("GET", "/r/a")
    second = plan.match("GET", "/r/a")
    assert first
    assert (first.code, first.body) == (500, b"no")
    assert second
    assert second.uses == 3
    assert second.opaque
    assert plan.match("PUT", "/r/a") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"kind": "rain"}]',
        '[{"kind": "drop", "speed": 3}]',
        '[{"kind": "drop", "times": "x"}]',
    ],
)
def test_a_plan_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    path = tmp_path / "faults.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--faults .*faults\.json: "):
        FaultPlan.load(path)
    with pytest.raises(ConfigError, match="No such file"):
        FaultPlan.load(tmp_path / "nope")
