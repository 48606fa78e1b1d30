"""Which files will be read whole, as far as it is remembered: those whose like were.

Alike are files of one name but for numbers, the shards of a model. What became of the last of them
in a folder holds for the others; where nothing is remembered of a folder, what became of their like
in the folders beside it: the loader that has read ``v1/model-00001-of-00002`` whole will read
``v2/model-00001-of-00004`` whole, too, and what it does with ``tokenizer.json`` is another matter.

It outlives the mount beside the cache, where other mounts of the node find it when they begin. Only
digests of names are kept. Trio thread only.
"""

import hashlib
import logging
import re
from collections import OrderedDict

import trio

from jfs.errors import DiskHangs
from jfs.model import RepoPath
from jfs.protocols import Notes
from jfs.waiting import Disk

log = logging.getLogger(__name__)

_MOST = 8192
_NUMBER = re.compile(r"[0-9]+")


class Recall:
    """See the module.

    Args:
        notes: where it is kept; None: nowhere.
        disk: of the notes.
        server: whose paths they are.
    """

    def __init__(
        self, notes: Notes | None, disk: Disk, nursery: trio.Nursery, server: str = ""
    ) -> None:
        self._notes = notes
        self._disk = disk
        self._nursery = nursery
        self._server = server
        self._known: OrderedDict[str, bool] = OrderedDict()

    async def load(self) -> None:
        """Find what earlier mounts have noted, if the disk answers."""
        if self._notes is None:
            return
        try:
            for key, is_whole in (await self._disk.run(self._notes.load)).items():
                self._known.setdefault(key, is_whole)
        except (OSError, DiskHangs) as error:
            log.debug("what was read whole is not known: %s", error)

    def is_read_whole(self, path: RepoPath) -> bool:
        """Whether a file is likely to be read whole."""
        here, beside = self._keys(path)
        return self._known.get(here, self._known.get(beside, False))

    def note(self, path: RepoPath, is_whole: bool) -> None:
        """Note whether most of a file was read."""
        for key in self._keys(path):
            if self._known.get(key) is not is_whole:
                self._known[key] = is_whole
                if self._notes is not None:
                    self._nursery.start_soon(self._keep, self._notes, key, is_whole)
            self._known.move_to_end(key)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)

    async def _keep(self, notes: Notes, key: str, is_whole: bool) -> None:
        try:
            await self._disk.run(notes.keep, key, is_whole)
        except (OSError, DiskHangs) as error:
            log.debug("that it was read whole is not remembered: %s", error)

    def _keys(self, path: RepoPath) -> tuple[str, str]:
        """Return what its like in its folder are known by, and those in the folders beside it."""
        folder, like = path.parent, _NUMBER.sub("#", path.name)
        return self._key(f"{folder}/{like}"), self._key(f"{folder.parent}/*/{like}")

    def _key(self, text: str) -> str:
        return hashlib.sha256(f"{self._server}\0{text}".encode()).hexdigest()[:32]
