"""Several who ask at once: one question on the wire, and nobody waits for what others ask."""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from jfs.config import TreeSettings
from jfs.errors import AccessDenied, JfsError, NoEntry, Replaced
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.attributes.stat import Caller
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import TREE, composed, content, find, names
from tests.component.server_requests import REPO, Requests

ME = Caller(os.getuid(), os.getgid())
MANY = 8
NOTHING_BELIEVED = replace(TREE, entry_ttl_s=0, attr_ttl_s=0, negative_ttl_s=0)
FILES = tuple(f"f{number}.bin" for number in range(12))
FOLDER = f"/api/storage/{REPO}/d"


@pytest.fixture
def models(server: EmbeddedServer) -> EmbeddedServer:
    for name in FILES:
        server.deploy(REPO, f"d/{name}", name.encode(), {"env": ["production"], "name": [name]})
    server.deploy(REPO, "e/g.bin", b"g", {"env": ["staging"]})
    return server


async def until_hit(fault: Fault) -> None:
    await trio.to_thread.run_sync(fault.wait_hit)


@asynccontextmanager
async def outcomes(*asked: Awaitable[object]) -> AsyncIterator[list[object]]:
    """Ask all at once; answers and errors are complete at the end."""
    heard: list[object] = [None] * len(asked)

    async def hear(index: int, question: Awaitable[object]) -> None:
        try:
            heard[index] = await question
        except JfsError as error:
            heard[index] = error

    async with trio.open_nursery() as nursery:
        for index, question in enumerate(asked):
            nursery.start_soon(hear, index, question)
        yield heard


async def shown(fs: Filesystem, ino: int) -> set[str]:
    """List a folder by its number."""
    handle = await fs.opendir(ino)
    found = {name for name, _, _ in fs.readdir(handle, 0)}
    fs.releasedir(handle)
    return found


async def number(fs: Filesystem, ino: int, name: str) -> int:
    return (await fs.lookup(ino, name)).ino


Question = Callable[[Filesystem, int], Awaitable[object]]

# What is asked about, how, and how many requests it costs: a selector is a name that is not there,
# a query, and a listing.
QUESTIONS: dict[str, tuple[str, Question, int]] = {
    "a name": ("d", lambda fs, ino: number(fs, ino, FILES[0]), 1),
    "a missing name": ("d", lambda fs, ino: number(fs, ino, "missing"), 1),
    "a listing": ("d", shown, 1),
    "attributes": (f"d/{FILES[0]}", lambda fs, ino: fs.getattr(ino), 1),
    "properties": (f"d/{FILES[0]}", lambda fs, ino: fs.listxattr(ino), 1),
    "a query": (".by/env=production", shown, 1),
    "a selector": ("d", lambda fs, ino: number(fs, ino, f"@name={FILES[1]}"), 3),
}


@pytest.mark.parametrize("what", QUESTIONS)
async def test_one_question_for_all_who_ask_at_once(models: EmbeddedServer, what: str) -> None:
    path, ask, cost = QUESTIONS[what]
    async with composed(models, REPO, tree=NOTHING_BELIEVED) as fs:
        ino = await find(fs, path)
        models.stats.reset()
        hold = models.faults.add(Fault.hold())
        async with outcomes(*(ask(fs, ino) for _ in range(MANY))) as heard:
            await until_hit(hold)
            await trio.testing.wait_all_tasks_blocked(0.02)
            hold.release()
        assert models.stats.requests == cost
        assert len({repr(each) for each in heard}) == 1
        assert isinstance(heard[0], NoEntry) == (what == "a missing name")
        with contextlib.suppress(NoEntry):  # whoever asks later asks anew
            await ask(fs, ino)
        assert models.stats.requests == 2 * cost


