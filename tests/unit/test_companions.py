"""What is kept of what files tell of others."""

from jfs.extents import Extent
from jfs.formats import Layout, Part, Told
from jfs.metrics import Metrics
from jfs.model import ArtifactVersion, ContentKey, RepoPath
from jfs.vfs.reading.companions import Companions


def version(path: str, content: str = "1") -> ArtifactVersion:
    return ArtifactVersion(RepoPath("r", path), ContentKey(f"sha256:{content * 64}", 100), None)


def told(file: str, parts: int = 1) -> Told:
    each = [Part(f"t{number}", Extent(number, number + 1)) for number in range(parts)]
    return Told(parts={file: each})


def test_the_last_that_was_heard_counts() -> None:
    companions = Companions(Metrics())
    first, second = version("m/a.onnx"), version("m/b.onnx")
    companions.note(first, told("data"))
    companions.note(second, told("data", 2))
    data = RepoPath("r", "m/data")
    assert len(companions.parts(data) or ()) == 2
    companions.note(first, told("other"))  # it has changed: that is no news of the data
    assert len(companions.parts(data) or ()) == 2
    assert companions.knows(first)
    assert not companions.knows(version("m/a.onnx", "2"))


def test_shards_are_those_of_the_index_that_was_heard_last() -> None:
    companions = Companions(Metrics())
    index = version("m/x.index.json")
    companions.note(index, Told(shards={"b": ["t"], "a": ["u"]}))
    a, b = RepoPath("r", "m/a"), RepoPath("r", "m/b")
    assert companions.shards(b) == (a, b)
    companions.note(index, Told(shards={"b": ["t"]}))
    assert (companions.shards(a), companions.shards(b)) == ((), (b,))


def test_what_is_kept_is_bounded() -> None:
    companions = Companions(Metrics())
    for number in range(2000):
        companions.note(version(f"{number}/m.onnx"), told("data"))
    kept = [number for number in range(2000) if companions.knows(version(f"{number}/m.onnx"))]
    assert kept == [*range(2000 - 1024, 2000)]
    assert companions.parts(RepoPath("r", "0/data")) is None
    for number in range(8):
        companions.note(version(f"large/{number}.onnx"), told(f"data{number}", 10_000))
    assert not companions.knows(version("1999/m.onnx"))
    assert companions.parts(RepoPath("r", "large/data1")) is None
    assert companions.parts(RepoPath("r", "large/data7")) is not None


def test_a_layout_is_that_of_one_content() -> None:
    companions = Companions(Metrics())
    layout = Layout.of(8, 100, [Part("t", Extent(8, 16))])
    companions.note(version("m.safetensors"), layout)
    assert companions.layout(version("m.safetensors")) is layout
    assert companions.layout(version("m.safetensors", "2")) is None
