"""A model of several files that is being read whole is fetched ahead of its reader.

Loaders open its shards and read one after the other, in the order of their names; some open all of
them first, for their headers. So the next shard is fetched once most of one was read: the first, or
one whose predecessor was opened here, too; nobody else reads a shard by itself. Who stops after the
first costs one shard that nobody needed, or several small ones. Two are fetched ahead once the next
one was opened: then it is not the checksum of one file that is computed.

The shards are those of the index that names them, if that was read or is cached; else those that
are called alike, ``…-00001-of-00003.…``. How they are fetched: ``reading.background``. Trio thread
only.
"""

import itertools
import logging
import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import trio

from jfs.errors import JfsError
from jfs.model import ArtifactVersion, FileInfo, RepoPath
from jfs.vfs.namespace.tree import Tree, below
from jfs.vfs.reading.background import bring
from jfs.vfs.reading.intent import Listener
from jfs.vfs.reading.reader import DataPlane

log = logging.getLogger(__name__)

_NUMBERED = re.compile(r"(.*?)([0-9]{1,5})(-of-)([0-9]{1,5})([^0-9/].*)?")
_SHARDS_AT_MOST = 4096
_MODELS_AT_MOST = 64
_OPENED_KEPT = 4096


@dataclass(slots=True)
class _Model:
    """One that is being read.

    Attributes:
        shards: in order.
        reached: the number of the shard that most was read of last.
        runs: whether its shards are being fetched.
    """

    shards: tuple[RepoPath, ...]
    reached: int = 0
    runs: bool = False


class Shards(Listener):
    """See the module; of one mount."""

    def __init__(self, tree: Tree, plane: DataPlane) -> None:
        self._tree = tree
        self._plane = plane
        self._times = itertools.count(1)
        self._opened: OrderedDict[RepoPath, int] = OrderedDict()  # when, the last one last
        self._models: OrderedDict[RepoPath, _Model] = OrderedDict()  # by their first shards
        self._turn = trio.Lock()
        plane.intent.tell(self)

    def opened(self, path: RepoPath) -> None:
        self._opened[path] = next(self._times)
        self._opened.move_to_end(path)
        if len(self._opened) > _OPENED_KEPT:
            self._opened.popitem(last=False)
        shards = self._shards_of(path) if self._models else ()
        model = self._models.get(shards[0]) if shards else None
        if model is not None and shards.index(path) == model.reached + 1:
            self._start(model)

    def read(self, path: RepoPath) -> None:
        shards = self._shards_of(path)
        if len(shards) < 2:
            return
        number = shards.index(path)
        if number and shards[number - 1] not in self._opened:
            return
        model = self._models.setdefault(shards[0], _Model(shards))
        self._models.move_to_end(shards[0])
        if len(self._models) > _MODELS_AT_MOST:
            self._models.popitem(last=False)
        model.shards, model.reached = shards, number
        self._start(model)

    def _shards_of(self, path: RepoPath) -> tuple[RepoPath, ...]:
        """Return all shards of the model that a file is one of; none if it is no shard."""
        if told := self._plane.companions.shards(path):
            return told
        match = _NUMBERED.fullmatch(path.name)
        if match is None:
            return ()
        before, number, of, count, after = match.groups(default="")
        total = int(count)
        if not 1 <= int(number) <= total <= _SHARDS_AT_MOST or len(number) != len(count):
            return ()
        return _alike(path.parent, before, of + count + after, total, len(number))

    def _start(self, model: _Model) -> None:
        if not model.runs:
            model.runs = True
            self._plane.nursery.start_soon(self._fetch_ahead, model)

    async def _fetch_ahead(self, model: _Model) -> None:
        """Fetch the shards after the one that is read, as far as is worth it."""
        sizes: dict[int, int] = {}  # of those that are there
        try:
            while True:
                first = model.reached + 1
                number = next(each for each in itertools.count(first) if each not in sizes)
                if number >= len(model.shards):
                    return
                version = await self._version(model.shards[number])
                if version is None:
                    return
                if model.reached >= number:  # its readers were faster
                    continue
                ahead = sum(sizes[each] for each in range(first, number)) + version.size
                most = 2 if self._goes_on(model) else 1
                if number >= first + most and ahead > self._plane.settings.shards_bytes:
                    return
                async with self._turn:
                    if not await bring(self._plane, version):
                        return
                sizes[number] = version.size
        except Exception:  # of a guess, which ends no mount
            log.exception("%s: its model is not fetched ahead", model.shards[0])
        finally:
            model.runs = False

    def _goes_on(self, model: _Model) -> bool:
        """Whether the shard after the one that is read was opened since, or is not the second."""
        if model.reached > 0:
            return True
        opened, following = (self._opened.get(path, 0) for path in model.shards[:2])
        return following > opened

    async def _version(self, path: RepoPath) -> ArtifactVersion | None:
        """Return what is at a path; None: nothing that can be fetched."""
        try:
            inode = await self._tree.walk(below(self._tree.inodes.root.path, path))
        except JfsError:
            return None
        info = inode.info
        if not isinstance(info, FileInfo) or info.link_target is not None or inode.is_ours:
            return None
        return info.version if info.size else None


@lru_cache(16)  # every one of thousands is asked for
def _alike(
    folder: RepoPath, before: str, after: str, total: int, digits: int
) -> tuple[RepoPath, ...]:
    numbers = range(1, total + 1)
    return tuple(folder.child(f"{before}{number:0{digits}}{after}") for number in numbers)
