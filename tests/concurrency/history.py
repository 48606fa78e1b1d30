"""What was done to one folder, as those who did it saw it. Pure."""

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.concurrency.content import Content, overlaid, piece, whole

ELSEWHERE = "elsewhere"
_VALUE = 8  # a property's value is judged as the content of a file of one word


@dataclass(frozen=True)
class Record:
    """One call; the times are seconds of the monotonic clock, which all processes share.

    Attributes:
        actor: the mount's name, or ``ELSEWHERE``.
        kind: read, write, patch, unlink, rename, stat, list, folder, tree, refresh, kill, put,
            delete, server (what the server has at the end), weather; of properties: tag (set or
            remove), tagged (read), tags (what the server has at the end).
        path: a name of the folder; ``.``: itself.
        reply: what ``hand`` answered: start, end, errno, stage, opened, closing, chunks, …
        to: the new name, of a rename.
        write, size, mode: of what is written; a property's value is the number of its write, 0: it
            is removed.
        key: of the property.
    """

    number: int
    actor: str
    kind: str
    path: str
    reply: Mapping[str, Any]
    to: str = ""
    write: int = 0
    size: int = 0
    mode: str = ""
    key: str = ""

    @property
    def start(self) -> float:
        return float(self.reply["start"])

    @property
    def end(self) -> float:
        return float(self.reply["end"])

    @property
    def errno(self) -> int:
        return int(self.reply.get("errno", 0))

    @property
    def stage(self) -> str:
        """The system call that failed."""
        return str(self.reply.get("stage", ""))

    @property
    def opened(self) -> float:
        """When ``open`` had returned."""
        return float(self.reply.get("opened", self.end))

    @property
    def closing(self) -> float:
        """When ``close`` was called, by a writer that had written everything."""
        return float(self.reply.get("closing", self.end))

    @property
    def settled(self) -> float:
        """When a writer was gone: ``close`` fails before its mount hears that it has closed."""
        return float(self.reply.get("settled", self.end))

    @property
    def place(self) -> str:
        """The name of a property, beside those of files."""
        return place_of(self.path, self.key)

    @property
    def value(self) -> Content | None:
        """What a property was set to, or was read as; None: there is none."""
        value = self.reply.get("value", self.write)
        return whole(int(value), _VALUE) if value else None

    @property
    def writes(self) -> bool:
        """Whether it changed a file in place."""
        return self.kind in ("write", "patch") and "opened" in self.reply

    @property
    def wrote_all(self) -> bool:
        """Whether it wrote all that it wanted to, so that there is something to upload."""
        done = self.writes and "closing" in self.reply
        return done and (self.kind == "write" or self.content != self.base)

    @property
    def synced(self) -> Content | None:
        """What a writer has sent by ``fsync``, well or not."""
        return whole(self.write, self.reply["sync"]) if "syncing" in self.reply else None

    @property
    def uploads(self) -> set[Content | None]:
        """What a writer may have uploaded."""
        return {self.synced, self.content if self.wrote_all else None} - {None}

    @property
    def chunks(self) -> list[tuple[int, int, Content]]:
        """Every piece that was read: offset, bytes asked for, what was there."""
        return [(at, asked, _content(runs)) for at, asked, runs in self.reply.get("chunks", ())]

    @property
    def base(self) -> Content:
        """What a patch, or who reads all, has read first."""
        chunks = self.chunks
        return chunks[0][2] if chunks else ()

    @property
    def read_all(self) -> bool:
        chunks = self.chunks
        return (
            len(chunks) == 1
            and chunks[0][0] == 0
            and chunks[0][1] > min(self.reply["sizes"], default=0)
        )

    @property
    def content(self) -> Content:
        """What a writer wrote, if it wrote all."""
        if "cut" in self.reply:
            return piece(self.base, 0, self.reply["cut"])
        if self.kind == "patch":
            write, start, stop = self.reply["patch"]
            return overlaid(self.base, (write, start, stop))
        return whole(self.write, self.size)

    def __str__(self) -> str:
        words = [f"#{self.number}", f"{self.start:.4f}"]
        words += [
            f"{self.reply[key] - self.start:+.4f}"
            for key in ("opened", "closing", "end")
            if key in self.reply
        ]
        words += [self.actor, self.kind, self.path]
        if self.to:
            words.append(f"to {self.to}")
        if self.key:
            words.append(f"{self.key}={self.reply.get('value', self.write or 'removed')}")
        elif self.write:
            what = self.reply.get("patch") or self.reply.get("cut", self.write)
            words.append(f"{self.mode} {what} of {self.size}")
        if "size" in self.reply and "chunks" not in self.reply:
            words.append(str(self.reply["size"]))
        if "chunks" in self.reply:
            words.append(f"{self.reply['sizes']}: {_short(self.chunks)}")
        if self.errno:
            words.append(f"{errno.errorcode.get(self.errno, self.errno)} at {self.stage}")
        return " ".join(words)


def place_of(path: str, key: str) -> str:
    """Name a property of a name."""
    return f"{path}@{key}"


def is_property(place: str) -> bool:
    """Whether that is a name of ``place_of``."""
    return "@" in place


def _content(runs: Iterable[Sequence[int]]) -> Content:
    return tuple((write, start, stop) for write, start, stop in runs)


def _short(chunks: Sequence[tuple[int, int, Content]]) -> str:
    text = " ".join(f"{at}+{asked}:{[list(run) for run in runs]}" for at, asked, runs in chunks)
    return text if len(text) < 300 else text[:300] + "…"
