"""Of models, only what is selected of their tensors."""

from collections.abc import AsyncGenerator, Iterable

from jfs import threads
from jfs.artifactory import ArtifactoryClient
from jfs.errors import JfsError, NotFound
from jfs.extents import Extent, ExtentSet
from jfs.formats import (
    Layout,
    Part,
    Selection,
    Told,
    describes_itself,
    matches,
    tells_of_others,
    told_by,
)
from jfs.model import ArtifactVersion, FileInfo, RepoPath
from jfs.protocols import CachedContent
from jfs.warming.running import Run


class Chosen:
    """What is selected of the models at or below one path. Trio thread only."""

    def __init__(
        self, client: ArtifactoryClient, run: Run, selection: Selection, path: RepoPath
    ) -> None:
        self._client = client
        self._run = run
        self._selection = selection
        self._path = path
        self._shards: dict[RepoPath, list[str]] = {}
        self._parts: dict[RepoPath, list[Part]] = {}
        self._seen: set[RepoPath] = set()  # files of models, wanted or not
        self._told: list[tuple[RepoPath, RepoPath]] = []  # what is wanted, and what tells of it
        self._without = list(selection.tensors)  # patterns that no tensor had
        self._is_model = False
        run.names_each = True

    async def warm(self, folders: AsyncGenerator[Iterable[FileInfo], None]) -> None:
        """Fetch it; what is no model comes last, as it is, if there is one."""
        failures = len(self._run.result.failures)
        listings: list[Iterable[FileInfo]] = []
        async for files in folders:
            listings.append(files)  # not as objects: those of a packed folder are a gibibyte
            await self._files(files)
        await self._beyond()
        if len(self._run.result.failures) == failures:
            if not self._is_model:
                self._refuse(
                    "nothing tells where its tensors are, as safetensors, GGUF, ONNX and indices "
                    "of shards do: leave out --tensors and --rank, and all of it is fetched"
                )
            for pattern in self._without if self._is_model else ():
                self._refuse(f"no tensor is called {pattern!r:.80}")
        if self._is_model and len(self._without) < max(1, len(self._selection.tensors)):
            others = (info for files in listings for info in files if info.path not in self._seen)
            for info in others:
                await self._run.file(info)

    def _refuse(self, text: str) -> None:
        self._run.result.failures.append((self._path, text))

    async def _files(self, files: Iterable[FileInfo]) -> None:
        """Fetch what is wanted of the models of one folder."""
        for info in files:  # before the others, of which they tell
            if tells_of_others(info.path.name, info.size):
                self._seen.add(info.path)
                await self._run.file(info, self._told_by)
        for info in files:
            path = info.path
            if path in self._seen:
                continue
            is_shard, describes = path in self._shards, describes_itself(path.name)
            if not (path in self._parts or is_shard or describes):
                continue
            self._seen.add(path)
            if path in self._parts:
                await self._run.file(info, self._placed)
            elif is_shard and not self._names(self._shards[path]):
                continue
            else:
                await self._run.file(info, self._described if describes else None)

    async def _beyond(self) -> None:
        """Fetch what files tell of that was not below the path: it named one that tells."""
        missing: dict[RepoPath, list[str]] = {}
        wanted: dict[RepoPath, dict[RepoPath, RepoPath]] = {}
        for path, teller in self._told:
            if path not in self._seen:
                wanted.setdefault(path.parent, {})[path] = teller
        for folder, paths in sorted(wanted.items()):
            try:
                entries = await self._client.list_children(folder)
            except NotFound:
                entries = []
            except JfsError as error:
                self._run.failed(folder, error)
                continue
            found = [each for each in entries if isinstance(each, FileInfo) and each.path in paths]
            await self._files(found)
            for path in paths.keys() - {each.path for each in found}:
                missing.setdefault(paths[path], []).append(path.name)
        for teller, names in missing.items():
            text = f"{len(names)} files that it names are not there, such as {min(names)!r:.80}"
            self._run.result.failures.append((teller, text))

    async def _told_by(self, version: ArtifactVersion, cached: CachedContent) -> ExtentSet:
        content = await self._run.read(version, cached, version.size)
        told: Told = await threads.computing(told_by, version.path.name, content)
        if told.shards or told.parts or told.within:
            self._is_model = True
        self._names(told.within)
        for file, names in told.shards.items():
            self._shards.setdefault(path := version.path.parent.child(file), []).extend(names)
            if self._names(names):
                self._told.append((path, version.path))
        for file, parts in told.parts.items():
            self._parts.setdefault(path := version.path.parent.child(file), []).extend(parts)
            if self._names(part.name for part in parts):
                self._told.append((path, version.path))
        return ExtentSet([Extent(0, version.size)])

    async def _described(self, version: ArtifactVersion, cached: CachedContent) -> ExtentSet:
        layout = await self._run.layout(version, cached)
        self._is_model = True
        self._names(part.name for part in layout.parts)
        return self._selection.of(layout)

    async def _placed(self, version: ArtifactVersion, cached: CachedContent) -> ExtentSet:
        return self._selection.of(Layout.of(0, version.size, self._parts[version.path]))

    def _names(self, tensors: Iterable[str]) -> bool:
        """Note which tensors there are; True: some of them are selected."""
        chosen = [name for name in tensors if self._selection.chooses(name)]
        self._without = [
            pattern
            for pattern in self._without
            if not any(matches(pattern, name) for name in chosen)
        ]
        return bool(chosen)
