"""Read long JSON answers in pieces: an object, one member of which is an array of very many rows.

A listing of a million files is 250 MB of JSON. ``json.loads`` of it holds the interpreter for
seconds, whatever the thread, and makes a tree of 1 GB. Here each row is decoded by itself and
handed over, and what was read is dropped.
"""

import codecs
import gc
import json
import re
from collections.abc import AsyncIterable, Callable
from typing import Any, Protocol, TypeVar

import httpx

from jfs import memory, threads
from jfs.artifactory.exchange import MAX_DOCUMENT
from jfs.artifactory.session import MOVED, Session
from jfs.artifactory.wire import cut_off, is_cut_off
from jfs.errors import ProtocolViolation
from jfs.extents import KiB, MiB

_SMALL = 100 * KiB  # read on the event loop: about a millisecond
_PIECE = 256 * KiB  # read at a time by a thread
_MOVED = MiB
# A row, or another member of the object. It is tried again whenever the text has doubled.
_MAX_VALUE = 16 * MiB
# What was read is no garbage, but a full collection looks at all of it: three million objects stop
# the event loop for 0.4 s. Frozen objects are left alone, and freed as ever once nobody has them.
_FREEZE = 16 * MiB
_SPACE = re.compile(r"[ \t\n\r]*")
# The end of a text that cuts a number: of `1.5` only `1.` has come, of `1e+7` only `1e+`, and the
# decoder takes `1` for all of it.
_CUT = re.compile(r"[0-9.eE+-]*\Z")


class LongObject:
    """Read one such object. Any thread, one at a time.

    Args:
        field: the member that is the long array.
        take: called with each row in turn.
        what: names the answer in errors.
        required: whether the member must be there.

    Attributes:
        members: the other members, decoded; *field* is among them, as None, once it was there.
    """

    def __init__(
        self, field: str, take: Callable[[Any], None], what: str, *, required: bool = True
    ) -> None:
        self.members: dict[str, Any] = {}
        self._field = field
        self._required = required
        self._met = False
        self._take = take
        self.what = what
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")("surrogatepass")
        self._decode = json.JSONDecoder().raw_decode
        self._parts: list[str] = []
        self._size = 0  # of the parts
        self._needed = 0  # size of the parts before which nothing can be read
        self._text = ""
        self._at = 0
        self._key = ""
        self._step: Callable[[], bool] | None = self._begin
        self._last = False

    def feed(self, data: bytes) -> None:
        """Read a piece. Raises ProtocolViolation, and whatever *take* raises."""
        try:
            part = self._bytes.decode(data, self._last)
        except UnicodeDecodeError as error:
            raise (cut_off(self.what) if is_cut_off(error) else self._broken()) from None
        self._parts.append(part)
        self._size += len(part)
        if self._size < self._needed and not self._last:
            return
        self._text, self._at = "".join(self._parts), 0
        while self._step is not None and self._step():
            pass
        rest = self._text[self._at :]
        if self._step is None and rest.strip(" \t\n\r"):
            raise self._broken()
        if len(rest) > _MAX_VALUE:
            raise ProtocolViolation(f"{self.what}: a value in the answer is longer than 16 MiB")
        self._parts, self._size, self._text = [rest], len(rest), ""

    def end(self) -> dict[str, Any]:
        """End the answer, and return the other members.

        Raises:
            Unavailable: it ended too early.
            ProtocolViolation: it is no such object, or the array is missing.
        """
        self._last = True
        self.feed(b"")
        if self._step is not None:
            raise self._broken()
        if self._required and not self._met:
            raise ProtocolViolation(f"{self.what}: {self._field} is not a list")
        return self.members

    def let_go(self) -> None:
        """Drop what was read, also when the answer has failed in the middle.

        A step that is still to be taken is a method of ours, and we hold it: a cycle, which the
        collector of frozen objects would never find. Each failed listing left its rows for good.
        """
        self._step = None
        self._parts.clear()
        self._text = ""

    # Each step reads what it can, and returns whether the next one may go on.

    def _begin(self) -> bool:
        letter = self._peek()
        if letter == "{":
            self._at += 1
            self._step = self._first_key
        elif letter in ("[", '"'):
            raise ProtocolViolation(f"{self.what}: the answer is not an object")
        elif letter:
            raise self._broken()
        return letter != ""

    def _first_key(self) -> bool:
        letter = self._peek()
        if letter == "}":
            self._at += 1
            self._step = None
        return letter not in ("", "}") and self._next_key()

    def _next_key(self) -> bool:
        self._step = self._next_key
        found, key = self._value()
        if found:
            if not isinstance(key, str):
                raise self._broken()
            self._key = key
            self._step = self._colon
        return found

    def _colon(self) -> bool:
        return self._mark({":": self._member})

    def _member(self) -> bool:
        letter = self._peek()
        if letter == "[" and self._key == self._field:
            self._at += 1
            self.members[self._key] = None
            self._met = True
            self._step = self._first_row
            return True
        found, value = self._value()
        if found:
            self.members[self._key] = value
            self._step = self._after_member
        return found

    def _after_member(self) -> bool:
        return self._mark({",": self._next_key, "}": None})

    def _first_row(self) -> bool:
        letter = self._peek()
        if letter == "]":
            self._at += 1
            self._step = self._after_member
            return True
        return letter != "" and self._next_row()

    def _next_row(self) -> bool:
        """Read rows for as long as there are whole ones: where the time goes."""
        self._step = self._next_row
        text, at = self._text, self._at
        decode, take, space = self._decode, self._take, _SPACE.match
        mark = ","
        while mark == ",":
            try:
                row, end = decode(text, space(text, at).end())  # type: ignore[union-attr]  # matches
                end = space(text, end).end()  # type: ignore[union-attr]  # always, if only nothing
                mark = text[end]
            except (ValueError, IndexError) as error:
                self._at = at
                return self._wait(error)
            except RecursionError:
                raise self._broken() from None
            if mark not in ",]" and _CUT.match(text, end):
                self._at = at
                return self._wait()
            take(row)
            at = end + 1
        if mark != "]":
            raise self._broken()
        self._at = at
        self._step = self._after_member
        return True

    def _value(self) -> tuple[bool, Any]:
        """Read any value; False: it is not all there yet."""
        try:
            value, end = self._decode(self._text, self._start())
        except ValueError as error:
            return self._wait(error), None
        except RecursionError:
            raise self._broken() from None
        if _CUT.match(self._text, end) and not self._last:
            return self._wait(), None  # a number may go on
        self._at = end
        return True, value

    def _mark(self, steps: dict[str, Callable[[], bool] | None]) -> bool:
        letter = self._peek()
        if not letter:
            return False
        if letter not in steps:
            raise self._broken()
        self._at += 1
        self._step = steps[letter]
        return self._step is not None

    def _peek(self) -> str:
        self._at = self._start()
        letter = self._text[self._at : self._at + 1]
        if not letter:
            self._wait()
        return letter

    def _start(self) -> int:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        return found.end()

    def _wait(self, error: Exception | None = None) -> bool:
        """Go on when there is more text: twice as much, or one long value would be read often.

        Args:
            error: of who could not read what there is.
        """
        if self._last:
            begun = self._step != self._begin
            early = error is None or isinstance(error, IndexError) or is_cut_off(error)
            raise cut_off(self.what) if begun and early else self._broken()
        self._needed = 2 * (len(self._text) - self._at)
        return False

    def _broken(self) -> ProtocolViolation:
        return ProtocolViolation(f"{self.what}: the answer is not JSON")


