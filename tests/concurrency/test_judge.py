"""The judge itself: histories that are right, and one for every rule that is broken."""

import errno
import itertools
from collections.abc import Collection
from typing import Any

import pytest

from tests.concurrency.content import (
    Content,
    bytes_of,
    overlaid,
    piece,
    runs_of,
    size_of,
    whole,
    words,
)
from tests.concurrency.history import ELSEWHERE, Record
from tests.concurrency.judge import Judge

TTLS = {"A": 0.0, "B": 10.0}
A, B, X = "A", "B", ELSEWHERE


class History:
    """Calls on names of one folder; every version has 8 words unless *size* says otherwise."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._numbers = itertools.count()

    def add(
        self, actor: str, kind: str, path: str, start: float, end: float, **of: Any
    ) -> "History":
        fields = {key: of.pop(key) for key in ("to", "write", "size", "mode", "key") if key in of}
        if "write" in fields:
            fields.setdefault("size", 64)
        reply = {"start": start, "end": end, "stage": "open", **of}
        self.records.append(Record(next(self._numbers), actor, kind, path, reply, **fields))
        return self

    def put(self, path: str, write: int, start: float, end: float, size: int = 64) -> "History":
        return self.add(X, "put", path, start, end, write=write, size=size)

    def read(
        self, actor: str, path: str, start: float, end: float, content: Content, **of: Any
    ) -> "History":
        size = size_of(content)
        reply = {"opened": start, "sizes": [size], "chunks": [(0, size + 8, content)], **of}
        return self.add(actor, "read", path, start, end, **reply)

    def store(
        self, actor: str, path: str, write: int, start: float, end: float, **of: Any
    ) -> "History":
        times = {"opened": start, "closing": (start + end) / 2, "mode": "store", "stage": "close"}
        return self.add(actor, "write", path, start, end, write=write, **{**times, **of})

    def patch(
        self, actor: str, path: str, write: int, start: float, end: float, base: Content, **of: Any
    ) -> "History":
        size = size_of(base)
        reply = {
            "opened": start,
            "closing": (start + end) / 2,
            "stage": "close",
            "sizes": [size],
            "chunks": [(0, size + 8, base)],
            "patch": (write, size // 8, size // 8 + 1),
        }
        return self.add(actor, "patch", path, start, end, write=write, **{**reply, **of})

    def tag(self, actor: str, value: int, start: float, end: float, **of: Any) -> "History":
        """Set the property k of a; 0: remove it."""
        return self.add(actor, "tag", "a", start, end, key="k", write=value, **of)

    def tagged(self, actor: str, value: int, start: float, end: float, **of: Any) -> "History":
        return self.add(actor, "tagged", "a", start, end, key="k", value=value, **of)

    def server(self, path: str, at: float, content: Content | None) -> "History":
        if content is None:
            return self.add(X, "server", path, at, at, errno=errno.ENOENT)
        return self.add(
            X, "server", path, at, at, sizes=[0], chunks=[(0, size_of(content) + 8, content)]
        )

    def rules(self, *kept: Content, stand_in: Collection[str] | None = None) -> list[str]:
        judge = Judge(TTLS, self.records, kept, stand_in)
        return [finding.rule for finding in judge.verdict()]


@pytest.fixture
def history() -> History:
    return History()


V1, V2, V3 = whole(1, 64), whole(2, 64), whole(3, 64)
NOT_CURRENT = "is not one version that was current"
THERE = "was there all the time"
NOT_ITS_VALUE = "has a property that was not current"


def test_contents_describe_themselves() -> None:
    content = overlaid(whole(7, 800), (8, 50, 120))
    assert content == ((7, 0, 50), (8, 50, 120))
    assert runs_of(bytes_of(content), 0) == content
    assert runs_of(bytes_of(content)[80:480], 80) == piece(content, 80, 400)
    assert overlaid(whole(1, 16), (2, 4, 5)) == ((1, 0, 2), (0, 2, 4), (2, 4, 5))
    assert runs_of(words(3, 5, 6) + bytes(8) + words(3, 7, 8), 0) == (
        (-4, 0, 1),
        (0, 1, 2),
        (-4, 2, 3),
    )
    assert runs_of(words(1, 0, 2)[:-1], 0) == ((-1, 0, 2),)


def test_versions_that_follow_each_other(history: History) -> None:
    history.put("a", 1, 1, 2).read(A, "a", 3, 4, V1).put("a", 2, 5, 6)
    history.read(A, "a", 5.5, 5.6, V1).read(A, "a", 5.7, 5.8, V2).read(A, "a", 7, 8, V2)
    assert history.server("a", 9, V2).rules() == []


def test_a_version_that_is_over_is_not_shown(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6).read(A, "a", 7, 8, V1)
    assert history.rules() == [NOT_CURRENT]


def test_a_version_is_believed_for_the_time_to_live(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6).read(B, "a", 15.9, 15.95, V1)
    assert history.rules() == []
    history.read(B, "a", 21.1, 22, V1)
    assert history.rules() == [NOT_CURRENT]


def test_an_answer_is_shared_with_who_asks_meanwhile(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6).add(A, "stat", "a", 5.5, 7, size_=0)
    history.records[-1] = Record(9, A, "stat", "a", {"start": 5.5, "end": 7, "size": 64})
    assert history.read(A, "a", 6.5, 8, V1).rules() == []
    assert history.read(A, "a", 7.5, 8, V1).rules() == [NOT_CURRENT]


def test_nothing_is_believed_after_a_refresh(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6).add(B, "refresh", "", 7, 8)
    assert history.read(B, "a", 7.5, 7.6, V1).rules() == []
    assert history.read(B, "a", 8.1, 8.2, V1).rules() == [NOT_CURRENT]


def test_a_mount_knows_at_once_what_was_changed_in_it(history: History) -> None:
    history.put("a", 1, 1, 2).store(B, "a", 2, 5, 6).read(B, "a", 7, 8, V1)
    assert history.rules() == [NOT_CURRENT]


def test_a_mount_does_not_go_back(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6).read(B, "a", 7, 8, V2).read(B, "a", 9, 10, V1)
    assert history.rules() == [NOT_CURRENT]


@pytest.mark.parametrize(
    ("sizes", "chunks"),
    [
        ([64], [(0, 32, piece(V1, 0, 32)), (32, 32, piece(V2, 32, 32))]),  # two versions
        ([64], [(0, 72, ((1, 0, 4), (2, 4, 8)))]),
        ([64, 56], [(0, 8, piece(V1, 0, 8))]),  # a size that changes
        ([64], [(0, 72, piece(V1, 0, 32))]),  # cut short
        ([64], [(0, 72, ((1, 0, 4), (0, 4, 8)))]),  # zeros
        ([64], [(0, 8, ((-2, 0, 1),))]),  # a word of another place
    ],
)
def test_one_descriptor_shows_one_version(history: History, sizes: Any, chunks: Any) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6)
    assert history.read(A, "a", 4, 9, V1, opened=7, sizes=sizes, chunks=chunks).rules() == [
        NOT_CURRENT
    ]


def test_what_is_held_stays(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6)
    assert history.read(A, "a", 3, 30, V1, opened=3.1).rules() == []


def test_what_is_written_in_place_is_seen_in_pieces(history: History) -> None:
    mixed = ((2, 0, 4), (1, 4, 8))
    history.put("a", 1, 1, 2).store(A, "a", 2, 5, 9).read(A, "a", 6, 7, mixed)
    assert history.rules() == []
    history.read(A, "a", 6.5, 7, ((2, 0, 4), (3, 4, 8)))
    assert history.rules() == ["has [(3, 4, 8)], which nobody was writing here"]
    history.records.pop()
    assert history.read(B, "a", 6, 7, mixed).rules() == [NOT_CURRENT]


def test_errors_have_a_reason(history: History) -> None:
    history.put("a", 1, 1, 2).add(A, "read", "a", 3, 4, errno=errno.ENOENT)
    history.add(A, "read", "a", 3, 4, errno=errno.ESTALE).add(A, "stat", "a", 3, 4, errno=errno.EIO)
    assert history.rules() == [THERE, "failed", "failed"]
    history.records[1:] = []
    history.add(X, "delete", "a", 5, 6).add(A, "unlink", "a", 5, 6, errno=errno.ENOENT)
    history.add(A, "read", "a", 3, 5.5, errno=errno.ESTALE, stage="read")
    assert history.rules() == []
    history.add(A, "write", "a", 5, 6, errno=errno.ENOENT, write=2, mode="store")
    assert history.rules() == ["was to be made, and is not there"]


def test_a_kill_is_a_reason(history: History) -> None:
    history.put("a", 1, 1, 2).add(B, "kill", "", 5, 6)
    history.add(B, "stat", "a", 4, 5.1, errno=errno.ENOTCONN)
    history.read(B, "a", 3, 9, V1, errno=errno.ENOTCONN, stage="read")
    assert history.rules() == []
    history.add(A, "stat", "a", 4, 5.1, errno=errno.ENOTCONN)
    assert history.rules() == ["failed"]


def test_an_upload_that_was_killed_is_taken_up_behind_the_next_start(history: History) -> None:
    history.add(B, "kill", "", 5, 6)
    history.store(B, "a", 2, 4, 5.1, errno=errno.ECONNABORTED)
    history.put("a", 1, 5.1, 5.2).add(X, "delete", "a", 5.3, 6).put("a", 1, 6.1, 6.2)
    history.read(A, "a", 8, 9, V2)
    assert history.rules() == []
    history.put("a", 3, 20, 21).read(A, "a", 30, 31, V2)
    assert history.rules() == [NOT_CURRENT]


def test_bad_weather_is_a_reason(history: History) -> None:
    history.put("a", 1, 1, 2).add(A, "stat", "a", 6, 8, errno=errno.EIO)
    assert history.rules() == ["failed"]
    history.add(X, "weather", "", 7, 9)
    assert history.rules() == []
    # What it was to change may have come about, or not.
    history.store(A, "a", 2, 7, 8, errno=errno.EIO).read(A, "a", 9, 10, V2).server("a", 11, V1)
    history.add(A, "unlink", "a", 12, 13, errno=errno.EIO).server("a", 14, V2).server("a", 15, None)
    assert history.rules(V2) == []
    assert history.rules() == ["was refused at close, and is not in the journal"]
    assert history.add(A, "stat", "a", 40, 41, errno=errno.EIO).rules(V2) == ["failed"]


def test_in_bad_weather_what_is_known_stands_in_and_no_close_is_lost(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6).add(X, "weather", "", 5, 7)
    assert history.read(A, "a", 8, 9, V1).rules() == []
    assert history.read(A, "a", 40, 41, V1).rules() == [NOT_CURRENT]
    one = History()
    one.add(X, "weather", "", 5, 7).store(A, "a", 3, 5, 6).server("a", 9, None)
    assert one.rules() == ["is wrong on the server", "was closed well, and is lost"]


def test_where_nothing_stands_in_bad_weather_shows_nothing_old(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 6).add(X, "weather", "", 3, 12)
    history.add(A, "stat", "a", 7, 8, errno=errno.EIO).read(A, "a", 8, 9, V1)
    assert history.rules() == []
    assert history.rules(stand_in={B}) == [NOT_CURRENT]
    # Nor does a change begin with something old.
    one = History()
    one.put("a", 1, 1, 2).put("a", 2, 5, 6).add(X, "weather", "", 3, 12)
    one.patch(A, "a", 9, 7, 8, V1, errno=errno.ESTALE)
    kept = overlaid(V1, (9, 8, 9))
    assert one.rules(kept) == []
    assert one.rules(kept, stand_in={B}) == ["failed", NOT_CURRENT]


def test_the_server_may_be_late_with_what_failed_in_bad_weather(history: History) -> None:
    history.put("a", 1, 1, 2).add(X, "weather", "", 3, 12)
    history.add(A, "unlink", "a", 4, 5, errno=errno.EIO).read(B, "a", 6, 7, V1)
    history.server("a", 9, None)
    assert history.rules() == []
    history.put("a", 2, 11, 12).server("a", 13, None)
    assert history.rules() == ["is wrong on the server"]


def test_a_start_in_bad_weather_shows_what_was_known_before(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 3, 4).read(B, "a", 4, 5, V2)
    history.store(B, "b", 3, 4, 5).tag(B, 7, 4, 5)
    history.add(X, "weather", "", 6, 12).add(B, "kill", "", 7, 8)
    history.read(B, "a", 9, 10, V1).tagged(B, 0, 9, 10)
    history.add(B, "stat", "b", 9, 10, errno=errno.ENOENT)
    assert history.rules() == []
    assert history.rules(stand_in={A}) == [NOT_CURRENT, NOT_ITS_VALUE, THERE]
    # As long as it lives it does not go back, and knows what it has done.
    history.read(B, "a", 9, 10, V2).read(B, "a", 10.1, 11, V1)
    history.tag(B, 8, 9, 10).tagged(B, 7, 10.1, 11)
    assert history.rules() == [NOT_CURRENT, NOT_ITS_VALUE]


def test_a_property_is_what_was_set(history: History) -> None:
    history.put("a", 1, 1, 2).tagged(A, 0, 2, 3).tag(A, 7, 3, 4).tagged(A, 7, 5, 6)
    history.tag(A, 8, 7, 9).tagged(A, 7, 7.5, 8).tagged(A, 8, 8, 8.5).tag(A, 0, 10, 11)
    history.tagged(A, 0, 12, 13).add(X, "tags", "a", 13, 13, key="k", value=0)
    assert history.rules() == []


@pytest.mark.parametrize("value", [0, 6, 8, -1])
@pytest.mark.parametrize("kind", ["tagged", "tags"])
def test_no_other_value_is_shown(history: History, value: int, kind: str) -> None:
    history.put("a", 1, 1, 2).tag(A, 6, 2, 3).tag(A, 7, 4, 5)
    history.add(A, kind, "a", 6, 7, key="k", value=value)
    assert history.rules() == [NOT_ITS_VALUE]


def test_a_property_that_was_set_is_not_lost(history: History) -> None:
    history.put("a", 1, 1, 2).tag(A, 7, 3, 4).store(A, "a", 2, 5, 6)
    assert history.tagged(A, 7, 7, 8).rules() == []
    assert history.tagged(A, 0, 8, 9).rules() == [NOT_ITS_VALUE]


def test_a_property_is_believed_for_the_time_to_live_and_never_goes_back(history: History) -> None:
    history.put("a", 1, 1, 2).tag(A, 7, 3, 4).tag(A, 8, 5, 6).tagged(B, 7, 15, 16)
    assert history.rules() == []
    assert history.tagged(B, 8, 16, 17).tagged(B, 7, 18, 19).rules() == [NOT_ITS_VALUE]
    one = History().put("a", 1, 1, 2).tag(A, 7, 3, 4).tag(A, 8, 5, 6)
    assert one.tagged(B, 7, 21.5, 22).rules() == [NOT_ITS_VALUE]


def test_properties_fail_for_a_reason(history: History) -> None:
    history.put("a", 1, 1, 2).tag(A, 0, 3, 4, errno=errno.ENODATA)
    assert history.rules() == []
    history.tag(A, 7, 5, 6).tag(A, 0, 7, 8, errno=errno.ENODATA)
    history.tag(A, 9, 7, 8, errno=errno.ENODATA)
    history.tagged(A, 0, 7, 8, errno=errno.ENOENT).tagged(A, 0, 7, 8, errno=errno.EIO)
    assert history.rules() == [THERE, THERE, THERE, "failed"]


def test_a_property_may_come_about_in_bad_weather_or_not(history: History) -> None:
    history.put("a", 1, 1, 2).tag(A, 7, 2, 3).add(X, "weather", "", 3.5, 9)
    history.tag(A, 8, 4, 5, errno=errno.ETIMEDOUT).tagged(A, 7, 10, 11).tagged(A, 8, 12, 13)
    assert history.rules() == []
    assert history.tagged(A, 7, 14, 15).rules() == [NOT_ITS_VALUE]
    history.records.pop()
    # What was acknowledged afterwards is not undone.
    history.tag(A, 9, 16, 17).tagged(A, 8, 18, 19)
    assert history.rules() == [NOT_ITS_VALUE]


def test_what_was_synced_may_be_seen(history: History) -> None:
    times = {"sync": 32, "syncing": 5.1, "synced": 5.2}
    history.store(A, "a", 2, 5, 8, closing=7, **times).read(B, "a", 6, 6.5, whole(2, 32))
    assert history.server("a", 9, V2).rules() == []
    assert history.read(B, "a", 6.6, 6.7, whole(2, 40)).rules() == [NOT_CURRENT]


def test_a_folder_that_is_renamed_takes_its_file_along(history: History) -> None:
    for number, seen in ((1, V1), (2, whole(2, 32))):
        assert history.rules() == []
        reply = {"sizes": [64], "chunks": [(0, 72, seen)]}
        history.add(A, "tree", "folder-1", 1, 2, to="folder-2", write=number, **reply)
    assert history.rules() == ["was written while its folder was renamed, and is wrong"]


def test_a_change_replaces_what_it_is_based_on(history: History) -> None:
    history.put("a", 1, 1, 2).patch(B, "a", 9, 5, 8, V1)
    assert history.rules() == []
    history.put("a", 2, 5.1, 5.2)
    assert history.rules() == ["overwrote what came to the server after it was opened"]


def test_what_changes_nothing_is_not_uploaded(history: History) -> None:
    history.put("a", 1, 1, 2).add(X, "delete", "a", 5, 6)
    history.patch(A, "a", 9, 5.5, 8, V1, cut=64).server("a", 9, None)
    assert history.rules() == []


def test_a_change_begins_with_what_the_server_has(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 3, 4).patch(B, "a", 9, 5, 8, V1)
    assert history.rules()[0] == NOT_CURRENT


def test_an_exclusive_creation_asks_the_server(history: History) -> None:
    history.put("a", 1, 1, 2).store(B, "a", 2, 5, 6, mode="exclusive")
    assert history.rules() == [THERE]
    history.records[:1] = []
    assert history.rules() == []
    history.add(A, "write", "b", 5, 6, mode="exclusive", errno=errno.EEXIST, write=4)
    assert history.rules() == ["was not there"]


def test_what_was_refused_is_in_the_journal(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 5.5)
    history.store(A, "a", 3, 4, 6, errno=errno.ESTALE)
    assert history.rules(V3) == []
    assert history.rules() == ["was refused at close, and is not in the journal"]


def test_what_was_closed_well_is_on_the_server(history: History) -> None:
    history.put("a", 1, 1, 2).store(A, "a", 2, 5, 6).server("a", 9, V1)
    assert history.rules() == ["is wrong on the server", "was closed well, and is lost"]
    history.records[-1:] = []
    assert history.put("a", 3, 5.9, 7).server("a", 9, V3).rules() == []


def test_a_close_is_not_lost_to_a_rename(history: History) -> None:
    history.put("a", 1, 1, 2).store(A, "a", 2, 5, 8).add(A, "rename", "a", 6, 7, to="b")
    right = [(V1, None), (V2, None)]
    for b, a in right[1:]:
        one = History()
        one.records = [*history.records]
        assert one.server("a", 9, a).server("b", 9, b).rules() == []
    one = History()
    one.records = [*history.records]
    assert "was closed well, and is lost" in one.server("a", 9, None).server("b", 9, V1).rules()


def test_a_close_may_be_overwritten_by_a_rename_back(history: History) -> None:
    history.store(A, "a", 2, 5, 6).add(A, "rename", "a", 7, 8, to="b").put("a", 3, 9, 10)
    history.add(A, "rename", "a", 11, 12, to="b").server("a", 20, None).server("b", 20, V3)
    assert history.rules() == []


def test_what_was_removed_stays_removed(history: History) -> None:
    history.store(A, "a", 1, 1, 2).add(A, "unlink", "a", 3, 4)
    assert history.read(A, "a", 5, 6, V1).server("a", 9, V1).rules() == [
        NOT_CURRENT,
        "is wrong on the server",
    ]


def test_who_removes_what_is_staged_leaves_what_another_put_there(history: History) -> None:
    history.put("a", 1, 2.5, 2.8).store(A, "a", 2, 2, 6).add(A, "unlink", "a", 3, 4)
    assert history.read(A, "a", 7, 8, V1).server("a", 9, V1).rules() == []


def test_a_rename_moves_what_may_be_there(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 5, 7).add(B, "rename", "a", 6, 6.5, to="b")
    history.add(A, "rename", "b", 6.2, 6.7, to="a")
    for content in (V1, V2):
        history.read(A, "b", 6.3, 6.4, content)
    assert history.rules() == []
    assert history.read(A, "b", 6.3, 6.4, V3).rules() == [NOT_CURRENT]


def test_what_a_mount_renames_is_what_it_believed_of_it(history: History) -> None:
    history.put("a", 1, 1, 2).put("a", 2, 3, 4).add(B, "rename", "a", 5, 6, to="b")
    assert history.read(B, "b", 7, 8, V1).read(B, "b", 8, 9, V2).rules() == []
    assert history.read(A, "b", 7, 8, V1).rules() == [NOT_CURRENT]


def test_a_move_whose_answer_was_lost_may_be_taken_for_another_one_of_the_same(
    history: History,
) -> None:
    history.put("a", 1, 1, 2).add(A, "rename", "a", 3, 4, to="b")
    history.add(B, "rename", "a", 5, 6, to="b").read(B, "b", 7, 8, V1).server("b", 9, V1)
    assert "was moved, and was not there" in history.rules()
    history.add(X, "weather", "", 5, 6)
    assert history.rules() == []
    history.put("b", 2, 4.1, 4.9)
    assert "was moved, and was not there" in history.rules()


def test_a_killed_upload_may_come_later_but_over_nothing_newer(history: History) -> None:
    history.put("a", 1, 1, 2).store(B, "a", 2, 3, 5, errno=errno.ENOTCONN)
    history.add(B, "kill", "", 4.5, 6).server("a", 9, V2)
    assert history.rules() == []
    history.put("a", 3, 7, 8)
    assert history.rules() == ["is wrong on the server"]


def test_listings(history: History) -> None:
    history.put("a", 1, 1, 2).put("b", 2, 5, 6)
    history.add(A, "list", "", 5.5, 5.6, names=["a", "keep"])
    assert history.rules() == []
    history.add(A, "list", "", 7, 8, names=["b", "c", "folder-9"])
    assert history.rules() == ["lacks a", "shows c, which was not there"]


def test_a_size_is_one_of_a_version(history: History) -> None:
    history.put("a", 1, 1, 2, size=800).add(A, "stat", "a", 3, 4, size_=0)
    history.records[-1] = Record(9, A, "stat", "a", {"start": 3, "end": 4, "size": 808})
    assert history.rules() == ["has a size that no version had"]


def test_the_cost_stays_small(history: History) -> None:
    """What an earlier judge did not survive: many renames at once, all of whose orders may be."""
    for number in range(100):
        path, to = ("a", "b") if number % 2 else ("b", "c")
        history.put("a", number + 1, number, number + 30)
        history.add(A, "rename", path, number, number + 30, to=to)
        history.add(B, "rename", "c", number, number + 30, to="a")
        history.read(B, "c", number, number + 30, whole(1, 64))
    assert set(history.rules()) <= {NOT_CURRENT, THERE}
