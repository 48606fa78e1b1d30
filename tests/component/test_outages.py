"""Servers that are down, hang, refuse or ask for a pause: errno, bounded time, counted requests."""

import errno
import io
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import replace
from hashlib import sha1, sha256
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

from jfs import threads
from jfs.artifactory import Access, ArtifactoryClient, Breakers, HttpRangeSource, Outage
from jfs.config import Credentials, Secret, ServerSettings
from jfs.credentials import credentials_from
from jfs.errors import (
    AccessDenied,
    JfsError,
    NotFound,
    RateLimited,
    ServerDown,
    Unavailable,
    errno_of,
)
from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, Checksums, ContentKey, Deployment, RepoPath
from jfs.server import EmbeddedServer, Fault
from tests.component.test_ranges import Collector
from tests.conftest import REPO

DATA = bytes(range(256)) * 40
PATH = RepoPath(REPO, "m/f.bin")
# Small patience, or each of these would take as long as an outage is ridden out.
QUICK = ServerSettings(
    "",
    answer_timeout_s=20,
    answer_deadline_s=30,
    request_deadline_s=30,
    retries_s=0.2,
    jobs_retries_s=0.2,
)
PATIENT = {"idle_timeout_s": 300.0, "request_deadline_s": 300.0}
HASTY = {"connect_timeout_s": 0.3, "idle_timeout_s": 0.3, "answer_timeout_s": 0.3}


class Client:
    """Both planes of one mount, and what is used of them."""

    def __init__(self, settings: ServerSettings, version: ArtifactVersion, folder: Path) -> None:
        self.metrics = Metrics()
        self.breakers = Breakers(settings.url, self.metrics)
        access = Access(settings, os.environ)
        self.store = ArtifactoryClient(settings, self.metrics, access, self.breakers)
        self.source = HttpRangeSource(settings, self.metrics, access, self.breakers)
        self.changes: list[tuple[str, bool]] = []
        self.breakers.on_change(self._changed)
        self.up = trio.Event()
        self._version = version
        self._file = folder / "new.bin"
        self._file.write_bytes(DATA)

    def _changed(self, outage: Outage, up: bool) -> None:
        self.changes.append((outage.what, up))
        if up:
            self.up.set()

    async def stat(self) -> object:
        return await self.store.stat(PATH)

    async def list(self) -> object:
        return await self.store.list_children(PATH.parent)

    async def read(self) -> object:
        whole = Extent(0, len(DATA))
        sink = Collector(whole)
        limiter = trio.CapacityLimiter(1)
        await threads.in_turn(limiter, self.source.fetch, self._version, whole, sink)
        assert sink.data == DATA
        return None

    async def write(self) -> object:
        with io.FileIO(self._file) as file:
            sums = Checksums(sha256(DATA).hexdigest())
            deployment = Deployment(RepoPath(REPO, "new.bin"), len(DATA), sums)
            return await self.store.deploy(deployment, file.fileno())

    async def tag(self) -> object:
        await self.store.set_properties(PATH, {"stage": ("gold",)})
        return None

    async def rename(self) -> object:
        await self.store.move(PATH, RepoPath(REPO, "m/moved.bin"))
        return None

    async def remove(self) -> object:
        await self.store.delete(PATH)
        return None


Scale = Callable[[int, int], int]
Use = Callable[[Client], Awaitable[object]]
USES: dict[str, Use] = {
    "stat": Client.stat,
    "list": Client.list,
    "read": Client.read,
    "write": Client.write,
    "tag": Client.tag,
    "rename": Client.rename,
    "remove": Client.remove,
}
PLANES = [Client.stat, Client.read, Client.write]


@pytest.fixture
def version(server: EmbeddedServer) -> ArtifactVersion:
    server.deploy(REPO, PATH.path, DATA)
    content = ContentKey(f"sha256:{sha256(DATA).hexdigest()}", len(DATA))
    return ArtifactVersion(PATH, content, sha1(DATA).hexdigest())


def settings_of(server: EmbeddedServer, **changes: float) -> ServerSettings:
    credentials = Credentials(token=Secret(server.token))
    return replace(QUICK, url=server.url, credentials=credentials, **changes)


@asynccontextmanager
async def watched(
    settings: ServerSettings, version: ArtifactVersion, folder: Path
) -> AsyncIterator[Client]:
    """Run a client as a mount does, with somebody who probes in the background."""
    client = Client(settings, version, folder)
    async with aclosing(client.store), trio.open_nursery() as nursery:
        nursery.start_soon(client.store.watch)
        with closing(client.source):
            yield client
        nursery.cancel_scope.cancel()


async def fails(use: Use, client: Client) -> JfsError:
    with pytest.raises(JfsError) as caught:
        await use(client)
    return caught.value


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose server takes no connection: what is sent to it is dropped, as by a firewall."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = []
        try:
            for _ in range(4):
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(("127.0.0.1", port))
            yield port
        finally:
            for each in waiting:
                each.close()


