"""What a history may have made of the names of a folder, and what may be seen when. Pure.

Every change of a name is an ``Event``: the name has a content (``None``: it is missing) from a
moment on that lies between *begin* and *end*. Two clock readings around a call say no more. So a
content may be the current one from its event's *begin* until the *end* of the first certain event
that began after its own had ended. What was allowed to be seen in a span of time follows by
comparing times: nothing is tried out, and the cost is that of sorting.
"""

import errno
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

from tests.concurrency.content import Content, whole
from tests.concurrency.history import ELSEWHERE, Record

# The kernel counts a time to live from when it gets the answer: on a busy machine that is late. A
# mount takes up interrupted uploads as late after it was started.
LATE_S = 5.0
# A server may be at a request still when the one who asked has given it up.
_BEHIND_S = 5.0
# After bad weather a mount may believe the server to be down for a while, and what it knows stands
# in for what it cannot ask.
HEAL_S = 15.0
SIGBUS = -7  # in place of an errno: a page fault failed
ENDED = "ended"  # the mode of a kill that is no kill: the mount leaves the bare directory behind
_OF_A_KILL = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, SIGBUS}


@dataclass
class Event:
    """*path* has one of *contents* from a moment in [begin, end], if the event took place at all.

    Attributes:
        certain: it did take place, and ended what was before.
        mount: where it was made.
        number: of its record.
        moves: its contents are what another name had.
        believed: what its own mount may take for its content: what it believed of that name.
    """

    path: str
    contents: set[Content | None]
    begin: float
    end: float
    certain: bool
    mount: str
    number: int
    moves: bool = False
    believed: set[Content | None] = field(default_factory=set)


@dataclass(frozen=True)
class Span:
    """A time in which a name may have had a content."""

    content: Content | None
    begin: float
    last: float

    def meets(self, start: float, end: float) -> bool:
        return self.begin <= end and self.last >= start


class View(NamedTuple):
    """Whose eyes: a mount's, from its start to its end.

    What one life of a mount has seen and done, another need not know in bad weather: it is on disk
    some seconds later. Where nothing stands in, a mount asks: it has one life.
    """

    mount: str
    life: int = 0


SERVER = View(ELSEWHERE)


