"""What is kept of answers: written, read back, held against a model, damaged."""

import base64
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jfs.config import Credentials, Secret
from jfs.credentials import credentials_from
from jfs.errors import CacheError
from jfs.model import Checksums, EntryInfo, FileInfo, FolderInfo, RepoPath
from jfs.vfs.kept import identity
from jfs.vfs.kept.database import Database
from jfs.vfs.kept.learnt import Answered, Known, Learnt, Listed, Moved, Named, Outdated, Tagged

REPO = RepoPath("ml-models-local")
FOLDER = REPO.child("llm")
SHA256 = "a" * 64


def file(path: RepoPath, size: int = 5, sha256: str | None = SHA256) -> FileInfo:
    return FileInfo(path, size, Checksums(sha256, "b" * 40, "c" * 32), 1_700_000_000_000_000_000)


def folder(path: RepoPath) -> FolderInfo:
    return FolderInfo(path, 1_700_000_000_000_000_000, 1)


def listed(database: Database, path: RepoPath) -> dict[str, EntryInfo] | None:
    known = database.listing(path)
    return {info.path.name: info for info in known.value} if known else None


@pytest.mark.parametrize(
    "info",
    [
        file(FOLDER.child("a.bin")),
        file(FOLDER.child("a.bin"), sha256=None),
        replace(
            file(FOLDER.child("模型.gguf"), 2**62, "not hex"),
            created_by="ann",
            modified_by="bob",
            mime_type="text/x",
            link_target="../b",
            created_ns=-5,
        ),
        FileInfo(FOLDER.child("x"), 0, Checksums("ABCDEF"), 0),
        folder(FOLDER.child("v1")),
        FolderInfo(FOLDER.child("v2"), 0, listed=False),
    ],
)
def test_an_entry_is_read_back_as_it_was(tmp_path: Path, info: EntryInfo) -> None:
    with_all = Database(tmp_path / "kept")
    with_all.save([Listed(FOLDER, 10, [info])])
    alone = Database(tmp_path / "alone")
    alone.save([Named(info.path, 10, info)])
    for database in (with_all, alone, Database(tmp_path / "kept"), Database(tmp_path / "alone")):
        assert database.name(info.path, lists_all=True) == Known(info, 10)
        assert database.last_ns() == 10
    assert with_all.listing(FOLDER) == Known([info], 10)
    assert alone.listing(FOLDER) is None


def test_what_was_never_asked_is_not_known(tmp_path: Path) -> None:
    database = Database(tmp_path / "kept")
    with pytest.raises(CacheError):
        database.listing(FOLDER)
    database.save([Named(FOLDER.child("a"), 10, None), Listed(REPO, 11, [folder(FOLDER)])])
    assert database.name(FOLDER.child("b"), lists_all=True) is None
    assert database.name(FOLDER.child("a"), lists_all=False) == Known(None, 10)
    assert database.name(REPO.child("b"), lists_all=True) == Known(None, 11)
    assert database.name(REPO.child("b"), lists_all=False) is None  # a remote repository's
    assert database.properties(FOLDER.child("a")) is None
    assert database.answer("search x") is None


def test_text_that_utf8_cannot_hold_costs_itself_alone(tmp_path: Path) -> None:
    odd = replace(file(FOLDER.child("a")), created_by="\ud800", mime_type="text/plain")
    database = Database(tmp_path / "kept")
    tags = {"k\ud800": ("v\udfff", "ü")}
    database.save([Listed(FOLDER, 10, [odd]), Tagged(FOLDER, 11, {"a": tags})])
    assert database.listing(FOLDER) == Known([replace(odd, created_by=None)], 10)
    assert database.properties(FOLDER.child("a")) == Known(tags, 11)


