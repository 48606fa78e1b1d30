"""Remote repositories through a mount: looking never hinders opening, and what is not there is so.

Upstream is a second embedded server: one shaped like Hugging Face, one a plain tree of files.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from jfs.errors import JfsError, NoEntry, NotFound, ReadOnly
from jfs.model import FolderInfo
from jfs.server import EmbeddedServer
from jfs.vfs.filesystem import Caller, Filesystem
from jfs.vfs.namespace.inodes import ROOT
from tests.component.composed import composed, content, find, names

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
        upstream.deploy("hub", "api/models/new/model", b'{"modelId": "new/model"}')
        assert not await missing(fs, "new/model")


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
        assert upstream.stats.requests == 2  # p and p/q themselves


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
    async with composed(remote, "hf", deadline_s=1) as fs:
        await find(fs, MODEL)
        upstream.stop()
        with trio.fail_after(30), pytest.raises(JfsError) as caught:
            await find(fs, "meta-llama/Other")
        assert caught.value.errno not in (errno.ENOENT, errno.ESTALE)
