"""READs of a content that are answered beside the interpreter; ``jfs.native.replies`` says how.

Which is right as long as nobody does what is called here: ``pause`` where what is known of any
content changes, ``Shown.revoke`` where what a file shows does. Trio thread only, except ``pause``.
"""

from typing import Protocol

from jfs.extents import Extent
from jfs.metrics import Metrics
from jfs.native.replies import Content, Kind, Listener, Note, Piece, Replies
from jfs.vfs.reading.segments import Placed, Segment


class Beside:
    """Those of one mount. Until ``tell`` is called there are none."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._replies: Replies | None = None
        self._listener: Listener | None = None

    def tell(self, replies: Replies | None) -> None:
        """Answer so from now on."""
        self._replies = replies
        if replies is not None and self._listener is not None:
            replies.tell(self._listener)

    def listen(self, listener: Listener) -> None:
        """Have *listener* called for every READ; see ``Replies.tell``."""
        self._listener = listener

    def hear(self) -> None:
        """Have every READ noted that was answered until now."""
        if self._replies is not None:
            self._replies.hear()

    def pause(self) -> None:
        """Leave all READs to Python, until each handle is published again. Any thread."""
        if self._replies is not None:
            self._replies.pause()

    def shown(self, reader: "Reader", size: int) -> "Shown":
        """Return what READs of a content are answered from; *size*: of its file, 0: none are."""
        replies = self._replies if size else None
        content = Content(replies, size) if replies is not None else None
        return Shown(self._metrics, reader, content)


class Reader(Protocol):
    """Who reads a content: ``ContentReader``."""

    is_closed: bool
    segments: Placed

    @property
    def is_right(self) -> bool: ...

    def went_on(self, extent: Extent) -> Extent: ...

    def give_back(self, segment: Segment) -> None: ...


class Shown:
    """One content."""

    def __init__(self, metrics: Metrics, reader: Reader, content: Content | None) -> None:
        self._metrics = metrics
        self._reader = reader
        self._content = content
        self._passed_on: set[Extent] = set()

    def add(self, segment: Segment) -> None:
        """Answer from a segment, too, from now on until its buffer is another's."""
        if self._content is not None:
            segment.shown_by(self._piece)

    def _piece(self, segment: Segment) -> Piece:
        assert self._content is not None
        return Piece(self._content, segment.buffer, *segment.extent, segment.filled)

    def publish(self, handle: int) -> None:
        """Answer for a handle from now on, as long as that is right."""
        if self._content is None or self._reader.is_closed or self._content.is_published(handle):
            return
        self._content.publish(handle)
        if not self._reader.is_right:  # after it: a thread may find out between
            # Who publishes has a view of a segment, which must not be freed before it is answered.
            self._content.revoke(hears=False)

    def revoke(self, handle: int | None = None) -> None:
        """Answer no more, for *handle* or for any. When it returns all that was answered is noted,
        and none is being answered.
        """
        if self._content is None:
            return
        if handle is None:
            self._content.revoke()
        else:
            self._content.revoke_one(handle)

    def noted(self, note: Note) -> None:
        """Note what became of READs."""
        extent = Extent(note.start, note.stop)
        if note.kind is Kind.PASSED_ON:
            self._passed_on.add(extent)
        if note.kind in (Kind.ANSWERED, Kind.ANSWERED_LATE):
            self._metrics.count("reads_beside", note.count)
            for segment in self._reader.segments.ending_in(extent):
                segment.users += 1
                segment.is_read = True
                self._reader.give_back(segment)
        if note.kind in (Kind.ANSWERED, Kind.WAITS) and self._content is not None:
            self._content.quiet(*self._reader.went_on(extent))

    def was_noted(self, extent: Extent) -> bool:
        """Whether a READ that Python answers was noted before."""
        if extent not in self._passed_on:
            return False
        self._passed_on.discard(extent)
        return True
