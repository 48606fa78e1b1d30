"""Whether a history can be right. Pure; the cost is small: see ``timeline``.

The rules, of which each ``Finding`` names one that was broken:

- One descriptor shows one version, in every piece, size and end of file, that was current at some
  moment between the start of its open and the end of that open.
- A mount may believe for its time to live what another has changed since, and share an answer with
  who asked before; but never what was changed in it itself, nor before a refresh that has
  returned. What it renames is what it believed of it. It never goes back: after a version it shows
  none that this one has replaced.
- What is written in place is seen piece by piece inside its own mount until it is closed, as on a
  local disk; every word must still be one that a version has there that was allowed.
- Opening for a change without O_TRUNC, and O_EXCL, go by what the server has at that moment.
- A change that was closed well has replaced the very version that it was based on.
- ENOENT says that the name may have been missing, to whoever does not make it; EEXIST that it may
  have been there, ESTALE that somebody may have replaced what was opened; what is open has
  attributes for as long. Nothing else fails, but in a mount that was killed.
- Where requests fail, in bad weather, a call may fail by EIO or ETIMEDOUT, and what it was to
  change may have come about or not; what is known stands in. All the rest holds.
- A property has a value that was current, by the same rules: what is set or removed in a mount is
  seen there at once, elsewhere in time, and stays until somebody changes it; overwriting a file
  takes none away.
- At the end the server has of every name what may be current, and everything that was closed well,
  unless a later event took its place. What was refused at close is in the journal.
"""

import errno
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.concurrency.content import Content, piece, size_of, whole
from tests.concurrency.history import ELSEWHERE, Record, is_property
from tests.concurrency.timeline import SERVER, SIGBUS, Timeline

_STALE = {errno.ESTALE, SIGBUS}
_OF_WEATHER = {errno.EIO, errno.ETIMEDOUT, SIGBUS}
_CHANGES = {"put", "delete", "write", "patch", "rename", "unlink", "kill", "tag"}
_SHOWN_BEFORE_S = 0.5
FIXED, PRIVATE = "keep", "folder-"  # names that nobody judges


@dataclass(frozen=True)
class Finding:
    """A rule that was broken, by whom, and what happened at the names concerned."""

    rule: str
    record: Record
    text: str