@pytest.mark.parametrize("what", ["properties", "a query"])
async def test_a_failure_is_shared_by_those_who_waited_alone(
    models: EmbeddedServer, what: str
) -> None:
    path, ask, _ = QUESTIONS[what]
    async with composed(models, REPO) as fs:
        ino = await find(fs, path)
        models.stats.reset()
        models.faults.add(Fault.status(403, times=1))
        async with outcomes(*(ask(fs, ino) for _ in range(MANY))) as heard:
            pass
        assert {type(each) for each in heard} == {AccessDenied}
        assert models.stats.requests == 1
        assert await ask(fs, ino)
        assert models.stats.requests == 2


async def test_a_caller_that_is_cancelled_takes_the_answer_from_nobody(
    models: EmbeddedServer,
) -> None:
    async with composed(models, REPO) as fs:
        ino = await find(fs, "d")
        hold = models.faults.add(Fault.hold())
        impatient = trio.CancelScope()

        async def give_up() -> None:
            with impatient:
                await shown(fs, ino)

        async with outcomes(give_up()):
            await until_hit(hold)
            async with outcomes(shown(fs, ino)) as heard:
                await trio.testing.wait_all_tasks_blocked(0.02)
                impatient.cancel()
                await trio.testing.wait_all_tasks_blocked(0.02)
                hold.release()
        assert heard == [set(FILES)]
        assert hold.hits == 1


@pytest.mark.parametrize("what", ["a name", "a listing", "properties", "a query"])
async def test_what_was_asked_before_a_refresh_is_not_believed_after_it(
    models: EmbeddedServer, what: str
) -> None:
    """The answer is made, and held back; then things change, and somebody refreshes."""
    ask = Requests(models)
    async with composed(models, REPO) as fs:
        path, question, _ = QUESTIONS[what]
        ino = await find(fs, path)
        stall = models.faults.add(Fault.stall(times=1))
        async with outcomes(question(fs, ino)):
            await until_hit(stall)
            assert ask.delete(f"/{REPO}/d/{FILES[0]}").status == 204
            if what == "properties":
                models.deploy(REPO, f"d/{FILES[0]}", b"without")
            else:
                models.deploy(REPO, "d/new.bin", b"new", {"env": ["production"]})
            await fs.refresh(ROOT)
            stall.release()
        if what == "properties":
            assert await fs.listxattr(ino) == []
            return
        now = {*FILES[1:], "new.bin"}
        assert set(await names(fs, "d")) == now
        with pytest.raises(NoEntry):
            await find(fs, f"d/{FILES[0]}")
        assert set(await names(fs, ".by/env=production/d")) == now