class Timeline:
    """Of one folder.

    Args:
        ttl_s: of every mount.
        records: sorted by their start.
        stand_in: mounts in which what is known stands in for what cannot be asked.
    """

    def __init__(
        self,
        ttl_s: Mapping[str, float],
        records: Sequence[Record],
        stand_in: Collection[str],
    ) -> None:
        self.ttl_s = ttl_s
        self._stand_in = stand_in
        self._weather = [r for r in records if r.kind == "weather"]
        self.renames = [
            r
            for r in records
            if r.kind == "rename" and (r.errno != errno.ENOENT or self.in_weather(r.start, r.end))
        ]
        self.writers = [r for r in records if r.writes]
        # Also those that found nothing on the server: they may have taken what was staged.
        self._changes = [r for r in records if r.kind in ("rename", "unlink")]
        self._kills = [r for r in records if r.kind == "kill"]
        self._records = records
        self._fresh = {
            mount: [
                r
                for r in records
                if r.actor == mount and r.kind in ("refresh", "kill") and not r.errno
            ]
            for mount in ttl_s
        }
        self._asking = {mount: _running(records, mount) for mount in ttl_s}
        self.events = [event for record in records for event in self._events_of(record)]
        self.of_path: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            self.of_path[event.path].append(event)
        self._spans: dict[tuple[str, View], list[Span]] = {}
        self._seen: dict[tuple[str, View], list[tuple[float, float]]] = defaultdict(list)
        self._doubt_moves()
        self._resolve_renames()
        self._note_what_was_seen(records)

    def allowed(self, path: str, mount: str, start: float, end: float) -> set[Content | None]:
        """Return what a mount may show of a name in a span of time; ``ELSEWHERE``: the server."""
        spans = self.spans(path, self.view(mount, start))
        return {span.content for span in spans if span.meets(start, end)}

    def view(self, mount: str, moment: float) -> View:
        """Return whose eyes see what a call shows that began at a moment."""
        if mount not in self._stand_in:
            return View(mount)
        return View(mount, sum(k.actor == mount and k.start <= moment for k in self._kills))

    def spans(self, path: str, view: View) -> list[Span]:
        """Return what a mount may show of a name, and when."""
        key = (path, view)
        if key not in self._spans:
            self._spans[key] = self._spans_of(path, view)
        return self._spans[key]

    def believed_s(self, mount: str) -> float:
        """Return for how long a mount may believe what another has changed."""
        ttl_s = self.ttl_s[mount]
        return ttl_s + LATE_S if ttl_s else 0.0

    def in_weather(self, start: float, end: float) -> bool:
        """Whether requests of mounts may have failed in a span of time."""
        return any(w.start <= end and start <= w.end + HEAL_S for w in self._weather)

    def names(self, mount: str, path: str, start: float, end: float) -> set[str]:
        """Return the names that a file may have had in a mount in a span of time."""
        found = {path}
        for rename in self.renames:
            if (
                rename.actor == mount
                and rename.path in found
                and rename.start <= end
                and rename.end >= start
            ):
                found.add(rename.to)
        return found

    def disturbers(self, record: Record) -> Iterator[Record]:
        """Find who wrote in place, inside the mount of a call, to the file that it looked at."""
        names = self.names(record.actor, record.path, record.start, record.end)
        for writer in self.writing(record.actor, names, record.start, record.end):
            if writer is not record:
                yield writer

    def writing(self, mount: str, paths: set[str], start: float, end: float) -> Iterator[Record]:
        """Find who wrote in place, inside a mount, to a file that had one of these names."""
        for writer in self.writers:
            if writer.actor == mount and writer.start <= end and writer.settled >= start:
                names = self.names(mount, writer.path, writer.start, writer.end)
                if not paths.isdisjoint(names):
                    yield writer

    def moved_meanwhile(self, writer: Record) -> bool:
        """Whether the name was taken from a file, in its mount, while it was written."""
        names = self.names(writer.actor, writer.path, writer.start, writer.end)
        return any(
            other.actor == writer.actor
            and other.start <= writer.end
            and other.end >= writer.start
            and not names.isdisjoint({other.path, other.to})
            for other in self._changes
        )

    def killed(self, record: Record) -> Record | None:
        """Find the kill of the mount that made a call fail."""
        for kill in self._kills:
            if (
                (
                    record.errno in _OF_A_KILL
                    or (record.errno == errno.ENOENT and kill.mode == ENDED)
                )
                and kill.actor == record.actor
                and record.start <= kill.end
                and record.end >= kill.start
            ):
                return kill
        return None

    def _events_of(self, record: Record) -> Iterator[Event]:
        end, certain = record.end, True
        if kill := self.killed(record):
            # The server may still have done it. An upload is taken up by the next mount, but
            # only over what it was to replace: in the order of events it counts as done before.
            # Unless others came and went: the name is as free as it was, behind the start too.
            end, certain = kill.end, False
            if record.kind in ("write", "patch") and self._is_left(record):
                end = self._after_weather(end + LATE_S)
        elif record.errno:
            known = record.kind != "rename" or record.errno == errno.ENOENT
            bad_weather = self.in_weather(record.start, record.end)
            if known and not bad_weather:
                yield from self._synced(record)
                return
            # Nobody knows how far it came.
            end, certain = record.settled + _BEHIND_S * bad_weather, False
        event = Event(record.path, {None}, record.start, end, certain, record.actor, record.number)
        match record.kind:
            case "put":
                yield replace(event, contents={whole(record.write, record.size)})
            case "delete":
                yield event
            case "tag" if record.errno != errno.ENODATA:
                yield replace(event, path=record.place, contents={record.value})
            case "unlink":
                # What is only staged goes; what another put there since the file was made stays.
                staged = list(self.writing(record.actor, {record.path}, record.start, record.end))
                yield replace(event, certain=certain and not staged)
            case "write" | "patch":
                yield from self._synced(record)
                if record.wrote_all:
                    yield replace(
                        event,
                        contents={record.content},
                        begin=record.closing,
                        certain=certain and not self.moved_meanwhile(record),
                    )
            case "rename":
                # What is only staged goes to the new name when it is closed. Others may have put
                # something at the old one meanwhile, which stays there.
                staged = list(self.writing(record.actor, {record.path}, record.start, record.end))
                yield replace(event, certain=certain and not staged)
                last = max([end, *(writer.end for writer in staged)])
                # Its contents follow from what its source may have had.
                yield replace(
                    event,
                    path=record.to,
                    contents=set(),
                    end=last,
                    certain=certain and not staged,
                    moves=True,
                    believed=set(),
                )
                for writer in staged:
                    yield replace(
                        event, path=record.to, contents=writer.uploads, end=last, certain=False
                    )

    def _synced(self, record: Record) -> Iterator[Event]:
        """What ``fsync`` has uploaded; where that failed, ``close`` may have done so."""
        if record.synced is None:
            return
        kill = self.killed(record)
        end = record.reply.get("synced", kill.end if kill else record.settled)
        yield Event(
            record.path,
            {record.synced},
            record.reply["syncing"],
            end,
            "synced" in record.reply and not self.moved_meanwhile(record),
            record.actor,
            record.number,
        )

    def _is_left(self, record: Record) -> bool:
        """Whether a name may have been missing at some moment after a call began."""
        return any(
            each.kind in ("delete", "unlink", "rename")
            and each.path == record.path
            and each.end >= record.start
            for each in self._records
        )

    def _doubt_moves(self) -> None:
        """Find renames whose source was moved away before they began.

        After an answer that was lost, the same content at the new name is taken for the move.
        """
        for rename in self.renames:
            if not self.in_weather(rename.start, rename.end):
                continue
            if not any(
                (event.moves or event.contents - {None})
                and event.begin <= rename.end
                and last >= rename.start
                for event, last in self._lasts(rename.path, SERVER)
            ):
                for event in self.events:
                    if event.number == rename.number:
                        event.certain = False

    def _resolve_renames(self) -> None:
        """Find what each rename may have moved: what its source may have had meanwhile.

        On the server, that is; and in its own mount what that may have believed of the source.
        """
        renames = {record.number: record for record in self.renames}
        moves = [(e, renames[e.number]) for e in self.events if e.number in renames and e.moves]
        heirs: dict[int, list[tuple[Event, bool]]] = defaultdict(list)  # of an event's contents
        for event, rename in moves:
            for view in (SERVER, self.view(rename.actor, rename.start)):
                for source, last in self._lasts(rename.path, view):
                    if source.begin <= rename.end and last >= rename.start:
                        heirs[id(source)].append((event, view == SERVER))
        # Sets of contents as bits of a number: along every edge each travels at most once.
        contents = sorted({c for event in self.events for c in event.contents if c is not None})
        bits = {content: 1 << index for index, content in enumerate(contents)}
        there = {id(e): sum(bits.get(c, 0) for c in e.contents) for e in self.events}
        believed = dict.fromkeys(there, 0)
        waiting = list(self.events)
        while waiting:
            source = waiting.pop()
            for heir, on_server in heirs[id(source)]:
                known = there if on_server else believed
                given = there[id(source)]
                if not on_server and source.mount == heir.mount:
                    given |= believed[id(source)]
                if given & ~known[id(heir)]:
                    known[id(heir)] |= given
                    waiting.append(heir)
        for event, _ in moves:
            event.contents |= {c for c in contents if there[id(event)] & bits[c]}
            event.believed |= {c for c in contents if believed[id(event)] & bits[c]}

    def _spans_of(self, path: str, view: View) -> list[Span]:
        spans = [Span(None, -math.inf, self._first(path, view))]
        for event, last in self._lasts(path, view):
            contents = event.contents
            if event.mount == view.mount:
                contents = contents | event.believed
            spans += [Span(content, event.begin, last) for content in contents]
        return spans

    def _lasts(self, path: str, view: View) -> list[tuple[Event, float]]:
        """Return until when each event of a name may count, to the eyes of a mount."""
        begins, earliest = self._ends(path, view)
        return [(e, earliest[bisect_right(begins, e.end)]) for e in self.of_path[path]]

    def _first(self, path: str, view: View) -> float:
        """Return until when a name may be as it was before everything: missing."""
        return self._ends(path, view)[1][0]

    def _ends(self, path: str, view: View) -> tuple[list[float], list[float]]:
        """Return begins of what ends versions, sorted, and when the earliest from there on does."""
        ends = sorted(
            [
                *((e.begin, self._known(e, view)) for e in self.of_path[path] if e.certain),
                *self._seen[path, view],
            ]
        )
        earliest = [math.inf] * (len(ends) + 1)
        for index in reversed(range(len(ends))):
            earliest[index] = min(earliest[index + 1], ends[index][1])
        return [begin for begin, _ in ends], earliest

    def _known(self, event: Event, view: View) -> float:
        """Return the moment at which a mount knows of an event at the latest."""
        mount = view.mount
        if view == SERVER or (mount == event.mount and self.view(mount, event.end) == view):
            return event.end
        # Who asks while others do gets their answer, which may be from before the event.
        starts, ends = self._asking[mount]
        asking = ends[bisect_right(starts, event.end)]
        known = max(event.end + self.believed_s(mount), asking)
        for fresh in self._fresh[mount]:
            if fresh.start >= event.end:
                known = min(known, fresh.end)
                break
        if mount in self._stand_in and (calm := self._after_weather(known)) > known:
            known = calm + self.believed_s(mount)
        return known

    def _after_weather(self, moment: float) -> float:
        """Return when bad weather of a moment, and of all that follow it at once, is over."""
        for weather in self._weather:
            if weather.start <= moment <= weather.end + HEAL_S:
                moment = weather.end + HEAL_S
        return moment

    def _note_what_was_seen(self, records: Sequence[Record]) -> None:
        """What a mount has shown ends, for it, what was before."""
        for record in records:
            if record.errno:
                continue
            path, content = record.path, record.value
            if record.kind == "read":
                content = record.base
                if not record.read_all or any(self.disturbers(record)):
                    continue
            elif record.kind == "tagged" and content is not None:
                path = record.place
            else:
                continue
            seen = [e.begin for e in self.of_path[path] if content in e.contents]
            if seen:
                view = self.view(record.actor, record.start)
                self._seen[path, view].append((min(seen), record.end))


def _running(records: Sequence[Record], mount: str) -> tuple[list[float], list[float]]:
    """Return when calls into a mount began, and, after so many, until when one of them asked."""
    calls = [
        (record.start, record.opened if record.kind == "read" else record.end)
        for record in records
        if record.actor == mount
    ]
    ends = [-math.inf, *accumulate((end for _, end in calls), max)]
    return [start for start, _ in calls], ends
