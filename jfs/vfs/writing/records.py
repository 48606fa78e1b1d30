"""What the journal knows of a staged file: a small document beside its data. Blocking.

A record is replaced whole (rename), so a crash leaves the old or the new one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from jfs.clocks import boot_id
from jfs.model import Properties, RepoPath

_VERSION = 1


class State(StrEnum):
    """How far a staged file came.

    WRITING: nobody has closed it yet: it may be incomplete. DEPLOYING: it was closed, and its
    upload was under way. PENDING: ``close`` has returned, and its upload is still to come
    (--write-back, --settle). FAILED: the upload was refused, and ``close`` was told so if it
    waited for it.
    """

    WRITING = "writing"
    DEPLOYING = "deploying"
    PENDING = "pending"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one staged file.

    Attributes:
        server: URL of the service that it belongs to.
        path: where it belongs, as of now: a rename takes it along.
        base, base_size: of what the server had there when it was opened: its sha256; None: nothing.
        properties: to be set when it is deployed.
        created_ns: since 1970.
        error: what went wrong the last time; once FAILED, why.
        made: the file was made here: its properties are those of the record, not the server's.
        sent: digests of what the server may have got at the path, without our hearing of it.
        supersedes: names of staged files that are of no use once this one is PENDING.
        queued_ns: since when it is PENDING.
        tries, next_ns: how often it was tried since; when it will be again, at the latest.
        sha256: of the data when its upload began; "": not known, or changed since.
        lent: it has no data of its own (``lent``): left behind, nobody misses it.
        half: a write was refused; what is there gives way to what needs its room.
        boot: of a PENDING file that may not be on disk yet: of the machine, as long as it runs; it
            is whole only if it runs still. "": it is on disk.
        promised: size of the PENDING content, if newer is being written into it (``undo``).
    """

    server: str
    path: RepoPath
    state: State = State.WRITING
    base: str | None = None
    properties: Properties = field(default_factory=dict)
    created_ns: int = 0
    modified_ns: int | None = None
    error: str = ""
    base_size: int = 0
    made: bool = False
    sent: tuple[str, ...] = ()
    supersedes: tuple[str, ...] = ()
    queued_ns: int = 0
    tries: int = 0
    next_ns: int = 0
    sha256: str = ""
    lent: bool = False
    half: bool = False
    boot: str = ""
    promised: int | None = None

    @property
    def is_durable(self) -> bool:
        """Whether it is to survive a loss of power."""
        return self.state is State.PENDING and not self.boot

    @property
    def is_of_another_boot(self) -> bool:
        """Whether the machine stopped before all of it was on disk, as far as is known."""
        return self.boot not in ("", boot_id())


def write_record(path: Path, record: Record, *, durable: bool = False) -> None:
    """Write a record in the place of the one before; *durable*: with its bytes on disk. OSError."""
    temporary = unfinished(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(_written(record))
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.rename(path)


def overwrite_record(path: Path, record: Record) -> None:
    """Write a record over the one before: on a full disk there is room for no other. OSError."""
    with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "wb") as file:
        file.write(_written(record).encode())
        file.truncate()


def _written(record: Record) -> str:
    return json.dumps({**asdict(record), "version": _VERSION, "path": str(record.path)})


def unfinished(record: Path) -> Path:
    """Where a record is written before it takes its place."""
    return record.with_name(record.name + ".new")


def read_record(path: Path) -> Record:
    """Read a record. One that cannot be read does not hide its data: its place is not known."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Record(
            str(document["server"]),
            RepoPath.parse(document["path"]),
            State(document["state"]),
            document["base"],
            _properties(document["properties"]),
            int(document["created_ns"]),
            document["modified_ns"],
            str(document["error"]),
            **_later(document),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Record("", RepoPath(""), State.FAILED, error="its record is damaged")


def _later(document: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields that records of earlier versions lack."""
    numbers, flags = ("base_size", "queued_ns", "tries", "next_ns"), ("made", "lent", "half")
    found: dict[str, Any] = {name: int(document[name]) for name in numbers if name in document}
    found |= {name: bool(document[name]) for name in flags if name in document}
    lists = {name: tuple(map(str, document.get(name, ()))) for name in ("sent", "supersedes")}
    texts = {name: str(document.get(name, "")) for name in ("sha256", "boot")}
    promised = document.get("promised")
    return {**found, **lists, **texts, "promised": None if promised is None else int(promised)}


def _properties(document: Mapping[str, list[str]]) -> Properties:
    return {str(key): tuple(map(str, values)) for key, values in document.items()}
