"""Frozen settings of each subsystem.

Nothing here touches the network. Secrets are masked in every repr and never leave ``Secret``
except through ``reveal()``, which only the authentication code calls.
"""

import contextlib
import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from jfs.errors import ConfigError
from jfs.extents import GiB, KiB, MiB
from jfs.model import Properties, RepoPath


class Secret:
    """A string that never shows itself."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class KeptIn:
    """The file that credentials come from (Kubernetes and ``jf`` rotate them in place).

    Attributes:
        read: reads it again; any thread. Raises ConfigError, which names it.
    """

    path: Path
    read: "Callable[[], Credentials]"


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to authenticate; all empty means anonymous. The first that is set wins, in this order.

    Attributes:
        kept_in: where newer ones are found.
    """

    token: Secret | None = None
    user: str | None = None
    password: Secret | None = None
    kept_in: KeptIn | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the server is and how to talk to it. Times are seconds."""

    url: str  # base of the Artifactory service, without a slash at the end
    credentials: Credentials = field(default_factory=Credentials)
    ca_file: Path | None = None  # or a directory
    client_cert: Path | None = None  # with its key, unless that is in client_key
    client_key: Path | None = None
    verify_tls: bool = True
    # A SYN that is lost is sent again after 1 and after 3 s; a second more for a far server.
    connect_timeout_s: float = 5.0
    # Nothing received for so long: the connection is dead. Artifactory fetches what a remote
    # repository has not got, and collects garbage, in the time of an answer.
    idle_timeout_s: float = 30.0
    # An answer about one item takes milliseconds; 10 s are a server that hangs.
    answer_timeout_s: float = 10.0
    # Nothing of a longer one (a listing, a query) has come for so long: a ping tells how the server
    # is, and if it tells nothing either, nobody waits any longer.
    ping_after_s: float = 5.0
    # One call, its retries and its turn in the queue included: about one item; any other one (a
    # listing of a million files, a query, the end of an upload).
    answer_deadline_s: float = 15.0
    request_deadline_s: float = 60.0
    # For how long after the beginning of an outage calls wait for its end: those about names, and
    # those that move bytes or change something, whose failure ends a job. 30 s outlive the restart
    # of a proxy, or the failover of a cluster; Artifactory itself takes a minute or two to start.
    retries_s: float = 5.0
    jobs_retries_s: float = 30.0
    connections: int = 4  # bulk connections at a time: 2 to 4 reached the ceiling (design 5)


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """The block cache on disk. Sizes are bytes."""

    directory: Path
    budget_bytes: int = 64 * GiB
    free_floor_bytes: int | None = None  # left to others; None: 1 GiB, a tenth of a small disk
    block_size: int = 32 * KiB  # a 4 KiB read at any place fetches 64 KiB at most


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """How the namespace is shown and how long its answers are believed. Times are seconds."""

    uid: int
    gid: int
    umask: int = 0o022
    entry_ttl_s: float = 10.0
    attr_ttl_s: float = 10.0
    negative_ttl_s: float = 5.0
    stale_if_error_s: float = 86400.0  # what is known may stand in while the server is down
    patience_s: float = 2.0  # for an answer, where something can stand in: see vfs.standing


class Fetch(StrEnum):
    """When contents are fetched: see ``--fetch``."""

    LAZY = "lazy"  # what is read, and ahead of who reads
    AUTO = "auto"  # as that; and whole what is likely to be read whole: see reading.following
    WHOLE = "whole"  # whole, before an open is answered


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What is fetched when, read-ahead, and its memory. Sizes are bytes."""

    fetch: Fetch = Fetch.AUTO
    memory_bytes: int = 96 * MiB  # all buffers between network, disk and kernel, spare ones too
    segment_bytes: int = 8 * MiB  # one range request
    window_bytes: int = 32 * MiB  # read-ahead of a sequential reader
    disk_patience_s: float = 10.0  # how long READs wait for a hanging cache disk
    disk_slack_s: float = 3.0  # and for one that is slower than the network: see reading.publisher
    deadline_s: float = 120.0  # a READ that has not got its bytes by then fails
    prefetch_shards: bool = True  # of a model that is being read whole: see vfs.shards
    shards_bytes: int = 256 * MiB  # so many in small ones, whoever may stop after the first
    far_s: float = 0.01  # a server whose first byte takes longer is asked for more ahead


