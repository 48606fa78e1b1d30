"""Extended attributes of entries: properties, and facts about the artifact. Trio thread only."""

from jfs.config import TreeSettings
from jfs.errors import NoAttribute, NotPermitted, Unsupported
from jfs.model import SYMLINK_TARGET, FileInfo, kind_of
from jfs.protocols import ArtifactStore
from jfs.vfs.attributes import xattrs
from jfs.vfs.attributes.properties import PropertyTable
from jfs.vfs.files.table import OpenFiles
from jfs.vfs.freshness import Asked
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.namespace.selectors import Link
from jfs.vfs.namespace.tree import require_name
from jfs.vfs.refusals import Refusals
from jfs.vfs.standing import Standing


class StaleView:
    """Whether what is shown of an entry stands in while the server cannot be asked."""

    def __init__(self, settings: TreeSettings, standing: Standing) -> None:
        self._ttl_s = settings.attr_ttl_s
        self._standing = standing

    def covers(self, inode: Inode) -> bool:
        """Whether it was asked for in vain, or is too old and something else was since."""
        if inode.is_ours:
            return False
        cells = (inode.stat, inode.tags, inode.below.listing if inode.below is not None else None)
        if any(cell is not None and cell.is_stale(self._ttl_s) for cell in cells):
            return True
        stat = inode.stat
        troubled = self._standing.failed_since(inode.path.repo, stat.asked.at)
        return troubled and not stat.is_answered(self._ttl_s)


class ExtendedAttributes:
    """See the module. *address*: URL of the service, for ``user.jfs.uri``."""

    def __init__(
        self,
        store: ArtifactStore,
        properties: PropertyTable,
        files: OpenFiles,
        refusals: Refusals,
        address: str,
        stale: StaleView,
        *,
        read_only: bool,
    ) -> None:
        self._store = store
        self._properties = properties
        self._files = files
        self._refusals = refusals
        self._address = address
        self._stale = stale
        self._read_only = read_only

    async def get(self, inode: Inode, name: bytes) -> bytes:
        """Return a property, or a fact about the artifact.

        Raises:
            NoAttribute: it has none of that name.
            Unsupported: another namespace than ``user.``; answered without the server.
        """
        if name.startswith(xattrs.FACTS.encode()):
            return await self._fact(inode, name.decode("utf-8", "replace"))
        key = xattrs.key_to_read(name)
        values = (await self._properties.get(inode)).get(key)
        if values is None:
            raise NoAttribute(f"no property {key}")
        return xattrs.encode_values(values)

    async def names(self, inode: Inode) -> list[bytes]:
        """Name the properties. Facts are not listed: who copies attributes cannot set them."""
        if kind_of(inode.info) == "link":
            return []  # Linux lets nobody read user attributes of links
        properties = await self._properties.get(inode)
        return [f"{xattrs.PREFIX}{key}".encode() for key in sorted(properties)]

    async def set(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        """Set a property, or remove it (None).

        Of a file that is being written for the first time they are kept until it is uploaded.

        Raises:
            InvalidProperty: Artifactory cannot hold it.
            NotPermitted: a fact, or an entry that is computed.
            Replaced: the file has lost its name.
            NoAttribute: there is nothing to remove.
            Unsupported: another namespace than ``user.``.
        """
        key = xattrs.key_to_write(name)
        values = xattrs.decode_values(value) if value is not None else None
        if self._read_only:
            raise NotPermitted("the mount is read-only")
        if isinstance(inode.computed, Link):
            raise Unsupported("a selector has no properties of its own")
        if key == SYMLINK_TARGET:
            raise NotPermitted(f"{name!r} makes an artifact a symbolic link: use ln -s")
        # An upload asks what properties there are, and sends them along: not meanwhile.
        async with self._files.renaming.held(inode):
            require_name(inode)  # they would be set on what has the name now
            await self._properties.change(inode, {key: values})
            if inode.local:
                await self._files.renaming.note_properties(inode)

    async def _fact(self, inode: Inode, name: str) -> bytes:
        fact = name.removeprefix(xattrs.FACTS)
        if fact == "last_error" and (said := self._refusals.last(inode.path)) is not None:
            return said.encode()
        if inode.computed is not None or not inode.path.repo:
            raise NoAttribute(f"{name}: only of what is on the server")
        info = inode.info
        value = xattrs.fact(info, fact)
        if fact == "uri":
            value = f"{self._address}/{inode.path}"
        elif fact == "state":
            file = self._files.find(inode)
            if file is not None and file.dirty:
                value = "pending" if file.is_pending else "dirty"
            else:
                value = "stale" if self._stale.covers(inode) else "clean"
        elif fact == "last_error":
            raise NoAttribute(f"{name}: nothing was refused")
        elif value is None and not inode.local:
            value = await self._asked(inode, fact)
        if value is None:
            raise NoAttribute(f"{name}: not known")
        return value.encode()

    async def _asked(self, inode: Inode, fact: str) -> str | None:
        """Ask for what a listing does not say, once, and keep the answer."""
        if fact == "downloads":
            return str(await self._store.downloads(inode.path))
        asked = Asked.now()
        info = await self._store.stat(inode.path)
        known = inode.info
        if (
            isinstance(info, FileInfo)
            and isinstance(known, FileInfo)
            and info.version == known.version
        ):
            inode.stat.put(info, asked)
        return xattrs.fact(info, fact)