def test_the_later_answer_wins_whole_whoever_writes_it_first(tmp_path: Path) -> None:
    """Two mounts of one source: never a mix of what they were told."""
    one, other = Database(tmp_path / "kept"), Database(tmp_path / "kept")
    earlier = [file(FOLDER.child(name)) for name in ("a", "b")]
    later = [file(FOLDER.child(name), 7) for name in ("b", "c")]
    for first, second in (((10, earlier), (20, later)), ((40, later), (30, earlier))):
        one.save([Listed(FOLDER, *first)])
        other.save([Listed(FOLDER, *second)])
        for database in (one, other):
            assert listed(database, FOLDER) == {info.path.name: info for info in later}
    one.save([Named(FOLDER.child("c"), 50, None)])
    other.save([Listed(FOLDER, 45, later)])  # asked before it was removed
    assert listed(one, FOLDER) == {"b": later[0]}
    other.save([Listed(FOLDER, 60, later)])
    assert listed(one, FOLDER) == {"b": later[0], "c": later[1]}


def test_what_a_clock_ahead_of_time_has_written_is_replaced(tmp_path: Path) -> None:
    database = Database(tmp_path / "kept")
    future = time.time_ns() + 10**18
    database.save([Listed(FOLDER, future, [file(FOLDER.child("a"))])])
    database.save([Named(FOLDER.child("x"), future, file(FOLDER.child("x")))])
    now = time.time_ns()
    database.save([Listed(FOLDER, now, [file(FOLDER.child("b"))])])
    assert listed(database, FOLDER) == {"b": file(FOLDER.child("b"))}
    assert database.listing(FOLDER) == Known([file(FOLDER.child("b"))], now)


def test_what_is_gone_takes_all_below_along(tmp_path: Path) -> None:
    database = Database(tmp_path / "kept")
    inside = FOLDER.child("v1")
    known: list[Learnt] = [
        Listed(REPO, 10, [folder(FOLDER)]),
        Listed(FOLDER, 10, [folder(inside)]),
        Listed(inside, 10, [file(inside.child("a"))]),
        Tagged(FOLDER, 10, {"v1": {"k": ("v",)}}),
    ]
    database.save(known)
    database.save([Named(FOLDER, 20, None)])
    assert database.listing(inside) is None
    assert database.listing(FOLDER) is None
    database.save([replace(each, at_ns=30) for each in known])
    assert listed(database, inside) == {"a": file(inside.child("a"))}
    database.save([Listed(FOLDER, 40, [])])
    assert database.listing(inside) is None
    assert database.properties(inside) is None


def test_a_moved_folder_is_known_at_its_new_place(tmp_path: Path) -> None:
    database = Database(tmp_path / "kept")
    before, after = FOLDER.child("v1"), FOLDER.child("v2")
    other = FOLDER.child("v10")  # begins alike, and lies elsewhere
    database.save(
        [
            Listed(FOLDER, 10, [folder(before), folder(other)]),
            Listed(before, 10, [file(before.child("a"))]),
            Listed(other, 10, []),
            Listed(after, 9, [file(after.child("old"))]),
            Tagged(FOLDER, 10, {"v1": {"k": ("v",)}}),
            Moved(before, 20, folder(after)),
        ]
    )
    assert listed(database, FOLDER) == {"v10": folder(other), "v2": folder(after)}
    assert listed(database, after) == {"a": file(after.child("a"))}
    assert listed(database, other) == {}
    assert database.listing(before) is None
    assert database.properties(after) == Known({"k": ("v",)}, 10)
    assert database.properties(before) is None


def test_searches_are_not_known_once_something_was_changed(tmp_path: Path) -> None:
    database = Database(tmp_path / "kept")
    database.save([Answered("search a", 5, lambda: "[1]"), Answered("repositories", 5, lambda: "")])
    assert database.answer("search a") == Known("[1]", 5)
    database.save([Outdated(6, "search ")])
    assert database.answer("search a") is None
    assert database.answer("repositories") == Known("", 5)


NAMES = st.sampled_from("abc")
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("list"), st.sets(NAMES), st.integers(1, 3)),
        st.tuples(st.just("put"), NAMES, st.integers(1, 3)),
        st.tuples(st.just("remove"), NAMES, st.none()),
        st.tuples(st.just("move"), st.tuples(NAMES, NAMES), st.none()),
    ),
    max_size=8,
)