def fit_to_memory(settings: ReadSettings, limit: int | None) -> ReadSettings:
    """Scale buffers and read-ahead down to a memory limit of the process, in bytes.

    A quarter of it for buffers, of which a reader's window takes half: the rest is the
    interpreter's (about 60 MiB) and the pages of cache files.
    """
    if limit is None:
        return settings
    segment = min(settings.segment_bytes, max(256 * KiB, limit // 64))
    return replace(
        settings,
        segment_bytes=segment,
        memory_bytes=min(settings.memory_bytes, max(4 * segment, limit // 4)),
        window_bytes=min(settings.window_bytes, max(2 * segment, limit // 8)),
    )


@dataclass(frozen=True, slots=True)
class WriteSettings:
    """How files are written and names changed. Times are seconds.

    Attributes:
        staging: directory of what is being written; on the file system of the cache, or what was
            uploaded cannot become a cache entry.
        properties: set on every artifact that is deployed: --upload-prop, and those of a build.
        no_overwrite: what is on the server stays as it is, until it is removed.
        no_delete: nothing on the server is removed or moved away.
        last_writer_wins: an upload replaces also what others put there since the file was opened.
        drain_s: how long the end of a mount waits for uploads that are under way.
        write_back: a file that is closed is uploaded behind; ``close`` waits for this disk alone.
        settling_s: how long a file must have been closed before its upload begins: programs that
            save write under another name and rename.
        settle_s: how long a file must rest that is opened again and again, before it is uploaded;
            0: every close uploads. See vfs.files.settling, also for the next two.
        settle_most_s: after so long a close uploads it all the same; after longer, if it is larger
            than that many seconds times settle_rate, in bytes a second.
        queue_most: files that may wait for their upload; more are uploaded as they are closed.
        retry_s: the shortest and the longest pause between tries.
        overlap, overlap_from: a new file of so many bytes is on its way while it is written.
        adopt_s: how often files are looked for that another mount left behind.
    """

    staging: Path
    properties: Properties = field(default_factory=dict)
    no_overwrite: bool = False
    no_delete: bool = False
    last_writer_wins: bool = False
    drain_s: float = 30.0  # Kubernetes kills a pod after 30 s, systemd a service after 90
    write_back: bool = False
    overlap: bool = True
    overlap_from: int = 64 * MiB  # what is shorter is uploaded within a second when it is closed
    settling_s: float = 1.0
    settle_s: float = 0.0  # jfs mount: 2; programs that save in pieces compute a piece in less
    settle_most_s: float = 60.0  # who reads a log elsewhere waits no longer than a minute
    # A file of 28 GB that grows for an hour is not sent every minute: at most so much a second, as
    # it is while it grows, which is a tenth of the file in all if it grows ten times faster.
    settle_rate: int = 1 * MiB
    queue_most: int = 10_000
    retry_s: tuple[float, float] = (1.0, 60.0)
    adopt_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Build:
    """A run whose artifacts shall be found again: name, number, and when it started (ms)."""

    name: str
    number: str
    started_ms: int

    @property
    def properties(self) -> Properties:
        """What the jf command sets on the artifacts of a build."""
        return {
            "build.name": (self.name,),
            "build.number": (self.number,),
            "build.timestamp": (str(self.started_ms),),
        }


def build_from(
    name: str | None, number: str | None, environ: Mapping[str, str], started_ms: int
) -> Build | None:
    """Take a build from options, else from the variables of the jf command.

    Raises:
        ConfigError: one of the two is missing.
    """
    name = name or environ.get("JFROG_CLI_BUILD_NAME") or None
    number = number or environ.get("JFROG_CLI_BUILD_NUMBER") or None
    if name is None and number is None:
        return None
    if name is None or number is None:
        raise ConfigError(
            "a build needs both a name and a number: --build-name and --build-number, "
            "or JFROG_CLI_BUILD_NAME and JFROG_CLI_BUILD_NUMBER"
        )
    return Build(name, number, started_ms)


@dataclass(frozen=True, slots=True)
class Source:
    """What to mount: a server and a place on it."""

    server_url: str
    path: RepoPath
    credentials: Credentials
    server_id: str | None = None  # of the jf command's configuration, if it was named so
    client_cert: Path | None = None  # named there
    client_key: Path | None = None


@dataclass(frozen=True, slots=True)
class MountSettings:
    """Everything that one mount needs."""

    source: Source
    shown_source: str  # as the user wrote it: for `mount`, `df` and messages
    mountpoint: Path
    server: ServerSettings
    cache: CacheSettings
    tree: TreeSettings
    read: ReadSettings
    write: WriteSettings | None  # None: nothing is changed, properties neither
    fuse_options: frozenset[str]  # as mount(8) knows them
    nonempty: bool = False
    offline: bool = False  # the server is never asked
    wait_s: float = 0.0  # how long the start waits for a server that cannot be asked
    passthrough: bool = True  # where the kernel can read what is cached itself, it does
    native: bool = True  # where the native part was built, it is used
    watchdog_s: float = 60.0  # how long it may not answer itself; 0: for ever


def default_cache_directory(environ: Mapping[str, str]) -> Path:
    """``/var/cache/jfs`` for root, else in the cache folder of the user. Raises ConfigError."""
    if os.geteuid() == 0 and "XDG_CACHE_HOME" not in environ:
        return Path("/var/cache/jfs")
    return user_directory(environ, "XDG_CACHE_HOME", ".cache", instead="give --cache-dir") / "jfs"


def user_directory(
    environ: Mapping[str, str], variable: str, in_home: str, *, instead: str
) -> Path:
    """Return a folder of the user, as the XDG Base Directory Specification places it.

    Args:
        variable: names the folder; a relative path in it is ignored, as the specification says.
        in_home: where it is if the variable does not say.
        instead: what to do about a missing home, for the message.
    Raises:
        ConfigError: the user has no home, as under a random uid in a container.
    """
    given = environ.get(variable, "")
    if os.path.isabs(given):
        return Path(given)
    home = environ.get("HOME", "")
    if not home:
        with contextlib.suppress(KeyError):
            home = pwd.getpwuid(os.getuid()).pw_dir
    if not os.path.isabs(home):  # never below the current directory
        raise ConfigError(
            f"there is no home directory (HOME is not set to one, and uid {os.getuid()} has none "
            f"in the password database): {instead}"
        )
    return Path(home) / in_home
