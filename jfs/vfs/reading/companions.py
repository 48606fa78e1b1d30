"""What files tell of others beside them, once somebody has read them. Trio thread only.

Where an ONNX model keeps its tensors in other files, and which shards an index names. Programs read
such a file before they open the others; nothing is fetched for it that nobody has asked for. It may
be out of date, or wrong: it decides what is fetched ahead, and no more.
"""

import contextlib
from collections import OrderedDict
from dataclasses import dataclass, field

from jfs import threads
from jfs.errors import DiskHangs, JfsError
from jfs.extents import Extent, ExtentSet, MiB
from jfs.formats import Layout, Part, Told, describes_itself, tells_of_others, told_by
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.vfs.reading.cached import Cached
from jfs.vfs.reading.learning import Head, Read
from jfs.vfs.reading.readahead import ReadaheadPlanner
from jfs.vfs.reading.whole import SMALL

_TELLERS_AT_MOST = 1024
_PARTS_AT_MOST = 65_536  # of all files: 20 MiB
_CONTENT_AT_MOST = 8 * MiB  # larger ones are rare, and cost seconds to read through


@dataclass(frozen=True, slots=True)
class _Known:
    """What was told by one file: of others, or where its own tensors are."""

    content: ContentKey
    parts: dict[RepoPath, list[Part]] = field(default_factory=dict)
    shards: tuple[RepoPath, ...] = ()
    layout: Layout | None = None

    @property
    def size(self) -> int:
        own = len(self.layout.parts) if self.layout is not None else 0
        return own + sum(len(parts) for parts in self.parts.values()) + len(self.shards)


class Companions:
    """See the module; of one mount. The file that was heard last is forgotten last."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: OrderedDict[RepoPath, _Known] = OrderedDict()
        self._size = 0
        self._parts: dict[RepoPath, list[Part]] = {}
        self._shards: dict[RepoPath, tuple[RepoPath, ...]] = {}

    def knows(self, version: ArtifactVersion) -> bool:
        """Whether it is known what this file tells."""
        known = self._known.get(version.path)
        return known is not None and known.content == version.content

    def layout(self, version: ArtifactVersion) -> Layout | None:
        """Return where the tensors of a file are, if it told: the kernel may have its head."""
        known = self._known.get(version.path)
        return known.layout if known is not None and known.content == version.content else None

    def note(self, version: ArtifactVersion, told: Told | Layout) -> None:
        """Note what a file tells; what it told before is forgotten."""
        path, folder = version.path, version.path.parent
        if path in self._known:
            self._forget(path)
        if isinstance(told, Layout):
            known = _Known(version.content, layout=told)
        else:
            parts = {folder.child(file): parts for file, parts in told.parts.items()}
            shards = tuple(folder.child(file) for file in sorted(told.shards))
            known = _Known(version.content, parts, shards)
            self._parts.update(parts)
            self._shards.update(dict.fromkeys(shards, shards))
        self._known[path] = known
        self._metrics.count("described_files")
        self._size += known.size
        while len(self._known) > _TELLERS_AT_MOST or self._size > _PARTS_AT_MOST:
            self._forget(next(iter(self._known)))

    def parts(self, path: RepoPath) -> list[Part] | None:
        """Return where tensors lie in a file, if another one told."""
        return self._parts.get(path) if self._parts else None

    def shards(self, path: RepoPath) -> tuple[RepoPath, ...]:
        """Return all shards of the model that a file is one of, in order, if an index told."""
        return self._shards.get(path, ())

    def _forget(self, path: RepoPath) -> None:
        known = self._known.pop(path)
        self._size -= known.size
        for file, parts in known.parts.items():
            if self._parts.get(file) is parts:
                del self._parts[file]
        for file in known.shards:
            if self._shards.get(file) is known.shards:
                del self._shards[file]


class Teller:
    """A file that may tell of others: looked at when all of it was read.

    Args:
        read: returns bytes of it that were read before.
    """

    def __init__(self, version: ArtifactVersion, read: Read, companions: Companions) -> None:
        self._version = version
        self._read = read
        self._companions = companions
        self._whole = Extent(0, version.size)
        self._seen: ExtentSet | None = ExtentSet()  # None: it is looked at

    def is_seen(self, extent: Extent) -> bool:
        """Note a READ; True: there is something to look at, and ``look`` is called next."""
        if self._seen is None:
            return False
        self._seen.add(extent)
        if not (self._version.size <= SMALL or self._seen.contains(self._whole)):
            return False
        self._seen = None
        return not self._companions.knows(self._version)

    async def look(self) -> Layout | None:
        """Note what it tells; it has no tensors of its own."""
        self._seen = None
        with contextlib.suppress(JfsError):  # whoever reads it is told
            content = bytes(await self._read(self._whole))
            told = await threads.computing(told_by, self._version.path.name, content)
            self._companions.note(self._version, told)
        return None


class Data:
    """A file whose tensors another one may have told of."""

    def __init__(self, version: ArtifactVersion, companions: Companions) -> None:
        self._path = version.path
        self._size = version.size
        self._companions = companions
        self._is_placed = False

    def is_seen(self, _: Extent) -> bool:
        """As of ``Teller``."""
        return not self._is_placed and self._companions.parts(self._path) is not None

    async def look(self) -> Layout | None:
        """Return where the tensors are in the file, unless it is another one by now."""
        self._is_placed = True
        with contextlib.suppress(JfsError):
            return await threads.computing(
                Layout.of, 0, self._size, self._companions.parts(self._path) or ()
            )
        return None


Description = Head | Teller | Data


def description(version: ArtifactVersion, read: Read, companions: Companions) -> Description:
    """Return what tells where the tensors of a file are, or of others."""
    name, size = version.path.name, version.size
    if describes_itself(name):
        return Head(name, size, read)
    if tells_of_others(name, size) and size <= _CONTENT_AT_MOST:
        return Teller(version, read, companions)
    return Data(version, companions)


async def learn(
    description: Description,
    version: ArtifactVersion,
    planner: ReadaheadPlanner,
    companions: Companions,
    content: Cached | None = None,
) -> None:
    """Learn what a file tells, for its planner too.

    Args:
        content: look if all of it is there; None: what is to be looked at was read.
    """
    if content is not None and companions.knows(version):
        return
    with contextlib.suppress(DiskHangs):
        whole = Extent(0, version.size)
        if content is not None and await content.missing(whole):
            return
        layout = await description.look()
        if layout is not None:
            planner.layout = layout
            companions.note(version, layout)
