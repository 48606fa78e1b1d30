"""The values that every part speaks of: paths, checksums, versions, entries, properties. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Properties = Mapping[str, tuple[str, ...]]

_NAME_MAX = 255  # bytes, Linux NAME_MAX
PARENT_MAX = 1024  # characters of a parent's path (artifactory-rest 2.1)
_FORBIDDEN = frozenset('\\|*?"')
_FORBIDDEN_IN_KEY = frozenset("(){}[]*+^$\\/~`!@#%&<>;=,±§")
_KEY_MAX = 255  # characters (artifactory-rest 2.1)
_ORDINARY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # most names, told from the others quickly
_CHECKSUM_FILES = (".sha1", ".md5", ".sha256")
_PASSING = ".jfs-staging-"
_PASSING_NAME = re.compile(re.escape(_PASSING) + "[0-9a-f]{8}-[0-9a-f]{16}")


def passing_name(node: str, number: str) -> str:
    """Return a name for what is uploaded while it is written, and is gone once it is in its place.

    Args:
        node: 8 digits (hex) that are this node's; number: 16 that nobody else has.
    """
    return f"{_PASSING}{node}-{number}"


def is_passing(name: str) -> bool:
    """Whether a name is one of ``passing_name``, be it of another node: nobody is shown it."""
    return name.startswith(_PASSING) and _PASSING_NAME.fullmatch(name) is not None


def is_too_long(name: str) -> bool:
    """Return whether Linux has no room for *name* in a directory."""
    return len(name.encode("utf-8", "surrogatepass")) > _NAME_MAX


def problem_with_name(name: str) -> str | None:
    """Return why *name* cannot be both an entry of a directory and of a repository; None if it can.

    Linux forbids slash, NUL, ``.``, ``..`` and more than 255 bytes; Artifactory what its
    PathValidator lists (artifactory-rest 2.1), and takes names of checksum files for questions
    about another file (3.6).
    """
    if _ORDINARY.fullmatch(name) and len(name) <= _NAME_MAX and not name.endswith(_CHECKSUM_FILES):
        return None
    if not name.strip("."):
        return "is not a name"
    if "/" in name or "\0" in name:
        return "holds a slash or a NUL"
    if is_too_long(name):
        return f"is longer than {_NAME_MAX} bytes"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not Unicode text"
    if bad := _FORBIDDEN.intersection(name):
        return f"holds {min(bad)!r}, which Artifactory forbids"
    if name != name.strip():
        return "begins or ends with white space, which Artifactory forbids"
    if name == "&":
        return "is '&', which Artifactory forbids"
    if name.endswith(_CHECKSUM_FILES):
        return "is the name of a checksum file, which Artifactory answers itself"
    if is_passing(name):
        return "is a name of what is on its way to its place"
    return None


def problem_with_key(key: str) -> str | None:
    """Return why *key* cannot be a property's; None if it can."""
    if not (key[:1].isascii() and key[:1].isalpha()):
        return "a property key must begin with an ASCII letter"
    if any(letter.isspace() for letter in key):
        return "a property key must not hold white space"
    if bad := _FORBIDDEN_IN_KEY.intersection(key):
        return f"a property key must not hold {min(bad)!r}"
    if len(key) > _KEY_MAX:
        return f"a property key must not be longer than {_KEY_MAX} characters"
    return None


@dataclass(frozen=True, slots=True, order=True)
class RepoPath:
    """A place on the server: repository key and path inside it, both decoded.

    ``RepoPath("", "")`` is the server itself, ``RepoPath(key, "")`` the root of a repository.
    *path* has no slash at either end.
    """

    repo: str
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "RepoPath":
        """Read ``repo/path/inside``; slashes at the ends are ignored."""
        repo, _, path = text.strip("/").partition("/")
        return cls(repo, path.strip("/"))

    @property
    def name(self) -> str:
        """The last component; empty for the server itself."""
        return self.path.rpartition("/")[2] if self.path else self.repo

    @property
    def parent(self) -> "RepoPath":
        if not self.path:
            return RepoPath("")
        return RepoPath(self.repo, self.path.rpartition("/")[0])

    def child(self, name: str) -> "RepoPath":
        if not self.repo:
            return RepoPath(name)
        return RepoPath(self.repo, f"{self.path}/{name}" if self.path else name)

    def __str__(self) -> str:
        return f"{self.repo}/{self.path}" if self.path else self.repo


@dataclass(frozen=True, slots=True)
class Checksums:
    """Lower-case hex digests; old items may lack sha256 (artifactory-rest 3.1)."""

    sha256: str | None = None
    sha1: str | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class ContentKey:
    """Identity of bytes: the strongest digest known (``sha256:…`` or ``sha1:…``) and the size."""

    digest: str
    size: int

    def __str__(self) -> str:
        return f"{self.digest}:{self.size}"


