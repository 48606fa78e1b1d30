"""Remote repositories through a mount: looking never hinders opening, and what is not there is so.

Upstream is a second embedded server: one shaped like Hugging Face, one a plain tree of files.
"""

import asyncio
import contextlib
import errno
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from jfs.errors import JfsError, NoEntry, NotFound, ReadOnly
from jfs.model import FolderInfo, RepoPath
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.filesystem import Caller, Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import composed, content, find, names
from tests.component.test_client import client_of, settings_of

MODEL = "meta-llama/Llama-3.1-8B"
DOTTED = "openai/whisper-tiny.en"
WEIGHTS = bytes(range(256)) * 64
CALLER = Caller(os.getuid(), os.getgid(), os.getpid())


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "upstream", anonymous=True) as running:
        running.create_repository("hub")
        for model in (MODEL, DOTTED):
            described = f'{{"id": "{model}", "siblings": []}}'.encode()
            running.deploy("hub", f"api/models/{model}", described)
            running.deploy("hub", f"{model}/resolve/main/config.json", b"{}")
            running.deploy("hub", f"{model}/resolve/main/onnx/model.onnx", WEIGHTS)
        running.deploy("hub", "gpt2/resolve/main/config.json", b"{}")
        running.deploy("hub", "api/models/gpt2", b'{"id": "openai-community/gpt2"}')
        running.create_repository("plain")
        running.deploy("plain", "o/m/config.json", b"{}")
        running.deploy("plain", "o/m/v1.5/w.bin", WEIGHTS)
        yield running


@pytest.fixture
def remote(server: EmbeddedServer, upstream: EmbeddedServer) -> EmbeddedServer:
    server.create_repository("hf", upstream=f"{upstream.url}/hub")
    server.create_repository("web", upstream=f"{upstream.url}/plain")
    return server


