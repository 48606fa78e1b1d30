"""A rename that is refused leaves both names as they were; one that is done is not called refused.

Every request that a rename makes is refused in turn, and the server is compared with what it was.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import ANY

import pytest

from jfs.errors import JfsError, NoEntry
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.filesystem import Caller, Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import composed, content, find
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
_MOST_REQUESTS = 20  # of one rename


@dataclass(frozen=True)
class Scenario:
    """One rename in a folder of its own.

    Attributes:
        make: puts things there.
        names: old and new, below the folder.
        open_new: the old name is that of a file that is open and was never uploaded.
        may_lack: what may be missing after a rename that was done all the same.
    """

    make: Callable[[EmbeddedServer, Requests, str], None]
    names: tuple[str, str]
    open_new: bool = False
    may_lack: frozenset[str] = frozenset()


def _file_over_tagged(server: EmbeddedServer, ask: Requests, top: str) -> None:
    server.deploy(REPO, f"{top}/f", b"old", {"env": ["production"], "n": ["1"]})
    server.deploy(REPO, f"{top}/f.tmp", b"newer")


def _tagged(server: EmbeddedServer, ask: Requests, top: str) -> None:
    server.deploy(REPO, f"{top}/f", b"old", {"env": ["production"]})


def _folder_over_tagged(server: EmbeddedServer, ask: Requests, top: str) -> None:
    server.deploy(REPO, f"{top}/new/f", b"1", {"env": ["staging"]})
    assert ask.put(f"/{REPO}/{top}/old/").status == 201
    assert ask.put(f"/api/storage/{REPO}/{top}/old?properties=team=nlp&recursive=0").status == 204


def _last_of_its_folder(server: EmbeddedServer, ask: Requests, top: str) -> None:
    server.deploy(REPO, f"{top}/a/f", b"1")
    server.deploy(REPO, f"{top}/b/f", b"old", {"env": ["production"]})
    assert ask.put(f"/api/storage/{REPO}/{top}/a?properties=team=nlp&recursive=0").status == 204


SCENARIOS = {
    "a file over a tagged one": Scenario(_file_over_tagged, ("f.tmp", "f")),
    "an open file over a tagged one": Scenario(_tagged, ("f.tmp", "f"), open_new=True),
    "a folder over an empty one": Scenario(_folder_over_tagged, ("new", "old")),
    "the last of its folder": Scenario(
        _last_of_its_folder, ("a/f", "b/f"), may_lack=frozenset({"a"})
    ),
}


def _there(ask: Requests, top: str) -> dict[str, object]:
    """Return what is on the server below a folder: size, properties, and the content's digest."""
    found: dict[str, object] = {}
    for name, size in ask.tree(f"/{top}").items():
        facts = ask.get(f"/api/storage/{REPO}/{top}{name}").json()
        found[name.strip("/")] = size, ask.properties(f"{top}{name}"), facts.get("checksums")
    return found


async def _shown(fs: Filesystem, path: str) -> tuple[int, int, int] | None:
    """Return number, mode and size of what has the name; None: nothing has."""
    try:
        found = await fs.getattr(await find(fs, path))
    except NoEntry:
        return None
    return found.ino, found.mode, found.size


async def _rename(ask: Requests, scenario: Scenario, top: str, fault: Fault | None) -> bool:
    """Rename in a folder of its own; return whether that was said to be done."""
    scenario.make(ask.server, ask, top)
    async with composed(ask.server, f"{REPO}/{top}") as fs:
        old, new = (name.rpartition("/") for name in scenario.names)
        opened = None
        if scenario.open_new:
            opened, _ = await fs.create(ROOT, old[2], 0o600, os.O_WRONLY, ME)
            await fs.write(opened.handle, 0, b"newer")
        folders = await find(fs, old[0]), await find(fs, new[0])
        before = [await _shown(fs, name) for name in scenario.names]
        if fault is not None:
            ask.server.faults.add(fault)
        try:
            await fs.rename(folders[0], old[2], folders[1], new[2], 0)
            done = True
        except JfsError:
            done = False
        finally:
            ask.server.faults.clear()
        after = [await _shown(fs, name) for name in scenario.names]
        assert after == ([None, before[0]] if done else before)
        if opened is not None:
            await fs.flush(opened.handle)
            await fs.release(opened.handle)
    return done


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
async def test_every_request_of_a_rename_is_refused_in_turn(
    ask: Requests, scenario: Scenario, expected_logs: list[str]
) -> None:
    expected_logs += ["after a rename: 403"]
    scenario.make(ask.server, ask, "before")
    before = _there(ask, "before")
    assert await _rename(ask, scenario, "whole", None)
    whole = _there(ask, "whole")
    for number in range(_MOST_REQUESTS):
        top = f"refused-{number}"
        fault = Fault.status(403, after=number, times=1)
        done = await _rename(ask, scenario, top, fault)
        there = _there(ask, top)
        if scenario.open_new and not done:  # then it was closed under its old name
            assert there.pop(scenario.names[0]) == (5, {}, ANY)
        if done:
            lost = {name for name, facts in whole.items() if there.get(name) != facts}
            assert lost <= scenario.may_lack
        else:
            assert there == before
        if not fault.hits:
            assert done
            return
    pytest.fail("a rename makes too many requests")


async def test_a_rename_without_an_answer_is_looked_at_anew(ask: Requests) -> None:
    """The server carried it out, could not say so, and answers nonsense when it is asked."""
    ask.server.deploy(REPO, "f", b"1")
    async with composed(ask.server, REPO) as fs:
        await find(fs, "f")
        ask.server.faults.add(Fault.drop("/api/move/*"))
        ask.server.faults.add(Fault.garbage(f"/api/storage/{REPO}/f"))
        with pytest.raises(JfsError):
            await fs.rename(ROOT, "f", ROOT, "g", 0)
        ask.server.faults.clear()
        assert ask.tree() == {"/g": 1}
        assert await _shown(fs, "f") is None
        assert await content(fs, "g") == b"1"


async def test_a_folder_whose_last_file_is_a_row_stays_when_that_is_moved_away(
    ask: Requests,
) -> None:
    """Memory was short: then a row is all that is kept of a file, also of an only one."""
    _last_of_its_folder(ask.server, ask, "top")
    async with composed(ask.server, f"{REPO}/top") as fs:
        old, new = await find(fs, "a"), await find(fs, "b")
        await find(fs, "a/f")
        await fs.holdings.pack()
        await fs.rename(old, "f", new, "f", 0)
    assert ask.properties("top/a") == {"team": ["nlp"]}
    assert ask.tree("/top") == {"/a": -1, "/b": -1, "/b/f": 1}
