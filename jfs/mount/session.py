"""The kernel's mount, through pyfuse3: made, answered, taken away.

A mount ends while it is still answered: with ENOTCONN, whatever is asked. Only so does everybody
get an answer who waits for one, and with him whoever waits for his locks; a notification of ours
among them would hold its thread in the kernel, where no signal reaches it.
"""

import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pyfuse3
import trio

from jfs import fusectl, threads
from jfs.config import MountSettings
from jfs.errors import ConfigError
from jfs.fuse import Operations
from jfs.mount import atonce, requests
from jfs.mount.beside import Beside
from jfs.mount.copying import copied_by
from jfs.mount.fallocate import handled_by
from jfs.mount.libfuse import table_changed_by
from jfs.mount.mountpoint import is_dead, unmount
from jfs.mount.passthrough import Passthrough
from jfs.mount.smallwrites import SmallWrites
from jfs.mount.table import mount_at, mounts
from jfs.mount.withdrawals import Withdrawals

log = logging.getLogger(__name__)

# Every request that waits holds a task of pyfuse3: one that hangs must not use them up for others.
# The kernel has at most 64 READs in flight by itself (fusectl), and besides one request for each
# thread that waits in the mount. A task that waits costs 10 KiB (measured with 3000 of them), an
# idle one nothing: pyfuse3 ends what it does not need.
_MAX_TASKS = 16384
_IDLE_TASKS = 4
_ANSWER_DEADLINE_S = 10.0
_UNMOUNT_S = 5.0  # a local system call, behind fusermount3
_POLL_S = 0.01
_NOTIFIED_S = 5.0  # a notification ends with the answer that it waits for


class Session:
    """A mount that the kernel has; made by ``mounted``. Trio thread only."""

    def __init__(
        self, operations: Operations, mountpoint: Path, passthrough: Passthrough | None
    ) -> None:
        self.device = ""  # major:minor
        self._operations = operations
        self._mountpoint = mountpoint
        self.passthrough = passthrough
        self._requests = trio.CancelScope()
        self._loops: trio.Nursery | None = None
        self.withdrawals = Withdrawals(operations.answers)
        self.small_writes = SmallWrites(operations.write_at_once)
        self.kept: object = None  # by libfuse, as long as the session lives
        self.beside = Beside()

    def fallocate(
        self,
        request: int,
        place: tuple[int, int],
        mode: int,
        offset: int,
        length: int,
        answer: Callable[[int], object],
    ) -> None:
        """Start to answer a request; see ``fallocate.handled_by``."""

        async def run() -> None:
            code = 0
            with self._operations.answers.answering():
                self._operations.answers.arrived = request
                try:
                    await self._operations.fallocate(*place, mode, offset, length)
                except pyfuse3.FUSEError as error:
                    code = error.errno
            answer(code)

        assert self._loops is not None  # requests arrive in them alone
        self._loops.start_soon(run)

    def copy(
        self,
        request: int,
        source: tuple[int, int],
        target: tuple[int, int],
        length: int,
        answer: Callable[[int, int], object],
    ) -> None:
        """Start to answer a request; see ``copying.copied_by``."""

        async def run() -> None:
            count = code = 0
            with self._operations.answers.answering():
                self._operations.answers.arrived = request
                try:
                    count = await self._operations.copy_file_range(*target, *source, length)
                except pyfuse3.FUSEError as error:
                    code = error.errno
            answer(count, code)

        assert self._loops is not None  # requests arrive in them alone
        self._loops.start_soon(run)

    async def answer(self, behind: trio.Nursery) -> None:
        """Answer the kernel's requests until the mount is taken away, by others or by ``end``.

        Args:
            behind: where what was asked goes on although nobody waits for it any more.
        """
        self._operations.answers.nursery = behind
        async with trio.open_nursery() as self._loops, trio.open_nursery() as watch:
            watch.start_soon(self.withdrawals.run)
            watch.start_soon(self.beside.hear)
            with self._requests:
                await pyfuse3.main(min_tasks=_IDLE_TASKS, max_tasks=_MAX_TASKS)
            watch.cancel_scope.cancel()
        await _notified()

    async def end(self) -> None:
        """Take the mount away, even if it is in use; ``answer`` returns then.

        Nothing that handlers wait for may outlast their cancellation: cut connections before.
        Takes 11 s at most.
        """
        self._operations.ended = True
        self.beside.end()
        # The kernel forgets what it asked as the mount goes: answers to that fail, as they must.
        logging.getLogger("pyfuse3").setLevel(logging.CRITICAL)
        if self._loops is None:
            return
        # Started before the other is cancelled: that waits for its handlers, this for none.
        self._loops.start_soon(_answer_that_it_ends)
        self._requests.cancel()
        with trio.move_on_after(_UNMOUNT_S) as scope:
            await threads.own_mount(self._take_away)
        # It may be off the table, and the kernel still forgetting a million names of it.
        if scope.cancelled_caught and await self._is_there():
            log.warning("%s: cannot be unmounted in time", self._mountpoint)
        await _notified()  # while others are still answered, whose locks a notification waits for
        self._loops.cancel_scope.cancel()

    def close(self) -> None:
        """Close the connection of the kernel: whoever still has files open gets ENOTCONN."""
        self.small_writes.end()
        requests.rest()
        self.beside.close()
        if self.passthrough is not None:
            self.passthrough.end()
        if threads.notifications():
            # They use what would be freed. The end of the process closes the connection too.
            log.warning("%s: the kernel does not take a notification", self._mountpoint)
            return
        requests.closed()
        pyfuse3.close(unmount=not self.device)

    async def _is_there(self) -> bool:
        """Whether the mount is in the table still, or nobody can tell in a second."""
        with trio.move_on_after(1.0):
            return any(each.device == self.device for each in await threads.own_mount(mounts))
        return True

    def _take_away(self) -> None:
        # By its device: whoever has unmounted it lazily may have mounted something else there, and
        # a folder above it may have another name by now. But the kernel gives the number of a mount
        # that has gone to the next one: then only what is dead, as after an abort, may be ours.
        is_ours = requests.is_connected()
        entry = next((entry for entry in mounts() if entry.device == self.device), None)
        if entry is not None and (is_ours or is_dead(Path(entry.mountpoint))):
            try:
                unmount(Path(entry.mountpoint), lazy=True)
            except ConfigError as error:
                log.warning("%s", error)