def _not_told() -> None:
    pass


class Taker(Protocol):
    """What rows are handed to."""

    @property
    def to_come(self) -> float:
        """How much of the memory that rows take will be taken once more, by who shows them."""

    def take(self, row: Any, /) -> None: ...


_Taker = TypeVar("_Taker", bound=Taker)


async def read(
    session: Session,
    method: str,
    address: str,
    field: str,
    make: Callable[[], _Taker],
    *,
    content: bytes | None = None,
    repo: str = "",
    required: bool = True,
) -> tuple[_Taker, dict[str, Any]]:
    """Ask for a long object; return who took its rows, and its other members. Trio thread only.

    Args:
        field, required: as for ``LongObject``.
        make: called for every try.
        content, repo: as for ``Session.exchange``.
    Raises:
        RemoteError: the answer, or that there was none; ProtocolViolation: it is no such object.
    """

    async def receive(response: httpx.Response) -> tuple[_Taker, dict[str, Any]]:
        taker = make()
        rows = LongObject(field, taker.take, address, required=required)
        moved = response.extensions.get(MOVED, _not_told)
        return taker, await _receive(response.aiter_bytes(), rows, taker, moved)

    headers = None if content is None else {"Content-Type": "text/plain"}
    return await session.read(method, address, receive, content, headers, repo=repo, long=True)


async def _receive(
    body: AsyncIterable[bytes], rows: LongObject, taker: Taker, moved: Callable[[], None]
) -> dict[str, Any]:
    """Read an answer as it arrives, a long one not on the event loop.

    Args:
        moved: called for every ``_MOVED`` bytes: a listing of a million takes longer than the
            deadline of a call, and is not given up while it comes.
    """
    try:
        piece = bytearray()
        total = frozen = told = 0
        before = memory.resident()
        async for data in body:
            piece += data
            total += len(data)
            if total > MAX_DOCUMENT:
                raise ProtocolViolation(f"{rows.what}: is longer than {MAX_DOCUMENT >> 20} MiB")
            if len(piece) >= _PIECE:
                await threads.computing(rows.feed, bytes(piece))
                piece.clear()
                if total >= told + _MOVED:
                    moved()
                    told = total
                made = max(0, memory.resident() - before)
                memory.require_room(int(made * taker.to_come), rows.what)
                if total >= frozen + _FREEZE:
                    gc.freeze()
                    frozen = total
        if total > _SMALL:
            await threads.computing(rows.feed, bytes(piece))
        else:
            rows.feed(bytes(piece))
        return rows.end()
    finally:
        rows.let_go()