@contextlib.contextmanager
def serving(answer: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> Iterator[str]:
    """Run an upstream that is no Artifactory; its address."""
    loop = asyncio.new_event_loop()

    async def start() -> tuple[web.ServerRunner, str]:
        runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    runner, url = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield url
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def missing(fs: Filesystem, path: str) -> bool:
    try:
        await find(fs, path)
    except (NoEntry, NotFound):
        return True
    return False


@pytest.mark.parametrize("source", ["hf", ""])
async def test_looking_first_hinders_no_open(remote: EmbeddedServer, source: str) -> None:
    base = "" if source else "hf/"
    async with composed(remote, source) as fs:
        main = f"{base}{MODEL}/resolve/main"
        for folder in (base, f"{base}meta-llama", f"{base}{MODEL}", main, f"{main}/onnx"):
            await names(fs, folder)
        for absent in ("a.json", "b.json", "c.json", "d.json", "adapter_config.json"):
            assert await missing(fs, f"{main}/{absent}")
        for folder in (base, main):
            await names(fs, folder)
        assert await content(fs, f"{main}/config.json") == b"{}"
        assert await content(fs, f"{main}/onnx/model.onnx") == WEIGHTS
        assert set(await names(fs, main)) == {"config.json", "onnx"}


async def test_a_folder_that_was_only_looked_for_is_not_listed(remote: EmbeddedServer) -> None:
    async with composed(remote, "hf") as fs:
        main = await find(fs, f"{MODEL}/resolve/main")
        assert not set(await names(fs, "")) & {"meta-llama"}
        # whoever works in it goes on: it keeps its place and its number
        assert await find(fs, f"{MODEL}/resolve/main") == main
        assert (await fs.lookup(main, "config.json")).size == 2
        assert "meta-llama" in await names(fs, "")
        assert await find(fs, f"{MODEL}/resolve/main") == main


async def test_folders_that_nobody_wants_any_more_are_forgotten(remote: EmbeddedServer) -> None:
    async with composed(remote, "web") as fs:
        await names(fs, "")
        before = len(fs._tree.inodes)
        for number in range(50):
            ino = (await fs.lookup(ROOT, f"guess{number}")).ino
            fs.forget(ino, 1)
        assert len(fs._tree.inodes) == before


@pytest.mark.parametrize("path", [MODEL, DOTTED, f"{MODEL}/resolve", f"{MODEL}/resolve/v1.5"])
async def test_models_and_revisions_are_folders(remote: EmbeddedServer, path: str) -> None:
    async with composed(remote, "hf") as fs:
        ino = await find(fs, path)
        assert isinstance(fs._tree.find(ino).info, FolderInfo)


async def test_a_misspelt_model_is_missing(
    remote: EmbeddedServer, upstream: EmbeddedServer
) -> None:
    async with composed(remote, "hf") as fs:
        await find(fs, MODEL)  # this answer shows what upstream is
        assert await missing(fs, "meta-llama/Llama-3.1-8b")
        assert await missing(fs, "metallama/Llama-3.1-8B")
        assert await missing(fs, "metallama/Llama-3.1-8B/resolve/main")
        assert not await missing(fs, "gpt2/resolve/main")
        assert await missing(fs, "gtp2/resolve")
        assert await content(fs, f"{MODEL}/resolve/main/config.json") == b"{}"
        # a model that appears is found once the server asks anew: names are never believed away
        upstream.deploy("hub", "api/models/new/model", b'{"siblings": []}')
        assert not await missing(fs, "new/model")


async def test_what_was_asked_before_is_known_to_the_next_mount(remote: EmbeddedServer) -> None:
    async with composed(remote, "hf") as fs:
        await find(fs, MODEL)
    async with composed(remote, "hf") as fs:
        assert await missing(fs, "meta-llama/Llama-3.1-8b")
        assert set(await names(fs, "")) == set()  # the question itself is in no model
    async with client_of(settings_of(remote)) as client:
        with pytest.raises(NotFound):
            await client.stat(RepoPath("hf", "metallama/Llama-3.1-8B/resolve/main"))


async def test_a_web_page_is_a_folder_and_no_file(tmp_path: Path, server: EmbeddedServer) -> None:
    """A page where a folder is: were it taken for a file, nothing below could be opened."""
    pages = {"/org": b"<html>", "/org/m": b"<html>", "/org/m/f.bin": b"1", "/me.html": b"<html>"}

    async def answer(request: web.BaseRequest) -> web.Response:
        body = pages.get(request.path)
        if body is None:
            return web.Response(status=404)
        return web.Response(body=body, content_type="text/html" if body == b"<html>" else "a/b")

    with serving(answer) as url:
        server.create_repository("site", upstream=url)
        async with composed(server, "site") as fs:
            assert await missing(fs, "me.json")
            assert not await missing(fs, "ogr")  # nobody can tell yet
            await names(fs, "org/m")
            assert await content(fs, "org/m/f.bin") == b"1"
            assert await missing(fs, "ogr2")  # others of its kind have pages
            assert await missing(fs, "org/n")
            assert await content(fs, "me.html") == b"<html>"
            assert set(await names(fs, "org/m")) == {"f.bin"}


async def test_hugging_face_is_known_by_its_address(server: EmbeddedServer) -> None:
    """Its organisations can be asked for too, so that nothing has to be learnt before."""
    row = {"key": "hf", "type": "REMOTE", "url": "https://huggingface.co", "packageType": "Generic"}
    server.faults.add(Fault.garbage("/api/repositories", body=json.dumps([row]).encode()))
    overview = {"/hf/api/organizations/org/overview", "/hf/api/users/ann/overview"}
    for path in overview:
        server.faults.add(Fault.garbage(path, body=b'{"name": "x"}'))
    server.faults.add(Fault.garbage("/hf/api/models/org/m", body=b'{"id": "org/m"}'))
    async with client_of(settings_of(server)) as client:
        for path in ("org", "ann", "org/m", "org/m/resolve/main", "org/m/resolve/main/sub"):
            info = await client.stat(RepoPath("hf", path))
            assert (info.path.path, isinstance(info, FolderInfo)) == (path, True)
        for path in ("ogr", "org/n", "ogr/m", "org/n/resolve/main", "org/m/resolve/main/a.json"):
            with pytest.raises(NotFound):
                await client.stat(RepoPath("hf", path))


async def test_another_upstream_is_not_asked_for_models_for_ever(
    remote: EmbeddedServer, upstream: EmbeddedServer
) -> None:
    async with composed(remote, "web") as fs:
        assert await content(fs, "o/m/config.json") == b"{}"
        assert await content(fs, "o/m/v1.5/w.bin") == WEIGHTS
        assert not await missing(fs, "o/unknown")  # nobody can tell
        with pytest.raises(NoEntry):
            await find(fs, "o/m/none.json")
        upstream.stats.reset()
        assert not await missing(fs, "p/q")
        # p and p/q themselves, each with the redirect to its place with a slash
        assert upstream.stats.requests <= 4


async def test_nothing_is_made_in_it(remote: EmbeddedServer) -> None:
    async with composed(remote, "") as fs:
        hf, local = await find(fs, "hf"), await find(fs, "ml-models-local")
        remote.stats.reset()
        with pytest.raises(ReadOnly):
            await fs.create(hf, "new.bin", 0o644, os.O_WRONLY | os.O_CREAT, CALLER)
        with pytest.raises(ReadOnly):
            await fs.mkdir(hf, "new", 0o755, CALLER)
        with pytest.raises(ReadOnly):
            await fs.symlink(hf, "new", "x", CALLER)
        with pytest.raises(ReadOnly):
            await fs.rename(local, "any", hf, "new.bin", 0)
        assert remote.stats.requests == 0  # nobody was asked, upstream least of all
        config = await find(fs, f"hf/{MODEL}/resolve/main/config.json")
        with pytest.raises(ReadOnly) as caught:
            await fs.open(config, os.O_WRONLY)
        assert caught.value.errno == errno.EROFS


async def test_a_failing_upstream_is_not_a_missing_model(
    remote: EmbeddedServer, upstream: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("upstream failed")
    async with client_of(settings_of(remote)) as client:
        await client.stat(RepoPath("hf", MODEL))
    upstream.stop()
    async with client_of(replace(settings_of(remote), request_deadline_s=1)) as client:
        with pytest.raises(JfsError) as caught:
            await client.stat(RepoPath("hf", "meta-llama/Other"))
        assert caught.value.errno not in (errno.ENOENT, errno.ESTALE)