@contextlib.asynccontextmanager
async def mounted(
    settings: MountSettings, operations: Operations, passthrough: Passthrough | None = None
) -> AsyncIterator[Session]:
    """Hold the kernel's mount for the time of the block.

    Args:
        passthrough: None: the kernel reads nothing itself.
    Raises:
        ConfigError: it cannot be mounted, with the reason of libfuse.
    """
    options = {
        _Option(f"fsname={_option_value(settings.shown_source)}"),
        "subtype=jfs",
        "default_permissions",
        *map(_option_value, settings.fuse_options),
    }
    session = Session(operations, settings.mountpoint, passthrough)
    requests.prepare(session.beside.requests)
    pyfuse3.trio = requests.Trio(operations.answers)  # type: ignore[attr-defined]  # as .asyncio
    changes = (
        session.withdrawals.change,
        handled_by(session.fallocate),
        copied_by(session.copy),
        atonce.answered_by(operations.read_at_once),
        session.small_writes.change,
    )
    if passthrough is not None:
        passthrough.prepare(operations.backing_of, operations.made_of)
    try:
        with _libfuse_messages() as messages, table_changed_by(changes) as session.kept:
            pyfuse3.init(operations, str(settings.mountpoint), options)
    except RuntimeError as error:
        session.beside.close()
        reason = messages().splitlines()
        if reason and "could not determine username" in reason[0]:
            reason[0] += f": uid {os.getuid()} needs an entry in the password database"
        raise ConfigError(
            f"{settings.mountpoint}: cannot be mounted: {reason[0] if reason else error}"
        ) from None
    try:
        with trio.CancelScope(shield=True):
            entry = await threads.own_mount(mount_at, settings.mountpoint)
        session.device = entry.device if entry is not None else ""
        yield session
    finally:
        with trio.move_on_after(_UNMOUNT_S, shield=True):
            await threads.own_mount(session._take_away)
        session.close()


async def _notified() -> None:
    """Return when the kernel has taken every notification, or takes too long."""
    with trio.move_on_after(_NOTIFIED_S):
        while threads.notifications():  # noqa: ASYNC110 - abandoned threads wake nobody
            await trio.sleep(_POLL_S)


async def _answer_that_it_ends() -> None:
    """Answer until cancelled."""
    while True:
        # Those that were cancelled count as idle for a moment, so that pyfuse3 ends all others.
        await pyfuse3.main(min_tasks=_MAX_TASKS, max_tasks=_MAX_TASKS)
        await trio.sleep(_POLL_S)


async def say_ready(session: Session, mountpoint: Path, ready: Callable[[], None]) -> None:
    """Call *ready* when the mount answers a request that came through the kernel."""
    with trio.move_on_after(_ANSWER_DEADLINE_S) as scope:
        # A thread, since our own loop has to answer it; the call releases the interpreter's lock.
        await threads.own_mount(os.statvfs, mountpoint)
    if scope.cancelled_caught:
        log.error("%s: the kernel does not answer", mountpoint)
        return
    await threads.own_mount(fusectl.tune, session.device)
    if session.passthrough is not None:
        await threads.on_disk(session.passthrough.try_it)
    await threads.own_mount(ready)  # it prints: whoever reads may be slow


@contextlib.contextmanager
def _libfuse_messages() -> Iterator[Callable[[], str]]:
    """Collect what libfuse and fusermount3 print to standard error, their only explanation."""
    with open(os.memfd_create("jfs-messages"), "w+b") as file:  # needs no directory
        text = ""
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            text = file.read().decode("utf-8", "replace").strip()


class _Option(str):
    """An option that may hold any byte: pyfuse3 encodes options as ASCII, the kernel does not."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return os.fsencode(str(self))


def _option_value(text: str) -> str:
    r"""Escape a value for libfuse's option parser, where ``,`` separates and ``\`` escapes."""
    return text.replace("\\", "\\\\").replace(",", "\\,")