def stopped(server: EmbeddedServer) -> None:
    server.stop()


def faulty(make: Callable[[], Fault]) -> Callable[[EmbeddedServer], None]:
    def begin(server: EmbeddedServer) -> None:
        server.faults.add(make())

    return begin


async def surely(use: Use, client: Client) -> None:
    """Use it until that goes well."""
    with trio.fail_after(30):
        while True:
            try:
                await use(client)
                return
            except Unavailable:
                await trio.lowlevel.checkpoint()


FAULTS: dict[str, tuple[Callable[[EmbeddedServer], None], int]] = {
    "refused": (stopped, errno.EIO),
    "503": (faulty(lambda: Fault.status(503)), errno.EIO),
    "silent": (faulty(lambda: Fault.stall()), errno.ETIMEDOUT),
    "reset": (faulty(lambda: Fault.cut()), errno.EIO),
    "asks for a pause": (
        faulty(lambda: Fault.status(429, headers={"Retry-After": "60"})),
        errno.EIO,
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("fault", FAULTS)
async def test_in_an_outage_calls_fail_at_once_and_it_heals(
    server: EmbeddedServer,
    version: ArtifactVersion,
    tmp_path: Path,
    fault: str,
    use: Use,
) -> None:
    begin, number = FAULTS[fault]
    hasty = HASTY if fault == "silent" else {}
    async with watched(settings_of(server, **hasty), version, tmp_path) as client:
        begin(server)
        began = time.monotonic()
        assert errno_of(await fails(use, client)) == number
        assert time.monotonic() - began < 10
        while not isinstance(await fails(use, client), ServerDown | RateLimited):
            pass  # a change that may have been made proves an outage only when it lasts
        asked = client.metrics.snapshot()
        began = time.monotonic()
        for _ in range(100):
            assert errno_of(await fails(use, client)) == number
        spent_s = time.monotonic() - began
        now = client.metrics.snapshot()
        sent = sum(now.get(n, 0) - asked.get(n, 0) for n in ("requests", "range_requests"))
        assert sent <= 2 + 8 * spent_s  # the first ones are probed four times a second
        if fault == "asks for a pause":
            return
        server.faults.clear()
        if not server.running:
            server.start()
        try:
            await surely(use, client)
        except NotFound:
            assert fault == "silent"  # it was done, and the answer was lost


async def test_a_black_hole_is_a_time_out_once(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    with full_backlog() as port:
        settings = replace(settings_of(server, **HASTY), url=f"http://127.0.0.1:{port}/artifactory")
        async with watched(settings, version, tmp_path) as client:
            for use in USES.values():
                assert errno_of(await fails(use, client)) == errno.ETIMEDOUT
            assert client.breakers.is_down
            began = time.monotonic()
            for _ in range(1000):
                error = await fails(Client.stat, client)
                assert isinstance(error, ServerDown)
                assert errno_of(error) == errno.ETIMEDOUT
            assert time.monotonic() - began < 10
            assert client.metrics.snapshot()["refused_calls"] >= 1000


async def test_a_server_that_is_back_is_found_without_being_asked_for_anything(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    async with watched(settings_of(server), version, tmp_path) as client:
        server.stop()
        await fails(Client.stat, client)
        assert client.breakers.is_down
        server.start()
        with trio.fail_after(30):
            await client.up.wait()
        await client.stat()
        assert client.changes == [("the server", False), ("the server", True)]


async def test_a_restart_is_ridden_out(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    settings = settings_of(server, retries_s=25, jobs_retries_s=25)
    async with watched(settings, version, tmp_path) as client:
        server.stop()
        async with trio.open_nursery() as nursery:
            for use in (Client.stat, Client.list, Client.read, Client.write, Client.tag):
                nursery.start_soon(use, client)
            await trio.testing.wait_all_tasks_blocked(0.01)
            server.start()


async def test_a_repository_that_hangs_keeps_no_other_waiting(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    server.create_repository("other-local")
    server.deploy("other-local", "f", DATA)
    settings = settings_of(server)
    hanging = server.faults.add(Fault.stall(f"*/{REPO}/*"))
    async with watched(settings, version, tmp_path) as client, trio.open_nursery() as nursery:
        for _ in range(40):  # more than may be under way at a time
            nursery.start_soon(client.stat)
        nursery.start_soon(client.read)
        await threads.on_disk(hanging.wait_hit)
        with trio.fail_after(10):
            await client.store.stat(RepoPath("other-local", "f"))
            await client.store.list_children(RepoPath("other-local"))
            await client.store.repositories()
        nursery.cancel_scope.cancel()
        hanging.release()


async def test_a_server_that_is_stopped_is_found_out_by_a_ping(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    settings = settings_of(server, connect_timeout_s=0.3, ping_after_s=0.1, **PATIENT)
    async with watched(settings, version, tmp_path) as client:
        await surely(Client.list, client)
        fault = server.faults.add(Fault.stall())
        with trio.fail_after(60):  # and not until the listing has been silent for five minutes
            assert errno_of(await fails(Client.list, client)) == errno.ETIMEDOUT
        assert client.breakers.is_down
        fault.release()


async def test_a_long_answer_of_a_server_that_is_well_is_waited_for(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    settings = settings_of(server, ping_after_s=0.1, **PATIENT)
    async with watched(settings, version, tmp_path) as client, trio.open_nursery() as nursery:
        await client.store.repositories()
        fault = server.faults.add(Fault.stall("/api/storage/*"))
        pings = server.faults.add(Fault.set_headers({}, "/api/system/ping", after=1))
        nursery.start_soon(client.store.list_children, PATH.parent)
        await threads.on_disk(pings.wait_hit)  # the second one: the first was answered
        fault.release()


async def test_500_of_one_item_is_no_outage_but_a_server_that_answers_it_to_all_is(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    async with watched(settings_of(server), version, tmp_path) as client:
        server.faults.add(Fault.status(500, "/api/storage/*/m/f.bin"))
        await fails(Client.stat, client)
        await client.list()
        assert client.changes == []
        server.faults.add(Fault.status(500))
        with trio.fail_after(30):
            while not client.breakers.is_down:
                await fails(Client.stat, client)
        assert isinstance(await fails(Client.list, client), ServerDown)


async def test_a_pause_that_fits_the_deadline_is_waited_for(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    later = {"Retry-After": "1"}
    server.faults.add(Fault.status(503, "/api/storage/*", headers=later, times=1))
    server.faults.add(Fault.status(429, f"/{REPO}/*", headers=later, times=1))
    async with watched(settings_of(server), version, tmp_path) as client:
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.stat)
            nursery.start_soon(client.read)
        assert time.monotonic() - began >= 1


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_401_that_passes_is_not_seen(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path, use: Use
) -> None:
    async with watched(settings_of(server), version, tmp_path) as client:
        server.faults.add(Fault.status(401, times=1))
        await use(client)


@pytest.mark.parametrize("use", PLANES)
async def test_a_401_for_good_is_repeated_once_a_second_at_most(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path, use: Use
) -> None:
    async with watched(settings_of(server), version, tmp_path) as client:
        await client.store.repositories()  # else each asks for them first
        fault = server.faults.add(Fault.status(401))
        began = time.monotonic()
        for _ in range(20):
            assert isinstance(await fails(use, client), AccessDenied)
        assert 21 <= fault.hits <= 21 + (time.monotonic() - began) + 1
        assert client.changes == []


@pytest.mark.parametrize("use", PLANES)
async def test_a_token_that_is_rotated_is_read_again_after_a_401(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path, use: Use
) -> None:
    file = tmp_path / "token"
    file.write_text("expired")
    settings = replace(settings_of(server), credentials=credentials_from({}, file))
    async with watched(settings, version, tmp_path) as client:
        assert isinstance(await fails(use, client), AccessDenied)
        file.write_text(server.token)
        await use(client)


async def test_a_wrong_password_is_not_tried_twice(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path
) -> None:
    credentials = Credentials(user="somebody", password=Secret("wrong"))
    settings = replace(settings_of(server), credentials=credentials)
    async with watched(settings, version, tmp_path) as client:
        with pytest.raises(AccessDenied):
            await client.store.repositories()
        assert client.metrics.snapshot()["requests"] == 1


@pytest.mark.timeout(900)  # the whole proof takes a minute and a half
async def test_bad_weather_reaches_no_user(
    server: EmbeddedServer, version: ArtifactVersion, tmp_path: Path, scale: Scale
) -> None:
    """Of all requests 10 % are refused by 503, and 1 % cut; half of these once they were done."""
    server.faults.add(Fault.cut(share=0.005))
    server.faults.add(Fault.drop(share=0.005))
    server.faults.add(Fault.status(503, share=0.1))
    credentials = Credentials(token=Secret(server.token))
    async with watched(ServerSettings(server.url, credentials), version, tmp_path) as client:
        left = iter(range(scale(300, 10_000)))

        async def work() -> None:
            for number in left:
                folder = RepoPath(REPO, f"w/{number}")
                match number % 6:
                    case 0:
                        await client.stat()
                    case 1:
                        await client.list()
                    case 2:
                        await client.read()
                    case 3:
                        await client.write()
                    case 4:
                        await client.tag()
                    case 5:
                        await client.store.make_folder(folder)
                        moved = RepoPath(REPO, f"v/{number}")
                        await client.store.move(folder, moved, tree=True)
                        await client.store.delete(moved)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(work)
        assert client.changes == []