class Judge:
    """Judge one folder.

    Args:
        ttl_s: of every mount.
        records: all that concerns the folder, in any order.
        kept: contents in the journal at the end.
        stand_in: mounts in which what is known stands in, in bad weather; None: all.
    """

    def __init__(
        self,
        ttl_s: Mapping[str, float],
        records: Sequence[Record],
        kept: Collection[Content] = (),
        stand_in: Collection[str] | None = None,
    ) -> None:
        self._records = sorted(records, key=lambda record: record.start)
        self._stand_in = set(ttl_s if stand_in is None else stand_in)
        self._time = Timeline(ttl_s, self._records, self._stand_in)
        self._kept = kept
        self._findings: list[Finding] = []

    def verdict(self) -> list[Finding]:
        """Return every rule that was broken, in order of time."""
        for record in self._records:
            self._judge(record)
        self._judge_closes()
        return self._findings

    def _judge(self, record: Record) -> None:
        match record.kind:
            case "read":
                self._judge_error(record, {"open", "read"})
                self._judge_read(record, record.actor)
            case "patch":
                self._judge_error(record, {"open", "read", "write", "close"})
                # What is known may stand in; at close it is held against what is there.
                stands_in = record.actor in self._stand_in
                stands_in = stands_in and self._time.in_weather(record.start, record.opened)
                self._judge_read(record, record.actor if stands_in else ELSEWHERE)
                self._judge_refusal(record)
                self._judge_base(record)
            case "write":
                self._judge_error(record, {"open", "write", "fsync", "close"})
                self._judge_creation(record)
                self._judge_refusal(record)
            case "stat":
                self._judge_error(record, {"open"})
                self._judge_stat(record)
            case "unlink" | "rename":
                self._judge_error(record, {"open"})
                self._judge_rename(record)
            case "list":
                self._judge_error(record, set())
                self._judge_list(record)
            case "tag":
                self._judge_error(record, {"open"})
            case "tagged":
                self._judge_error(record, {"open"})
                self._judge_property(record, record.actor)
            case "tags":
                self._judge_property(record, ELSEWHERE)
            case "server":
                self._judge_server(record)
            case "tree":
                self._judge_error(record, set())
                self._judge_tree(record)
            case _:
                self._judge_error(record, set())

    def _judge_error(self, record: Record, stages: set[str]) -> None:
        """Whether a call may have failed as it did, at one of the *stages* that may."""
        if not record.errno or self._time.killed(record):
            return
        if record.errno in _OF_WEATHER and self._time.in_weather(record.start, record.end):
            return
        if record.stage in stages:
            allowed = self._time.allowed(record.path, record.actor, record.start, record.end)
            disturbed = self._is_disturbed(record)
            if record.stage == "open" and record.errno == errno.ENOENT:
                if record.kind == "write":
                    self._find("was to be made, and is not there", record)
                elif None not in allowed and not disturbed:
                    self._find("was there all the time", record, allowed)
                return
            if record.stage == "open" and record.errno == errno.EEXIST:
                if record.mode != "exclusive" or (allowed == {None} and not disturbed):
                    self._find("was not there", record)
                return
            if record.kind == "tag" and record.errno == errno.ENODATA:
                there = self._time.allowed(record.place, record.actor, record.start, record.end)
                if record.write or None not in there:
                    self._find("was there all the time", record, there)
                return
            # A name that changes hands is not stale: only what is open, or was just looked up.
            opens = record.kind not in ("unlink", "rename")
            if record.errno in _STALE and opens and self._is_replaced(record):
                return
        self._find("failed", record)

    def _judge_read(self, record: Record, view: str) -> None:
        """Hold every piece against every version that may have been opened."""
        if not record.reply.get("sizes"):
            return
        allowed = self._time.allowed(record.path, view, record.start, record.opened)
        sizes = set(record.reply["sizes"])
        if any(
            content is not None
            and sizes == {size_of(content)}
            and all(piece(content, at, asked) == runs for at, asked, runs in record.chunks)
            for content in allowed
        ):
            return
        writers = list(self._time.disturbers(record))
        if not writers:
            self._find("is not one version that was current", record, allowed)
            return
        allowed = self._time.allowed(record.path, view, record.start, record.end)
        known = {0, *(run[0] for content in allowed for run in content or ())}
        for writer in writers:
            known |= {writer.write, *(run[0] for run in writer.base)}
        strange = [run for _, _, runs in record.chunks for run in runs if run[0] not in known]
        if strange:
            self._find(f"has {strange}, which nobody was writing here", record, allowed)

    def _judge_property(self, record: Record, view: str) -> None:
        if record.errno:
            return
        allowed = self._time.allowed(record.place, view, record.start, record.end)
        if record.value not in allowed:
            self._find("has a property that was not current", record, allowed)

    def _judge_creation(self, record: Record) -> None:
        if record.mode == "exclusive" and "opened" in record.reply:
            allowed = self._time.allowed(record.path, ELSEWHERE, record.start, record.opened)
            if None not in allowed:
                self._find("was there all the time", record, allowed)

    def _judge_refusal(self, record: Record) -> None:
        if (
            record.errno
            and record.stage == "close"
            and not self._time.killed(record)
            and not self._time.moved_meanwhile(record)
            and record.content not in self._kept
        ):
            self._find("was refused at close, and is not in the journal", record)

    def _judge_base(self, record: Record) -> None:
        """A change replaces what it is based on, never what came in between."""
        if record.errno or not record.wrote_all:
            return
        if self._time.moved_meanwhile(record) or self._is_disturbed(record):
            return
        if not any(
            span.content == record.base and span.meets(record.closing, record.end)
            for span in self._time.spans(record.path, SERVER)
        ):
            self._find("overwrote what came to the server after it was opened", record)

    def _judge_rename(self, record: Record) -> None:
        if record.kind == "rename" and not record.errno:
            moved = [e for e in self._time.events if e.number == record.number]
            if any(content for event in moved for content in event.contents):
                return
            # Another one has moved the same there, and after a lost answer it looked like its own.
            there = self._time.allowed(record.to, ELSEWHERE, record.start, record.end)
            believed = {content for event in moved for content in event.believed if content}
            if there.isdisjoint(believed) or not self._time.in_weather(record.start, record.end):
                self._find("was moved, and was not there", record)

    def _judge_stat(self, record: Record) -> None:
        if record.errno or self._is_disturbed(record):
            return
        allowed = self._time.allowed(record.path, record.actor, record.start, record.end)
        if record.reply["size"] not in {size_of(c) for c in allowed if c is not None}:
            self._find("has a size that no version had", record, allowed)

    def _judge_list(self, record: Record) -> None:
        names = set(record.reply.get("names", ()))
        if record.errno:
            return
        for path in sorted({*self._time.of_path, *names} - {FIXED}):
            if path.startswith(PRIVATE) or is_property(path):
                continue
            if any(self._time.writing(record.actor, {path}, record.start, record.end)):
                continue
            allowed = self._time.allowed(path, record.actor, record.start, record.end)
            if path in names and allowed == {None}:
                self._find(f"shows {path}, which was not there", record, path=path)
            if path not in names and None not in allowed:
                self._find(f"lacks {path}", record, allowed, path=path)

    def _judge_server(self, record: Record) -> None:
        allowed = self._time.allowed(record.path, ELSEWHERE, record.start, record.end)
        if (None if record.errno else record.base) not in allowed:
            self._find("is wrong on the server", record, allowed)

    def _judge_tree(self, record: Record) -> None:
        if not record.errno and record.base != whole(record.write, record.size):
            self._find("was written while its folder was renamed, and is wrong", record)

    def _judge_closes(self) -> None:
        """What was closed well is on the server, under a name that it had, or was replaced."""
        looks = [record for record in self._records if record.kind == "server"]
        there = {record.path: record.base for record in looks if not record.errno}
        for record in self._time.writers if looks else ():
            if record.errno or not record.wrote_all:
                continue
            names, own = {record.path}, {record.number}
            for rename in self._time.renames:
                if (
                    rename.actor == record.actor
                    and rename.end >= record.start
                    and rename.path in names
                    and rename.to not in names
                ):  # it went there; another file may have come to a name that it had before
                    names.add(rename.to)
                    own.add(rename.number)
            if any(there.get(name) == record.content for name in names):
                continue
            # Its own mount can take the name from it, or the file, as long as it is open.
            if not any(
                event.number not in own
                and event.end >= (record.start if event.mount == record.actor else record.closing)
                for name in names
                for event in self._time.of_path[name]
            ):
                self._find("was closed well, and is lost", record)

    def _is_disturbed(self, record: Record) -> bool:
        return any(self._time.disturbers(record))

    def _is_replaced(self, record: Record) -> bool:
        """Whether somebody may have replaced what a call meant."""
        since = record.start - self._time.believed_s(record.actor)
        stands_in = record.actor in self._stand_in
        if stands_in and self._time.in_weather(record.start, record.end):
            since = -math.inf  # what it was shown may be of any time
        return self._is_disturbed(record) or any(
            event.begin <= record.end and event.end >= since and event.number != record.number
            for name in self._time.names(record.actor, record.path, record.start, record.end)
            for event in self._time.of_path[name]
        )

    def _find(
        self, rule: str, record: Record, allowed: Iterable[Content | None] = (), path: str = ""
    ) -> None:
        names = {record.path, record.to, path} - {""}
        for _ in range(2):
            for rename in self._time.renames:
                if names & {rename.path, rename.to}:
                    names |= {rename.path, rename.to}
        trail = [
            str(each)
            for each in self._records
            if (names & {each.path, each.to} or each.kind in ("kill", "refresh"))
            and each.start <= record.settled
            and (each.kind in _CHANGES or each.end >= record.start - _SHOWN_BEFORE_S)
        ]
        lines = [f"{record.path} {rule}:", str(record)]
        lines += [f"allowed: {content}" for content in allowed]
        lines += ["what happened there:", *trail]
        self._findings.append(Finding(rule, record, "\n  ".join(lines)))