@settings(max_examples=30)
@given(EVENTS)
def test_whatever_is_learnt_in_turn_is_known(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, object, int]]
) -> None:
    database = Database(tmp_path_factory.mktemp("kept") / "kept")
    database.save([Listed(FOLDER, 1, [])])
    model: dict[str, EntryInfo] = {}
    for at, (kind, what, size) in enumerate(events, 2):
        if kind == "list":
            assert isinstance(what, set)
            model = {name: file(FOLDER.child(name), size) for name in what}
            database.save([Listed(FOLDER, at, list(model.values()))])
        elif kind == "put":
            assert isinstance(what, str)
            model[what] = file(FOLDER.child(what), size)
            database.save([Named(FOLDER.child(what), at, model[what])])
        elif kind == "remove":
            assert isinstance(what, str)
            model.pop(what, None)
            database.save([Named(FOLDER.child(what), at, None)])
        else:
            assert isinstance(what, tuple)
            source, target = what
            if source in model and source != target:
                info = replace(model.pop(source), path=FOLDER.child(target))
                model[target] = info
                database.save([Moved(FOLDER.child(source), at, info)])
        assert listed(database, FOLDER) == model
        for name in "abc":
            known = database.name(FOLDER.child(name), lists_all=True)
            assert known is not None
            assert known.value == model.get(name)


def filled(path: Path) -> tuple[Database, dict[str, EntryInfo]]:
    entries = {f"f{n:04}": file(FOLDER.child(f"f{n:04}"), n, f"{n:064x}") for n in range(600)}
    database = Database(path)
    database.save(
        [
            Listed(FOLDER, 10, list(entries.values())),
            Tagged(FOLDER, 10, {name: {"name": (name,)} for name in entries}),
            Answered("search a", 10, lambda: "[]" * 100),
        ]
    )
    database.close()
    return database, entries


def asked(
    database: Database, name: str, entries: dict[str, EntryInfo]
) -> list[tuple[Callable[[], object], object]]:
    """Questions to a database that was filled, and the right answers."""
    place, missing = FOLDER.child(name), FOLDER.child("none")
    return [
        (lambda: listed(database, FOLDER), entries),
        (lambda: database.name(place, lists_all=True), Known(entries[name], 10)),
        (lambda: database.name(missing, lists_all=True), Known(None, 10)),
        (lambda: database.properties(place), Known({"name": (name,)}, 10)),
        (lambda: database.answer("search a"), Known("[]" * 100, 10)),
    ]


def test_damage_is_never_believed(
    tmp_path: Path, expected_logs: list[str], scale: Callable[[int, int], int]
) -> None:
    """Whatever byte of the file is another: the right answer, or none."""
    expected_logs.append("is damaged: what was known from earlier mounts is dropped")
    path = tmp_path / "kept"
    _, entries = filled(path)
    whole = path.read_bytes()
    drawn = random.Random(14)
    dropped = 0
    for _ in range(scale(40, 5000)):
        damaged = bytearray(whole)
        start = drawn.randrange(len(whole))
        for place in range(start, min(len(whole), start + drawn.choice([1, 1, 64, 5000]))):
            damaged[place] ^= drawn.randrange(1, 256)
        path.write_bytes(damaged)
        name = drawn.choice(list(entries))
        for question, right in asked(Database(path), name, entries):
            try:
                assert question() in (right, None)
            except CacheError:
                dropped += not path.exists()
    assert dropped


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"x" * 5000])
def test_a_file_that_is_no_database_is_dropped(
    tmp_path: Path, content: bytes, expected_logs: list[str]
) -> None:
    expected_logs.append("is damaged")
    path = tmp_path / "kept"
    path.write_bytes(content)
    database = Database(path)
    with pytest.raises(CacheError):
        database.listing(FOLDER)
    for _ in range(2):  # the first may be what finds out
        try:
            database.save([Listed(FOLDER, 10, [])])
        except CacheError:
            continue
        break
    assert database.listing(FOLDER) == Known([], 10)