async def test_what_is_changed_here_beats_what_was_asked_before(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        folder = await find(fs, "d")
        first = await number(fs, folder, FILES[0])
        await number(fs, folder, FILES[1])
        stall = models.faults.add(Fault.stall(FOLDER, times=1))
        async with outcomes(shown(fs, folder)) as heard:
            await until_hit(stall)  # the listing, from before all that follows
            await fs.unlink(folder, FILES[0])
            await fs.rename(folder, FILES[1], folder, "renamed.bin", 0)
            await fs.mkdir(folder, "made", 0o755, ME)
            opened, _ = await fs.create(folder, "local.bin", 0o644, os.O_WRONLY, ME)
            stall.release()
        now = {*FILES[2:], "renamed.bin", "made", "local.bin"}
        assert heard == [now]
        assert await shown(fs, folder) == now
        for gone in FILES[:2]:
            with pytest.raises(NoEntry):
                await fs.lookup(folder, gone)
        fs.forget(first, 1)
        with pytest.raises(NoEntry):
            await fs.getattr(first)
        await fs.flush(opened.handle)
        await fs.release(opened.handle)


async def test_a_name_that_is_removed_while_it_is_asked_for_stays_removed(
    models: EmbeddedServer,
) -> None:
    async with composed(models, REPO, tree=replace(TREE, attr_ttl_s=0)) as fs:
        folder = await find(fs, "d")
        ino = await number(fs, folder, FILES[0])
        stall = models.faults.add(Fault.stall(f"{FOLDER}/{FILES[0]}", times=1))
        async with outcomes(fs.getattr(ino), fs.getattr(ino)) as heard:
            await until_hit(stall)
            await fs.unlink(folder, FILES[0])
            stall.release()
        assert {type(each) for each in heard} == {Replaced}  # the kernel looks the name up again
        with pytest.raises(NoEntry):
            await fs.lookup(folder, FILES[0])


async def test_what_another_put_at_a_name_that_is_being_removed_is_gone_with_it(
    models: EmbeddedServer,
) -> None:
    async with composed(models, REPO) as fs:
        folder = await find(fs, "d")
        await number(fs, folder, FILES[0])
        hold = models.faults.add(Fault.hold(f"/{REPO}/d/{FILES[0]}", method="DELETE"))
        async with outcomes(fs.unlink(folder, FILES[0])) as heard:
            await until_hit(hold)
            models.deploy(REPO, f"d/{FILES[0]}", b"put by another")
            await fs.refresh(folder)
            assert (await fs.lookup(folder, FILES[0])).size == len(b"put by another")
            hold.release()
        assert heard == [None]
        with pytest.raises(NoEntry):
            await fs.lookup(folder, FILES[0])
        assert FILES[0] not in await shown(fs, folder)


async def test_what_is_cached_is_answered_while_something_else_is_asked(
    models: EmbeddedServer,
) -> None:
    async with composed(models, REPO) as fs:
        known = {path: await find(fs, path) for path in ("d", ".by/env=production", ".by")}
        before = [await shown(fs, known["d"]), await shown(fs, known[".by/env=production"])]
        file = await number(fs, known["d"], FILES[0])
        properties = await fs.listxattr(file)
        slow = await number(fs, known[".by"], "slow=query")
        hold = models.faults.add(Fault.hold())
        async with outcomes(shown(fs, slow), find(fs, "e")):
            await until_hit(hold)
            with trio.fail_after(10):
                assert [
                    await shown(fs, known["d"]),
                    await shown(fs, known[".by/env=production"]),
                ] == before
                await fs.getattr(file)
                await fs.getattr(ROOT)
                assert await fs.listxattr(file) == properties
            hold.release()


async def test_a_refusal_of_one_folder_says_nothing_about_others(models: EmbeddedServer) -> None:
    async with composed(models, REPO) as fs:
        here, there = await names(fs, "e"), await names(fs, "d")
        models.faults.add(Fault.status(403, "/api/search/aql", times=1))
        assert await fs.listxattr(here["g.bin"]) == [b"user.env"]  # asked by itself
        models.stats.reset()
        for ino in there.values():
            assert await fs.listxattr(ino) == [b"user.env", b"user.name"]
    assert models.stats.requests == 1


@pytest.mark.parametrize("how", ["refused", "slow"])
async def test_names_are_found_in_a_folder_that_cannot_be_listed(
    models: EmbeddedServer, how: str
) -> None:
    """A folder of a million entries, or one that only its files may be read of."""
    models.faults.add(
        Fault.status(403, FOLDER) if how == "refused" else Fault.hold(FOLDER, after=1)
    )
    async with composed(models, f"{REPO}/d" if how == "refused" else REPO) as fs:
        folder = ROOT if how == "refused" else await find(fs, "d")
        for name in FILES:
            await fs.lookup(folder, name)
        with pytest.raises(NoEntry):
            await fs.lookup(folder, "missing")
        models.faults.clear()


@pytest.mark.parametrize(
    "tree",
    [
        NOTHING_BELIEVED,
        replace(TREE, entry_ttl_s=0),
        replace(TREE, attr_ttl_s=0),
        replace(TREE, negative_ttl_s=0),
        replace(TREE, entry_ttl_s=1e-6, attr_ttl_s=1e-6),
    ],
    ids=["nothing", "names", "attributes", "missing names", "hardly"],
)
@pytest.mark.parametrize("source", ["", REPO])
async def test_what_is_there_is_found_however_little_is_believed(
    models: EmbeddedServer, tree: TreeSettings, source: str
) -> None:
    async with composed(models, source, tree=tree) as fs:
        folder = "d" if source else f"{REPO}/d"
        for name in FILES:
            assert await content(fs, f"{folder}/{name}") == name.encode()
        assert set(await names(fs, folder)) == set(FILES)
        ino = await find(fs, folder)
        for _ in range(5):
            with pytest.raises(NoEntry):
                await fs.lookup(ino, "late.bin")
        models.deploy(REPO, "d/late.bin", b"late")
        if not tree.negative_ttl_s:
            assert await content(fs, f"{folder}/late.bin") == b"late"


async def test_an_open_listing_keeps_what_is_still_there(models: EmbeddedServer) -> None:
    """However often the folder is listed, and whatever the kernel forgets, while it is read."""
    many = [f"m{count:03}" for count in range(300)]
    for name in many:
        models.deploy(REPO, f"many/{name}", b"x")
    async with composed(models, REPO) as fs:
        inodes = await names(fs, "many")
        folder = await find(fs, "many")
        handle = await fs.opendir(folder)
        first = fs.readdir(handle, 0)
        last = [name for name in many if name not in {name for name, _, _ in first}]
        assert len(last) > 3
        await fs.refresh(folder)
        for ino in inodes.values():
            fs.forget(ino, 1)
        await fs.unlink(folder, last[0])
        models.deploy(REPO, f"many/{last[1]}", b"other content")
        Requests(models).delete(f"/{REPO}/many/{last[2]}")
        await shown(fs, folder)
        seen = [name for name, _, _ in first]
        position = first[-1][2]
        while entries := fs.readdir(handle, position):
            seen += [name for name, _, _ in entries]
            position = entries[-1][2]
        fs.releasedir(handle)
        assert sorted(seen) == sorted({*many} - {last[0], last[2]})


async def test_the_root_shows_what_is_known_while_the_server_hangs(
    models: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("cannot be asked, serving what was known before")
    tree = replace(TREE, entry_ttl_s=0, attr_ttl_s=0, patience_s=0.2)
    for source, path in ((REPO, f"/api/storage/{REPO}"), ("", "/api/repositories")):
        async with composed(models, source, tree=tree) as fs:
            before = await shown(fs, ROOT)
            hold = models.faults.add(Fault.hold(path))
            with trio.fail_after(30):  # the deadline of a request is 60
                assert await shown(fs, ROOT) == before
                assert await shown(fs, ROOT) == before
                await fs.getattr(ROOT)
            assert hold.hits == 1
            models.faults.clear()


async def test_properties_that_are_written_back_are_those_of_the_moment(
    models: EmbeddedServer,
) -> None:
    ask = Requests(models)
    async with composed(models, REPO) as fs:
        folder = await find(fs, "d")
        listed = await names(fs, "d")
        for name in FILES[:2]:
            assert await fs.listxattr(listed[name]) == [b"user.env", b"user.name"]
        for name in FILES[:2]:  # demoted by somebody else
            assert ask.delete(f"/api/storage/{REPO}/d/{name}?properties=env,name").status == 204
        opened, made = await fs.create(folder, ".tmp", 0o644, os.O_WRONLY, ME)
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert await fs.listxattr(made.ino) == []
        await fs.rename(folder, ".tmp", folder, FILES[0], 0)
        assert ask.properties(f"d/{FILES[0]}") == {}
        # The other way round: what has got properties meanwhile does not get others.
        opened, made = await fs.create(folder, ".tmp", 0o644, os.O_WRONLY, ME)
        await fs.flush(opened.handle)
        await fs.release(opened.handle)
        assert await fs.listxattr(made.ino) == []
        assert ask.put(f"/api/storage/{REPO}/d/.tmp?properties=mine=1").status == 204
        await fs.rename(folder, ".tmp", folder, FILES[2], 0)
        assert ask.properties(f"d/{FILES[2]}") == {"mine": ["1"]}
