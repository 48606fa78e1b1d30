"""Every refusal is told once in the log, in ``.jfs/errors``, and at the path it is about."""

import errno
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest

from jfs.errors import NoAttribute, NoEntry, ReadOnly, Unavailable
from jfs.extents import Extent
from jfs.fuse import Operations
from jfs.model import RepoPath
from jfs.server import EmbeddedServer, Fault
from jfs.vfs.filesystem import Filesystem
from jfs.vfs.namespace.inodes import ROOT
from jfs.vfs.refusals import Refusals
from tests.component.composed import composed, content, find, names
from tests.conftest import REPO

CTX = cast("pyfuse3.RequestContext", SimpleNamespace(uid=0, gid=0, pid=1, umask=0))
XRAY = f"Artifact {REPO}/m/bad.bin was blocked by policy 'no-critical' (watch 'models')"
LAST = b"user.jfs.last_error"


@asynccontextmanager
async def mounted(
    server: EmbeddedServer, source: str = REPO, **options: Any
) -> AsyncIterator[tuple[Filesystem, Operations]]:
    async with composed(server, source, **options) as filesystem:
        yield filesystem, Operations(filesystem)


async def refused(call: Callable[..., Any], *arguments: object) -> str:
    """Return the name of the errno that a request is answered with."""
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await call(*arguments)
    return errno.errorcode[raised.value.errno]


async def read(operations: Operations, ino: int) -> bytes:
    opened = await operations.open(ino, os.O_RDONLY, CTX)
    try:
        return bytes(await operations.read(opened.fh, 0, 1000))
    finally:
        await operations.release(opened.fh)