def test_it_is_private_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    database, entries = filled(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert listed(database, FOLDER) == entries
    path.unlink()
    with pytest.raises(CacheError):
        database.listing(FOLDER)
    database.save([Listed(REPO, 11, [])])
    assert database.listing(REPO) == Known([], 11)


def test_what_was_confirmed_longest_ago_makes_room(tmp_path: Path) -> None:
    database = Database(tmp_path / "kept", bound=400_000)
    for number in range(40):
        place = REPO.child(f"v{number}")
        entries = [file(place.child(f"f{n:03}")) for n in range(100)]
        database.save([Listed(place, 10 + number, entries)])
    assert database.listing(REPO.child("v0")) is None
    assert database.listing(REPO.child("v39")) is not None
    assert (tmp_path / "kept").stat().st_size < 600_000


def test_missing_names_are_bounded(tmp_path: Path) -> None:
    database = Database(tmp_path / "kept")
    database.save([Named(FOLDER.child(f"n{n}"), 10 + n, None) for n in range(1500)])
    assert database.name(FOLDER.child("n0"), lists_all=False) is None
    assert database.name(FOLDER.child("n1499"), lists_all=False) == Known(None, 1509)


def test_what_is_stopped_leaves_what_was_there(tmp_path: Path) -> None:
    database, entries = filled(tmp_path / "kept")
    fresh = [file(FOLDER.child(f"g{n}")) for n in range(3000)]
    calls = iter([False, False, True])
    database.save([Listed(FOLDER, 20, fresh)], stop=lambda: next(calls, True))
    assert listed(database, FOLDER) == entries


def jwt(subject: str, serial: int = 0) -> str:
    def part(claims: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")

    return ".".join([part({"alg": "none"}), part({"sub": subject, "jti": serial}), "c2ln"])


def named(key: bytes, credentials: Credentials) -> str:
    return identity.name_of(key, "http://s/artifactory", REPO, identity.user_of(credentials))


def test_metadata_are_one_users(tmp_path: Path) -> None:
    key = identity.key_in(tmp_path)
    assert identity.key_in(tmp_path) == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    opaque, other_file = tmp_path / "opaque", tmp_path / "other"
    opaque.write_text("secret-one")
    other_file.write_text("secret-one")
    who = [
        Credentials(),
        Credentials(user="ann", password=Secret("p")),
        Credentials(user="bob", password=Secret("p")),
        Credentials(token=Secret("secret-one")),
        Credentials(token=Secret("secret-two")),
        Credentials(token=Secret(jwt("ann"))),
        Credentials(token=Secret(jwt("bob"))),
        credentials_from({}, opaque),
        credentials_from({}, other_file),
    ]
    names = [named(key, each) for each in who]
    assert len(set(names)) == len(who)
    assert not [name for name in names if "secret" in name or "ann" in name]
    assert identity.name_of(key, "http://t/artifactory", REPO, "nobody") != names[0]
    assert identity.name_of(os.urandom(32), "http://s/artifactory", REPO, "nobody") != names[0]


@pytest.mark.parametrize("token", [lambda n: jwt("ann", n), lambda n: f"opaque-{n}"])
def test_a_token_that_is_rotated_in_place_finds_its_metadata(
    tmp_path: Path, token: Callable[[int], str]
) -> None:
    path, key = tmp_path / "token", identity.key_in(tmp_path)
    path.write_text(token(1))
    credentials = credentials_from({}, path)
    before = named(key, credentials)
    path.write_text(token(2))
    assert named(key, credentials) == named(key, credentials_from({}, path)) == before
    path.write_text("")  # for a moment
    assert named(key, credentials) == before


@pytest.mark.parametrize("token", ["a.b.c", "..", "a.W10.c", f"a.{'W' * 9000}.c", "a.!!!.c"])
def test_what_only_looks_like_a_jwt_is_a_token(token: str) -> None:
    assert identity.user_of(Credentials(token=Secret(token))) == f"token {token}"


def test_a_key_that_was_cut_is_made_anew(tmp_path: Path) -> None:
    key = identity.key_in(tmp_path)
    (tmp_path / "key").write_bytes(key[:5])
    assert len(identity.key_in(tmp_path)) == 32