@dataclass(frozen=True, slots=True)
class ArtifactVersion:
    """Content at a path, as pinned by an open file: a reader never mixes two versions."""

    path: RepoPath
    content: ContentKey
    sha1: str | None  # Artifactory's ETag is the bare sha1 (artifactory-rest 3.1)

    @property
    def size(self) -> int:
        return self.content.size


@dataclass(frozen=True, slots=True)
class FileInfo:
    """An artifact as the server lists it. Times are nanoseconds since the epoch.

    *link_target* is what a symbolic link points to: the ``jf`` client stores one as an empty file
    with the property ``symlink.dest`` (artifactory-rest 12.2).
    """

    path: RepoPath
    size: int
    checksums: Checksums
    modified_ns: int
    created_ns: int | None = None
    created_by: str | None = None
    modified_by: str | None = None
    mime_type: str | None = None
    link_target: str | None = None

    @property
    def version(self) -> ArtifactVersion | None:
        """The version to pin, or None when the server names no usable checksum."""
        sums = self.checksums
        if sums.sha256:
            content = ContentKey(f"sha256:{sums.sha256}", self.size)
        elif sums.sha1:
            content = ContentKey(f"sha1:{sums.sha1}", self.size)
        else:
            return None
        return ArtifactVersion(self.path, content, sums.sha1)


@dataclass(frozen=True, slots=True)
class FolderInfo:
    """A folder, a repository (path ``""``) or the server. Times are ns since the epoch.

    *listed* is False for a folder of a remote repository of which nothing is cached: it is in no
    listing, and whether it is there only the files below it can tell.
    """

    path: RepoPath
    modified_ns: int
    created_ns: int | None = None
    listed: bool = True


EntryInfo = FileInfo | FolderInfo


def same_content(one: EntryInfo, other: EntryInfo) -> bool:
    """Whether two answers describe the same bytes, by the strongest digest that both name.

    Where they name none in common, size and time have to do.
    """
    if not isinstance(one, FileInfo) or not isinstance(other, FileInfo) or one.size != other.size:
        return False
    ours, theirs = one.checksums, other.checksums
    for here, there in (
        (ours.sha256, theirs.sha256),
        (ours.sha1, theirs.sha1),
        (ours.md5, theirs.md5),
    ):
        if here and there:
            return here == there
    return one.modified_ns == other.modified_ns


def kind_of(info: EntryInfo) -> str:
    """Return ``folder``, ``file`` or ``link``; the kernel must not see it change under an inode."""
    if isinstance(info, FolderInfo):
        return "folder"
    return "file" if info.link_target is None else "link"


SYMLINK_TARGET = "symlink.dest"  # the property that makes an empty artifact a symbolic link


def as_link(info: EntryInfo, properties: Properties) -> EntryInfo:
    """Return an empty artifact as the symbolic link that its properties make it; others unchanged.

    Only an empty one is a link: the ``jf`` client stores no other.
    """
    target = properties.get(SYMLINK_TARGET)
    if isinstance(info, FileInfo) and not info.size and target:
        return replace(info, link_target=target[0])
    return info


@dataclass(frozen=True, slots=True)
class Deployment:
    """What shall become the artifact at *path*.

    Attributes:
        size: bytes.
        checksums: of the content; sha256 must be known.
        properties: the whole set that it shall have; none: what the server keeps.
        modified_ns: its lastModified, if somebody set one; the server keeps whole seconds.
    """

    path: RepoPath
    size: int
    checksums: Checksums
    properties: Properties = field(default_factory=dict)
    modified_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Criteria:
    """What to search for below *scope*; all of it must hold.

    Attributes:
        properties: key and value pairs; ``*`` and ``?`` in a value are wildcards.
        name: glob on the last component.
        kind: ``file``, ``folder`` or ``any``.
        newer_ns, older_ns: modified after, before; ns since the epoch.
        direct: only what lies directly in *scope*.
        tagged: only what has properties at all; of it nothing else is found than those, since
            100,000 items of a folder would not fit into memory.
        plain: results without their properties, for many of them.
    """

    scope: RepoPath
    properties: tuple[tuple[str, str], ...] = ()
    name: str | None = None
    kind: str = "file"
    newer_ns: int | None = None
    older_ns: int | None = None
    direct: bool = False
    tagged: bool = False
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """One result of a search."""

    info: EntryInfo
    properties: Properties


@dataclass(frozen=True, slots=True)
class Repository:
    """One row of ``api/repositories``.

    Attributes:
        kind: ``local``, ``remote``, ``virtual`` or ``federated``.
        url: of a remote one: its upstream, if the server says so.
    """

    key: str
    kind: str
    package_type: str
    url: str = ""