FORMS = {
    "json": (403, json.dumps({"errors": [{"status": 403, "message": XRAY}]}).encode(), {}),
    "text": (403, XRAY.encode(), {"Content-Type": "text/plain"}),
    "legal": (451, XRAY.encode(), {"Content-Type": "text/plain"}),
    "page": (403, f"<html><p>{XRAY}".encode(), {"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_blocked_artifact_says_which_policy(
    server: EmbeddedServer, expected_logs: list[str], form: str
) -> None:
    status, body, headers = FORMS[form]
    expected_logs.append("AccessDenied")
    server.deploy(REPO, "m/bad.bin", b"bad")
    server.deploy(REPO, "m/good.bin", b"good")
    async with mounted(server) as (fs, operations):
        server.faults.add(Fault.status(status, f"/{REPO}/m/bad.bin", body=body, headers=headers))
        ino = await find(fs, "m/bad.bin")
        assert await refused(read, operations, ino) == "EACCES"
        said = (await fs.getxattr(ino, LAST)).decode()
        for words in (XRAY, "EACCES", "read", str(status), "ask those who keep the policy"):
            assert words in said
        assert said.isprintable()
        (line,) = (await content(fs, ".jfs/errors")).decode().splitlines()
        assert f"read {REPO}/m/bad.bin: EACCES" in line
        assert XRAY in line
        with pytest.raises(NoAttribute):
            await fs.getxattr(await find(fs, "m/good.bin"), LAST)
        server.faults.clear()  # the policy was lifted
        assert await read(operations, ino) == b"bad"
        with pytest.raises(NoAttribute):
            await fs.getxattr(ino, LAST)
        assert "(has succeeded since)" in (await content(fs, ".jfs/errors")).decode()


async def test_a_folder_says_why_it_cannot_be_listed(
    server: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("AccessDenied")
    server.deploy(REPO, "m/f", b"1")
    async with mounted(server) as (fs, operations):
        ino = await find(fs, "m")
        server.faults.add(Fault.status(403, f"/api/storage/{REPO}/m*"))
        assert await refused(operations.opendir, ino, CTX) == "EACCES"
        assert b" list: EACCES: 403" in await fs.getxattr(ino, LAST)


async def test_an_upload_that_fails_says_so_until_one_succeeds(
    server: EmbeddedServer, expected_logs: list[str]
) -> None:
    expected_logs.append("QuotaExceeded")
    async with mounted(server) as (fs, operations):
        opened, entry = await operations.create(ROOT, b"f", 0o644, os.O_WRONLY, CTX)
        await operations.write(opened.fh, 0, b"data")
        server.faults.add(Fault.status(413, f"/{REPO}/f", method="PUT"))
        assert await refused(operations.flush, opened.fh) == "ENOSPC"
        assert b" close: ENOSPC: 413" in await fs.getxattr(entry.st_ino, LAST)
        reader = await operations.open(entry.st_ino, os.O_RDONLY, CTX)
        await operations.flush(reader.fh)  # who reads has uploaded nothing
        await operations.release(reader.fh)
        assert b" close: ENOSPC: 413" in await fs.getxattr(entry.st_ino, LAST)
        server.faults.clear()
        await operations.fsync(opened.fh, False)
        with pytest.raises(NoAttribute):
            await fs.getxattr(entry.st_ino, LAST)
        await operations.release(opened.fh)


async def test_what_programs_ask_to_find_out_is_no_refusal(server: EmbeddedServer) -> None:
    server.deploy(REPO, "f", b"1")
    async with mounted(server) as (fs, operations):
        ino = await find(fs, "f")
        assert (await operations.lookup(ROOT, b"missing", CTX)).st_ino == 0
        assert await refused(operations.getxattr, ino, b"user.missing", CTX) == "ENODATA"
        assert await refused(operations.getxattr, ino, b"security.selinux", CTX) == "ENOTSUP"
        assert await refused(operations.opendir, ino, CTX) == "ENOTDIR"
        assert await content(fs, ".jfs/errors") == b""


async def test_what_the_mount_forbids_is_told_with_its_reason(server: EmbeddedServer) -> None:
    server.deploy(REPO, "f", b"1")
    async with mounted(server, read_only=True) as (fs, operations):
        ino = await find(fs, "f")
        assert await refused(operations.open, ino, os.O_WRONLY, CTX) == "EROFS"
        assert b"the mount is read-only" in await fs.getxattr(ino, LAST)
        assert await refused(operations.mkdir, ROOT, b"new\n\x1b[2J", 0o755, CTX) == "EROFS"
        text = (await content(fs, ".jfs/errors")).decode()
        assert len(text.splitlines()) == 2
        assert re.search(rf"mkdir {REPO}/new \[2J: EROFS", text)


async def test_the_folder_of_the_mount_itself(server: EmbeddedServer) -> None:
    server.deploy(REPO, "f", b"1")
    async with mounted(server) as (fs, operations):
        fs.add_report("stats", lambda: "a 1\n")
        assert set(await names(fs, "")) == {"f"}
        assert set(await names(fs, ".jfs")) == {"errors", "stats"}
        folder = (await operations.lookup(ROOT, b".jfs", CTX)).st_ino
        entry = await operations.lookup(folder, b"stats", CTX)
        assert (entry.st_mode, entry.st_size, entry.attr_timeout) == (0o100444, 4, 0)
        assert (await operations.lookup(folder, b"other", CTX)).st_ino == 0
        assert await refused(operations.open, entry.st_ino, os.O_RDWR, CTX) == "EROFS"
        assert await refused(operations.create, folder, b"x", 0o644, os.O_WRONLY, CTX) == "EROFS"
        assert await refused(operations.unlink, folder, b"stats", CTX) == "EROFS"
        assert await refused(operations.getxattr, entry.st_ino, b"user.x", CTX) == "ENODATA"
        assert await operations.listxattr(entry.st_ino, CTX) == []


async def test_a_report_that_is_open_stays_as_it_is(server: EmbeddedServer) -> None:
    async with mounted(server) as (fs, operations):
        texts = ["first", "second, and longer"]
        fs.add_report("stats", lambda: texts[0])
        ino = await find(fs, ".jfs/stats")
        opened = await operations.open(ino, os.O_RDONLY, CTX)
        del texts[0]
        assert opened.direct_io
        assert (await operations.getattr(ino, CTX)).st_size == 5
        assert bytes(await operations.read(opened.fh, 1, 100)) == b"irst"
        assert bytes(await operations.read(opened.fh, 5, 100)) == b""
        await operations.flush(opened.fh)
        await operations.release(opened.fh)
        assert (await operations.getattr(ino, CTX)).st_size == 18
        assert await content(fs, ".jfs/stats") == b"second, and longer"


async def test_reports_never_ask_the_server(server: EmbeddedServer) -> None:
    async with mounted(server) as (fs, _):
        server.stats.reset()
        held = server.faults.add(Fault.hold("*"))
        assert await content(fs, ".jfs/errors") == b""
        assert set(await names(fs, ".jfs")) == {"errors"}
        with pytest.raises(NoEntry):
            await find(fs, ".jfs/other")
        with pytest.raises(NoAttribute):
            await fs.getxattr(await find(fs, ".jfs"), b"user.x")
        assert server.stats.requests == 0
        held.release()


async def test_a_real_entry_of_the_name_wins(server: EmbeddedServer) -> None:
    server.deploy(REPO, ".jfs/mine", b"mine")
    async with mounted(server) as (fs, _):
        assert set(await names(fs, "")) == {".jfs"}  # which shows that there is one
        assert await content(fs, ".jfs/mine") == b"mine"


def test_refusals_are_bounded_and_the_newest_is_last(expected_logs: list[str]) -> None:
    expected_logs.append("Unavailable")
    refusals = Refusals()
    for number in range(2000):
        refusals.note("read", RepoPath("r", f"f{number}"), Unavailable("x" * 10_000))
    for _ in range(3):
        refusals.note("read", RepoPath("r", "f1990"), Unavailable("x" * 10_000))
    lines = refusals.text().splitlines()
    assert len(lines) == 256
    assert max(map(len, lines)) < 1000
    assert "read r/f1990: EIO" in lines[-1]
    assert "(4 times)" in lines[-1]


async def test_a_read_only_report_is_no_place_for_others(server: EmbeddedServer) -> None:
    async with mounted(server) as (fs, _):
        with pytest.raises(ReadOnly):
            await fs.open(await find(fs, ".jfs/errors"), os.O_RDONLY | os.O_TRUNC)
        opened = await fs.open(await find(fs, ".jfs/errors"), os.O_RDONLY)
        assert bytes(await fs.read(opened.handle, Extent(0, 10))) == b""
        await fs.release(opened.handle)
