"""Properties of what the mount shows: asked for once a folder, believed for a while, changed.

One query brings the properties of a whole folder, once it was listed or a second item of it is
asked about: ``getfattr -d -R`` over 10,000 files of one folder is one request. A single file that
somebody knows the path of costs one small request. Trio thread only.
"""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from jfs.errors import AccessDenied, JfsError, NoAttribute, NotPermitted, Unavailable
from jfs.model import Criteria, Properties
from jfs.protocols import ArtifactStore
from jfs.vfs.namespace.inodes import Inode

log = logging.getLogger(__name__)

# How long a folder is asked about item by item after its query was refused: anonymous users may
# not query (artifactory-rest 10.1).
_REFUSED_S = 300.0


class PropertyTable:
    """See the module.

    Args:
        ttl_s: how long an answer is believed.
    """

    def __init__(self, store: ArtifactStore, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._locks: dict[Inode, trio.Lock] = {}
        self._refused_until = 0.0

    async def get(self, inode: Inode) -> Properties:
        """Give the properties of an item. Raises RemoteError."""
        if inode.computed is not None or not inode.path.repo:
            return {}
        if inode.local:
            return inode.properties or {}  # kept here until it is uploaded
        if self._fresh(inode) is None:
            async with self._lock(inode):
                if self._fresh(inode) is None:
                    await self._ask(inode)
        return inode.properties or {}

    async def change(self, inode: Inode, change: Mapping[str, tuple[str, ...] | None]) -> None:
        """Set keys, or remove those that are None; a folder's touch that folder alone.

        Raises:
            NoAttribute: a key to remove is not there.
            NotPermitted: the entry is computed.
        """
        if inode.computed is not None or not inode.path.repo:
            raise NotPermitted(f"{inode.name or 'the server'} has no properties of its own")
        if None in change.values():
            known = await self.get(inode)
            for key, values in change.items():
                if values is None and key not in known:
                    raise NoAttribute(f"{inode.path}: has no property {key}")
        if inode.local:
            inode.properties = _changed(inode.properties, change)
            return
        # Under the lock of who asks: an answer that was on its way, from before the change, must
        # not come after it.
        async with self._lock(inode):
            await self._store.set_properties(inode.path, change)
            if self._fresh(inode) is not None:
                inode.properties = _changed(inode.properties, change)

    @asynccontextmanager
    async def _lock(self, inode: Inode) -> AsyncIterator[None]:
        """Hold the lock of an item's folder, which exists only while somebody wants it."""
        key = inode.parent or inode
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    def _fresh(self, inode: Inode) -> Properties | None:
        if inode.properties is not None and inode.properties_until > trio.current_time():
            return inode.properties
        return None

    async def _ask(self, inode: Inode) -> None:
        now = trio.current_time()
        folder = inode.parent
        if folder is not None and folder.path.repo and now >= self._refused_until:
            listed = folder.complete_until > now  # somebody walks: they will ask about the rest
            if listed or now - folder.sibling_asked < self._ttl_s:
                try:
                    await self._ask_folder(folder)
                    if self._fresh(inode) is not None:
                        return
                except AccessDenied as error:
                    log.info("%s: no queries, asking item by item: %s", folder.path, error)
                    self._refused_until = now + _REFUSED_S
            folder.sibling_asked = now
        await self._ask_item(inode)

    async def _ask_item(self, inode: Inode) -> None:
        try:
            properties = await self._store.properties(inode.path)
        except Unavailable as error:
            if inode.properties is None:
                raise
            log.warning("%s: serving the properties known before: %s", inode.path, error)
            properties = inode.properties
        self._note(inode, properties)

    async def _ask_folder(self, folder: Inode) -> None:
        """Bring the properties of everything in a folder by one query."""
        try:
            matches = await self._store.search(
                Criteria(folder.path, kind="any", direct=True, tagged=True)
            )
        except AccessDenied:
            raise
        except JfsError as error:
            log.debug("%s: asking item by item: %s", folder.path, error)
            return
        found = {match.info.path.name: match.properties for match in matches}
        for name, child in folder.dentries.items():
            if not child.local:
                self._note(child, found.get(name, {}))

    def _note(self, inode: Inode, properties: Properties) -> None:
        inode.properties = properties
        inode.properties_until = trio.current_time() + self._ttl_s


def _changed(
    properties: Properties | None, change: Mapping[str, tuple[str, ...] | None]
) -> Properties:
    merged = {**(properties or {}), **change}
    return {key: values for key, values in merged.items() if values is not None}
