"""What one hand does in one round: chosen at random, noted for the judge."""

import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tests.concurrency.book import KEYS, NAMES, TAGGED, Book, Folder, own, size_at_random
from tests.concurrency.judge import PRIVATE
from tests.concurrency.nodes import Hand

REFRESH = "user.jfs.refresh"  # what ``jfs refresh`` asks a mount for
_PATCHES = (8, 4096, 100_000)


class Driver:
    """Chooses what one hand does in one round."""

    def __init__(self, book: Book, hand: Hand, folders: list[Folder], seed: str) -> None:
        self.book = book
        self.hand = hand
        self.node = hand.node
        self.folders = folders
        self.choose = random.Random(seed)
        self.deadline_s = book.plan.deadline_s
        mounts = range(len(book.plan.ttls) if book.plan.tags else 0)
        self._owned = [own(f"mount{number}") for number in mounts]
        self.held: dict[int, tuple[Folder, str, dict[str, Any]]] = {}
        self.steps: tuple[tuple[Callable[[Folder], None], int], ...] = (
            (self.read, 20),
            (self.read_pieces, 14),
            (self.hold, 10),
            (self.peek, 24),
            (self.drop, 5),
            (self.stat, 10),
            (self.list, 4),
            (self.write, 12),
            (self.patch, 10),
            (self.save, 8),
            (self.rename, 6),
            (self.unlink, 5),
            (self.refresh, 3),
            (self.folder, 2),
            (self.tree, 3),
            *(((self.tag, 12), (self.tagged, 16), (self.overwrite, 4)) if book.plan.tags else ()),
        )

    def run(self) -> None:
        functions = [function for function, _ in self.steps]
        weights = [weight for _, weight in self.steps]
        for _ in range(self.book.plan.steps):
            if self.book.failed.is_set():
                return
            if not self.book.left_s:
                break
            step = self.choose.choices(functions, weights)[0]
            step(self.choose.choice(self.folders))
        for slot in list(self.held):
            self._let_go(slot)

    def ask(
        self, folder: Folder, kind: str, path: str, noted: Mapping[str, Any], **how: Any
    ) -> dict[str, Any]:
        """Let the hand do something with a name, and put it on record."""
        with self.node:
            reply = self.hand.ask(
                self.deadline_s, path=str(self.node.root / folder.place / path), **how
            )
            self.book.note(folder, self.node.name, kind, path, reply, **noted)
            return reply

    def name(self) -> str:
        return self.choose.choice(NAMES)

    def name_to_read(self) -> str:
        return self.choose.choice((*NAMES, *self._owned))

    def pieces(self) -> list[tuple[float, float]]:
        return [
            (self.choose.random(), self.choose.choice((0.0, 0.05, 0.5)))
            for _ in range(self.choose.randrange(1, 5))
        ]

    def read(self, folder: Folder) -> None:
        path = self.name_to_read()
        self.ask(folder, "read", path, {}, do="read", pieces=None, mapped=False)

    def read_pieces(self, folder: Folder) -> None:
        path, mapped = self.name_to_read(), self.choose.random() < 0.4
        self.ask(folder, "read", path, {}, do="read", pieces=self.pieces(), mapped=mapped)

    def hold(self, folder: Folder) -> None:
        if len(self.held) > 3:
            self.drop(folder)
        slot, path = self.book.fresh(), self.name_to_read()
        with self.node:
            reply = self.hand.ask(
                self.deadline_s,
                do="hold",
                path=str(self.node.root / folder.place / path),
                slot=slot,
            )
            if "errno" in reply:
                self.book.note(folder, self.node.name, "read", path, reply)
            else:
                self.held[slot] = (folder, path, {**reply, "chunks": [], "sizes": []})

    def peek(self, folder: Folder) -> None:
        """Read from what is held; what was read so far becomes one record at the end."""
        if not self.held:
            return self.hold(folder)
        slot = self.choose.choice(list(self.held))
        pieces = None if self.choose.random() < 0.2 else self.pieces()
        mapped = pieces is not None and self.choose.random() < 0.3
        reply = self.hand.ask(self.deadline_s, do="peek", slot=slot, pieces=pieces, mapped=mapped)
        so_far = self.held[slot][2]
        so_far["end"] = reply["end"]
        so_far["chunks"] += reply.get("chunks", [])
        so_far["sizes"] += reply.get("sizes", [])
        if "errno" in reply:
            so_far["errno"], so_far["stage"] = reply["errno"], reply["stage"]
            self._let_go(slot)
        return None

    def drop(self, folder: Folder) -> None:
        if self.held:
            self._let_go(self.choose.choice(list(self.held)))

    def _let_go(self, slot: int) -> None:
        folder, path, so_far = self.held.pop(slot)
        self.hand.ask(self.deadline_s, do="drop", slot=slot)
        if so_far["sizes"] or "errno" in so_far:
            self.book.note(folder, self.node.name, "read", path, so_far)

    def stat(self, folder: Folder) -> None:
        self.ask(folder, "stat", self.name_to_read(), {}, do="stat")

    def list(self, folder: Folder) -> None:
        self.ask(folder, "list", "", {}, do="list")

    def write(self, folder: Folder) -> None:
        mode = self.choose.choice(("store", "store", "store+", "exclusive"))
        self._write(folder, self.name(), mode)

    def patch(self, folder: Folder) -> None:
        mode, size = self.choose.choice(("append", "change", "cut")), self.choose.choice(_PATCHES)
        self._put(folder, self.name(), "patch", mode, size, where=self.choose.random())

    def save(self, folder: Folder) -> None:
        """Write beside it and rename, as editors and trainers save."""
        path = f"t{self.book.fresh()}"
        if self._write(folder, path, "store"):
            self._rename(folder, path, self.name())

    def _write(self, folder: Folder, path: str, mode: str) -> bool:
        size = size_at_random(self.choose)
        sync = self.choose.randrange(size // 8) * 8 if self.choose.random() < 0.2 else 0
        return self._put(folder, path, "write", mode, size, sync=sync)

    def _put(self, folder: Folder, path: str, kind: str, mode: str, size: int, **how: Any) -> bool:
        """Write in place, unless another hand of this mount does; return whether that was done."""
        lock = self.node.writing.setdefault(folder.place, threading.Lock())
        if not lock.acquire(blocking=False):
            return False
        try:
            what = {"mode": mode, "write": self.book.fresh(), "size": size}
            return "errno" not in self.ask(folder, kind, path, what, do=kind, **what, **how)
        finally:
            lock.release()

    def rename(self, folder: Folder) -> None:
        self._rename(folder, *self.choose.sample(NAMES, 2))

    def _rename(self, folder: Folder, path: str, to: str) -> None:
        place = str(self.node.root / folder.place / to)
        self.ask(folder, "rename", path, {"to": to}, do="rename", to=place)

    def unlink(self, folder: Folder) -> None:
        self.ask(folder, "unlink", self.name(), {}, do="unlink")

    def tag(self, folder: Folder) -> None:
        """Set or remove a property: of a name that all tag, of its own one, of the folder."""
        path = self.choose.choice((TAGGED, own(self.node.name), "."))
        value = self.book.fresh() if self.choose.random() < 0.75 else 0
        key = self.choose.choice(KEYS)
        self.ask(folder, "tag", path, {"key": key, "write": value}, do="tag", key=key, value=value)

    def tagged(self, folder: Folder) -> None:
        path = self.choose.choice((TAGGED, ".", *self._owned))
        key = self.choose.choice(KEYS)
        self.ask(folder, "tagged", path, {"key": key}, do="tagged", key=key)

    def overwrite(self, folder: Folder) -> None:
        """Write what has properties, which stay."""
        self._write(folder, own(self.node.name), "store")

    def refresh(self, folder: Folder) -> None:
        self.ask(folder, "refresh", "", {}, do="refresh", attribute=REFRESH)

    def folder(self, folder: Folder) -> None:
        path = f"{PRIVATE}{self.book.fresh()}"
        self.ask(folder, "folder", path, {}, do="folder")

    def tree(self, folder: Folder) -> None:
        path, to = (f"{PRIVATE}{self.book.fresh()}" for _ in range(2))
        what = {"write": self.book.fresh(), "size": size_at_random(self.choose)}
        place = str(self.node.root / folder.place / to)
        self.ask(folder, "tree", path, {"to": to, **what}, do="tree", to=place, **what)
