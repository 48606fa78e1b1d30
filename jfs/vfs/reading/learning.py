"""What reading tells about what will be read. Trio thread only, unless it says otherwise."""

import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

import trio

from jfs import threads
from jfs.errors import JfsError
from jfs.extents import Extent, MiB
from jfs.formats import FIRST_BYTES, Layout, MoreNeeded, layout_of
from jfs.model import RepoPath

_FOLDERS_KEPT = 4096
_HEAD_AT_MOST = 8 * MiB  # larger ones are those of whole models in one file, once in a mount
_REQUESTS_KEPT = 8
_ALONE_S = 2.0
_STREAM_LASTS_S = 0.25  # after its last READ: several readers are not each other's end

Read = Callable[[Extent], Awaitable[bytes | bytearray | memoryview]]


class Habits:
    """How the files of a folder are read, and how far the server is.

    Args:
        far_s: how long the first byte of a far server takes.
    """

    def __init__(self, far_s: float) -> None:
        self._far_s = far_s
        self._whole: OrderedDict[RepoPath, bool] = OrderedDict()
        self._latencies: deque[float] = deque(maxlen=_REQUESTS_KEPT)

    def are_read_whole(self, path: RepoPath) -> bool:
        """Whether the last file beside *path* was read from its start to its end."""
        return self._whole.get(path.parent, False)

    def note(self, path: RepoPath, whole: bool) -> None:
        """Note how a file was read."""
        self._whole[path.parent] = whole
        self._whole.move_to_end(path.parent)
        if len(self._whole) > _FOLDERS_KEPT:
            self._whole.popitem(last=False)

    def answered(self, latency_s: float) -> None:
        """Note how long the first byte of a request took. Any thread."""
        self._latencies.append(latency_s)

    def is_far(self) -> bool:
        """Whether the server is so far that a request must be made long before its bytes.

        The fastest of the last requests counts: the others waited for a busy machine, too.
        """
        latencies = tuple(self._latencies)
        return len(latencies) >= _REQUESTS_KEPT // 2 and min(latencies) > self._far_s


class Streaming:
    """Whether somebody streams: only then may the kernel, too, ask ahead of its readers.

    And whether it is one alone: its requests may be larger then, as memory is not shared.
    """

    def __init__(self) -> None:
        self._who: object = None
        self._another_at = -math.inf
        self._say: Callable[[bool], None] | None = None
        self._is_on = False
        self._last = 0.0

    def tell(self, say: Callable[[bool], None] | None) -> None:
        """Have *say* called with what is true from now on; at first nobody streams."""
        self._say = say

    def is_alone(self) -> bool:
        """Whether for some seconds no second one has streamed."""
        return trio.current_time() - self._another_at > _ALONE_S

    def note(self, streams: bool, who: object = None) -> None:
        """Note a READ; *who* tells streams from each other."""
        if streams and who != self._who:
            if self._who is not None:
                self._another_at = trio.current_time()
            self._who = who
        if self._say is None:
            return
        if streams:
            self._last = trio.current_time()
            if not self._is_on:
                self._is_on = True
                self._say(True)
        elif self._is_on and trio.current_time() - self._last > _STREAM_LASTS_S:
            self._is_on = False
            self._say(False)


class Head:
    """The beginning of a file that describes itself, when its readers have read that.

    Nothing is fetched for it that nobody has asked for.

    Args:
        name: of the file.
        read: returns bytes of it that were read before.
    """

    def __init__(
        self,
        name: str,
        size: int,
        read: Read,
    ) -> None:
        self._name = name
        self._size = size
        self._read = read
        self._seen = 0
        self._wanted = FIRST_BYTES if size >= FIRST_BYTES else 0

    def is_seen(self, extent: Extent) -> bool:
        """Note a READ; True: there is something to look at, and ``look`` is called next."""
        if extent.start <= self._seen < extent.stop:
            self._seen = extent.stop
        return 0 < self._wanted <= self._seen

    async def look(self) -> Layout | None:
        """Return where the parts of the file are; None: that was not read, or is not told."""
        while 0 < self._wanted <= self._seen:
            wanted, self._wanted = self._wanted, 0
            with contextlib.suppress(JfsError):  # whoever reads it is told
                head = bytes(await self._read(Extent(0, wanted)))
                try:
                    return await threads.computing(layout_of, self._name, head, self._size)
                except MoreNeeded as more:
                    self._wanted = more.upto if more.upto <= _HEAD_AT_MOST else 0
        return None
