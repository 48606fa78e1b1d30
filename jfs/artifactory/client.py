"""The control plane: names, sizes and checksums, over httpx. Trio thread only."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio

from jfs.artifactory import builds, finding, locating, mutations, retry, searching, uploads, wire
from jfs.artifactory.access import Access
from jfs.artifactory.breaker import Breakers
from jfs.artifactory.builds import BuildInfo
from jfs.artifactory.exchange import was_cut
from jfs.artifactory.listings import Listings, describe
from jfs.artifactory.repositories import Repositories
from jfs.artifactory.rows import Hidden
from jfs.artifactory.session import Session
from jfs.artifactory.uploads import Uploads
from jfs.artifactory.upstream import Upstream
from jfs.config import Credentials, ServerSettings
from jfs.errors import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    NotFound,
    NotReachable,
    ProtocolViolation,
    RateLimited,
    RemoteError,
    Unavailable,
    Untrusted,
)
from jfs.metrics import Metrics
from jfs.model import (
    ArtifactVersion,
    Criteria,
    Deployment,
    EntryInfo,
    FileInfo,
    FolderInfo,
    Match,
    Properties,
    RepoPath,
    Repository,
    same_content,
)
from jfs.packed import Packed
from jfs.protocols import Growing, Still

_T = TypeVar("_T")
_NOWHERE = RepoPath("")


class ArtifactoryClient:
    """``ArtifactStore`` over HTTP. Close it with ``aclose``.

    Args:
        access: shared with the data plane; by default what the settings and environment say.
        breakers: shared with the data plane.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        access: Access | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        self._settings = settings
        self._session = Session(settings, metrics, access, breakers)
        self._uploads = Uploads(self._session, metrics)
        self._hidden = Hidden()
        self._repositories = Repositories(self._session, self._hidden)
        self._upstream = Upstream(self._session)
        self._listings = Listings(self._session, self._hidden, self._describe)

    async def aclose(self) -> None:
        """Close every connection."""
        self._uploads.close()
        await self._session.aclose()

    @property
    def breakers(self) -> Breakers:
        """What of the server is down, and who is told of that."""
        return self._session.breakers

    async def watch(self) -> None:
        """Find out when what is down is up again; never ends. For the background of a mount."""
        await self._session.watch()

    def cut_uploads(self) -> None:
        """Cut the uploads that are under way; they fail soon. Any thread."""
        self._uploads.close()

    async def check(self, place: RepoPath = _NOWHERE) -> None:
        """Make sure that an Artifactory answers and lets us in.

        Args:
            place: what is meant on it: if no Artifactory answers, a part of it may belong to the
                address of the service.
        Raises:
            NotReachable: nobody can be asked now.
            ConfigError: what is wrong and what to do.
        """
        url = self._settings.url
        try:
            await self._first_contact()
        except AccessDenied as error:
            if error.status in (None, 407):  # the token file; the proxy
                raise ConfigError(error.message) from None
            if self._settings.credentials == Credentials():
                raise ConfigError(
                    f"{url}: credentials are needed: set JF_ACCESS_TOKEN or use --token-file"
                ) from None
            raise ConfigError(
                f"{url}: the token or password is not accepted ({error.message}): get a new one"
            ) from None
        except (NotFound, ProtocolViolation):
            found = await finding.near(self._settings, place)
            advice = (
                f"give {found}, where one is"
                if found is not None
                else "give the URL of the service, such as https://company.example/artifactory"
            )
            raise ConfigError(
                f"{url}: something answers, but it is not an Artifactory: {advice}"
            ) from None
        except RemoteError as error:
            is_outage = isinstance(error, Unavailable | RateLimited)
            passes = is_outage and not isinstance(error, Untrusted)
            kind = NotReachable if passes else ConfigError
            raise kind(f"{url}: {explain(error)}") from None

    async def _first_contact(self) -> None:
        """Ask for a sign of life, and for the repositories.

        An address where nobody listens is told at once: it may be mistyped. A server that is there,
        and hangs up or is busy, is asked again for as long as by any other call.
        """
        url, is_there = self._settings.url, False
        end = trio.current_time() + self._settings.retries_s
        for wait_s in retry.delays():
            try:
                pong = await self._session.exchange("GET", finding.PING, retries=False)
                if not finding.is_ping(pong):
                    raise ProtocolViolation("not an Artifactory")
                base = finding.base_of(pong, url)
                if base != url:  # credentials are not sent along, and changes not sent elsewhere
                    raise ConfigError(f"{url}: redirects to {base}: give that address")
                await self._repositories.list(retries=False)
                return
            except (Unavailable, RateLimited) as error:
                is_there = is_there or error.status is not None or was_cut(error)
                again_s = max(wait_s, retry.after_s(error) or 0.0)
                if isinstance(error, Untrusted) or not is_there:
                    raise
                if trio.current_time() + again_s > end:
                    raise
            await trio.sleep(again_s)

    def remember(
        self,
        repositories: Sequence[Repository],
        learnt: Callable[[Sequence[Repository]], None],
    ) -> None:
        """Believe what an earlier mount was told of the repositories, until they are listed.

        Args:
            learnt: told whenever they are.
        """
        self._repositories.remember(repositories, learnt)

    async def repositories(self) -> Sequence[Repository]:
        return await self._repositories.list()

    async def stat(self, path: RepoPath) -> EntryInfo:
        if not path.repo:
            return FolderInfo(path, 0)
        try:
            return await self._describe(path)
        except NotFound:
            repository = await self._repositories.find(path.repo)
            if repository is None or not self._repositories.is_remote(path.repo):
                raise
        except AccessDenied as error:
            raise await self._denied_or_missing(path, error) from None
        return await self._upstream.stat(path, repository)

    async def list_children(
        self, path: RepoPath, known: Packed | None = None
    ) -> Sequence[EntryInfo]:
        if not path.repo:
            return [FolderInfo(RepoPath(row.key), 0) for row in await self.repositories()]
        kept = await self._kept(path)
        try:
            entries = await self._listings.children(path, kept, known)
            repository = await self._repositories.find(path.repo) if kept != path else None
            if repository is None or path.path:
                return entries
            return await self._upstream.shown(path, entries, repository)
        except NotFound:
            if kept == path:
                raise
            return []  # nothing of it is cached yet
        except AccessDenied as error:
            raise await self._denied_or_missing(path, error) from None

    async def properties(self, path: RepoPath) -> Properties:
        if not path.repo:
            return {}
        try:
            kept = await self._kept(path)
            return await self._json(f"{_storage(kept)}?properties", wire.parse_properties)
        except NotFound:
            return {}  # the usual answer for an item without any (artifactory-rest 17.3)

    async def set_properties(
        self,
        path: RepoPath,
        change: Mapping[str, tuple[str, ...] | None],
        *,
        recursive: bool = False,
    ) -> None:
        """See ``ArtifactStore``; *recursive*: also of everything below a folder.

        PATCH, since nothing has to be escaped in it (artifactory-rest 7.3).
        """
        kept = await self._kept(path)
        props = {key: None if values is None else list(values) for key, values in change.items()}
        query = f"?recursiveProperties={int(recursive)}&atomicProperties=1"
        await self._session.exchange(
            "PATCH",
            f"/api/metadata{wire.encode_path(kept)}{query}",
            content=json.dumps({"props": props}).encode(),
            headers={"Content-Type": "application/json"},
            repo=path.repo,
        )

    async def search(self, criteria: Criteria) -> Sequence[Match]:
        return await searching.search(self._session, self._repositories, self._hidden, criteria)

    async def locate(self, version: ArtifactVersion) -> RepoPath | None:
        return await locating.locate(self._session, version, await self._kept(version.path))

    async def downloads(self, path: RepoPath) -> int:
        return await self._json(f"{_storage(await self._kept(path))}?stats", wire.parse_downloads)

    async def is_empty(self, path: RepoPath) -> bool:
        return await self._listings.is_empty(path)

    # changes; how they are asked and repeated is in ``mutations`` and ``uploads``

    async def deploy(
        self,
        deployment: Deployment,
        file: int | None,
        *,
        patient: bool = True,
        still: Still | None = None,
    ) -> FileInfo:
        info = await self._uploads.deploy(deployment, file, patient=patient, still=still)
        late = uploads.set_afterwards(deployment.properties)
        if late:
            await self.set_properties(deployment.path, late)
        return info

    async def stream(self, path: RepoPath, file: Path, growing: Growing) -> FileInfo:
        return await self._uploads.stream(path, file, growing)

    async def make_folder(self, path: RepoPath) -> None:
        await mutations.make_folder(self._session, path)

    async def delete(self, path: RepoPath) -> None:
        try:
            await mutations.delete(self._session, path)
        except NotFound as error:
            # A virtual repository shows what its members have, and deletes nothing (5). In a local
            # one it was made by somebody a moment after.
            if not self._repositories.is_local(path.repo) and await self._exists(path):
                raise mutations.not_local(error) from None
            raise

    async def move(
        self,
        source: RepoPath,
        target: RepoPath,
        *,
        tree: bool = False,
        known: EntryInfo | None = None,
    ) -> None:
        await self._transfer("move", source, target, tree=tree, known=known)

    async def copy(self, source: RepoPath, target: RepoPath, *, tree: bool = False) -> None:
        kept = await self._kept(source)  # a remote repository itself has nothing to copy
        await self._transfer("copy", kept, target, tree=tree)

    async def _transfer(
        self,
        verb: str,
        source: RepoPath,
        target: RepoPath,
        *,
        tree: bool,
        known: EntryInfo | None = None,
    ) -> None:
        async def arrived(info: EntryInfo) -> bool:
            try:
                there = await describe(self._session, target, target)
            except NotFound:
                return False
            same_kind = isinstance(info, FolderInfo) and isinstance(there, FolderInfo)
            return same_kind or same_content(info, there)

        local = all(self._repositories.is_local(each.repo) for each in (source, target))
        await mutations.transfer(
            *(self._session, verb, source, target, self._exists, arrived),
            known=known,
            tree=tree,
            local=local,
        )

    async def publish_build(self, document: Mapping[str, object]) -> None:
        """Publish what ``builds.document`` made; the same run once more replaces it."""
        await builds.publish(self._session, document)

    async def build(self, name: str, number: str) -> BuildInfo:
        """Return the last run of a build that was published. Raises NotFound."""
        return await builds.get(self._session, name, number)

    def is_writable(self, repo: str) -> bool:
        return bool(repo) and not self._repositories.is_remote(repo)

    def removes(self, repo: str) -> bool:
        return self._repositories.is_local(repo)

    def lists_all(self, repo: str) -> bool:
        return not self._repositories.is_remote(repo)

    async def _exists(self, path: RepoPath) -> bool:
        try:
            await describe(self._session, path, path)
        except NotFound:
            return False
        except AccessDenied as error:
            denied = await self._denied_or_missing(path, error)
            if isinstance(denied, NotFound):
                return False
            raise denied from None
        return True

    async def _describe(self, path: RepoPath) -> EntryInfo:
        """Ask about one item where the server keeps it."""
        return await describe(self._session, path, await self._kept(path))

    async def _denied_or_missing(self, path: RepoPath, error: AccessDenied) -> RemoteError:
        """Return what a 403 about an item means: NotFound if its folder does not list it.

        Rights are given for patterns of paths: who has none for a name is refused whether it is
        there or not.
        """
        if error.status != 403:
            return error
        if not path.path:
            try:
                listed = path.repo in {row.key for row in await self._repositories.list()}
            except RemoteError:
                return error  # no list says which repositories there are
        else:
            try:
                names = await self._listings.names(await self._kept(path.parent))
            except AccessDenied:
                return error
            except NotFound as missing:
                return missing
            listed = path.name in names
        if listed:
            return error
        return NotFound(
            f"not listed, and refused by name: {error.message}",
            status=404,
            method=error.method,
            url=error.url,
        )

    async def _kept(self, path: RepoPath) -> RepoPath:
        return await self._repositories.kept(path)

    async def _json(self, address: str, parse: Callable[[Any], _T]) -> _T:
        return parse(wire.parse_json(await self._session.get(address), address))


def _storage(path: RepoPath) -> str:
    return f"/api/storage{wire.encode_path(path)}"


def explain(error: RemoteError) -> str:
    """Return what a person can do about a server that cannot be used."""
    if isinstance(error, DeadlineExceeded):
        return "does not answer in time: is the address right, and a proxy needed?"
    if isinstance(error, Unavailable) and error.status is None:
        if "without" in error.message and error.url.startswith("http:"):  # it hung up
            return f"{error.message.rstrip('.')}: is it an https:// server?"
        return error.message
    return str(error)
