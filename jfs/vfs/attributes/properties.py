"""Properties of what the mount shows: asked for once a folder, believed for a while, changed.

One query brings the properties of a whole folder, once it was listed or a second item of it is
asked about: ``getfattr -d -R`` over 10,000 files of one folder is one request. A single file that
somebody knows the path of costs one small request. Trio thread only.
"""

import logging
from collections.abc import Mapping

import trio

from jfs.config import TreeSettings
from jfs.errors import (
    AccessDenied,
    JfsError,
    NoAttribute,
    NotPermitted,
    ServerDown,
    Unavailable,
)
from jfs.model import Criteria, Properties
from jfs.protocols import ArtifactStore
from jfs.vfs.freshness import PIECE, Asked, Cell
from jfs.vfs.kept.keeper import Forgetful
from jfs.vfs.namespace.inodes import Inode
from jfs.vfs.questions import NotYet, Questions, StandsIn

log = logging.getLogger(__name__)

# How long a folder is asked about item by item after its query was refused: anonymous users may
# not query (artifactory-rest 10.1).
_REFUSED_S = 300.0
# After this long an item is asked about alone; the query of its folder goes on beside it.
_QUERY_PATIENCE_S = 2.0
# Times that a question is repeated whose answer was overtaken by a change or a refresh.
_TRIES = 3


class PropertyTable:
    """See the module."""

    def __init__(
        self,
        store: ArtifactStore,
        settings: TreeSettings,
        questions: Questions,
        kept: Forgetful,
    ) -> None:
        self._store = store
        self._settings = settings
        self._questions = questions
        self._kept = kept

    async def get(self, inode: Inode) -> Properties:
        """Return the properties of an item. Raises RemoteError."""
        if inode.computed is not None or not inode.path.repo:
            return {}
        if inode.local:
            return inode.properties or {}  # kept here until it is uploaded
        tags = inode.tags = inode.tags or Cell()
        if tags.is_fresh(self._settings.attr_ttl_s):
            return tags.value
        folder = inode.parent
        if folder is not None and tags.is_idle and self._is_worth_a_query(folder):
            try:
                asked = await self._ask_folder(folder)
            except (NotYet, JfsError) as error:
                log.debug("%s: asking for %s alone: %s", folder.path, inode.name, error)
            else:
                if tags.is_known and tags.asked.serial >= asked.serial:
                    return tags.value
        return await self._ask_item(inode, tags)

    async def current(self, inode: Inode) -> Properties:
        """Return what the server says now, whatever is known: to be written back to it.

        Raises RemoteError.
        """
        if inode.local:
            return inode.properties or {}
        if inode.computed is not None or not inode.path.repo:
            return {}
        return await self._store.properties(inode.path)

    async def change(self, inode: Inode, change: Mapping[str, tuple[str, ...] | None]) -> None:
        """Set keys, or remove those that are None; a folder's touch that folder alone.

        Raises:
            NoAttribute: a key to remove is not there.
            NotPermitted: the entry is computed.
        """
        if inode.computed is not None or not inode.path.repo:
            raise NotPermitted(f"{inode.name or 'the server'} has no properties of its own")
        if None in change.values():
            before = await self.get(inode)
            for key, values in change.items():
                if values is None and key not in before:
                    raise NoAttribute(f"{inode.path}: has no property {key}")
        if inode.local:
            inode.properties = _changed(inode.properties, change)
            return
        try:
            await self._store.set_properties(inode.path, change)
        except Unavailable as error:
            if not isinstance(error, ServerDown):  # its answer may have been lost
                inode.doubt_properties()
                self._note_change(inode, None)
            raise
        # Answers to questions from before are too late from here on.
        tags = inode.tags
        if tags is not None and tags.is_known and tags.is_fresh(self._settings.attr_ttl_s):
            tags.confirm(_changed(tags.value, change))
            self._note_change(inode, tags.value)
        else:
            inode.doubt_properties()
            self._note_change(inode, None)

    def _note_change(self, inode: Inode, known: Properties | None) -> None:
        """Let others know that the properties were changed here; None: nobody knows to what."""
        self._kept.changed()
        self._kept.tagged(inode.path.parent, {inode.path.name: known}, Asked.now())
        if inode.parent is not None and inode.parent.below is not None:
            inode.parent.below.tags.expire()

    def _is_worth_a_query(self, folder: Inode) -> bool:
        """Whether somebody walks through the folder, and will ask about the rest of it."""
        now, ttl_s, below = trio.current_time(), self._settings.attr_ttl_s, folder.below
        if below is None or not folder.path.repo or now < below.no_query_until:
            return False
        walked = below.listing.is_answered(self._settings.entry_ttl_s)
        walked = walked or now - below.tag_asked_at < ttl_s
        below.tag_asked_at = now
        return walked and ttl_s > 0

    async def _ask_item(self, inode: Inode, tags: Cell[Properties]) -> Properties:
        async def ask(asked: Asked) -> Properties:
            path = inode.path
            properties = await self._store.properties(path)
            if inode.path == path:
                self._kept.tagged(path.parent, {path.name: properties}, asked)
            return properties

        async def recall() -> Cell[Properties] | None:
            found = await self._kept.properties(inode.path)
            return tags if found is not None and tags.put(*found) else None

        for _ in range(_TRIES):
            try:
                answer = await self._questions.answer(
                    tags, ask, inode.path.repo, stands=tags, recall=recall
                )
            except StandsIn as stands:
                if not tags.is_known:  # changed here meanwhile
                    continue
                tags.stand_in(stands.stand)
                return tags.value
            if answer.stored:
                break
            if tags.is_fresh(self._settings.attr_ttl_s):
                return tags.value
        else:
            answer = await self._questions.answer(tags, ask, inode.path.repo)
        return answer.value

    async def _ask_folder(self, folder: Inode) -> Asked:
        """Bring the properties of everything in a folder by one query.

        Returns:
            When it was asked. Children that appeared since are not in it.
        Raises:
            NotYet, RemoteError
        """
        below = folder.below
        assert below is not None

        async def ask(asked: Asked) -> bool:
            path = folder.path
            try:
                matches = await self._store.search(
                    Criteria(path, kind="any", direct=True, tagged=True)
                )
            except AccessDenied as error:
                log.info("%s: no queries, asking item by item: %s", path, error)
                below.no_query_until = trio.current_time() + _REFUSED_S
                raise
            if folder.path != path:
                return False  # it was moved: what came is about another place
            found = {match.info.path.name: match.properties for match in matches}
            learnt: dict[str, Properties] = {}
            if below.crowd is not None:
                below.crowd.tag(found, asked)
                learnt.update(found)
            for count, child in enumerate(list(folder.dentries.values()), 1):
                if not child.local and child.stat.asked.serial < asked.serial:
                    child.tags = child.tags or Cell()
                    learnt[child.name] = found.get(child.name, {})
                    child.tags.put(learnt[child.name], asked)
                if not count % PIECE:
                    await trio.lowlevel.checkpoint()
            if folder.path == path:
                self._kept.tagged(path, learnt, asked)
            return True

        answer = await self._questions.answer(
            below.tags, ask, folder.path.repo, patience_s=_QUERY_PATIENCE_S
        )
        return answer.asked


def _changed(
    properties: Properties | None, change: Mapping[str, tuple[str, ...] | None]
) -> Properties:
    merged = {**(properties or {}), **change}
    return {key: values for key, values in merged.items() if values is not None}
