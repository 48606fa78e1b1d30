"""Change one file at random, in two places alike, and compare: ``fsx.py SEED STEPS PLAIN MOUNT``.

What programs do with the bytes of one file: write, read, append, cut, map, reserve, make zeros,
copy, synchronize, close and open again. The plain directory says what is right. It prints how often
it did what; a difference is said with the steps that led to it, and ends it.
"""

import mmap
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from ctypes import CDLL, c_int, c_int64, get_errno

_MOST = 400_000
_KEEP, _PUNCH, _ZERO = 1, 2, 16
_libc = CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (c_int, c_int, c_int64, c_int64)


def _fallocate(file: int, mode: int, offset: int, size: int) -> None:
    if _libc.fallocate(file, mode, offset, size):
        raise OSError(get_errno(), "fallocate")


class Side:
    """The file in one place, open."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "fsx")
        self.other = os.path.join(directory, "other")
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self.second: int | None = None

    def reopen(self, flags: int) -> None:
        """Close it, and open it with flags that let it be read and written."""
        self.let_go()
        os.close(self.file)
        self.file = os.open(self.path, os.O_RDWR | flags)

    def end(self) -> None:
        """Close everything, and have all of it uploaded."""
        self.let_go()
        os.close(self.file)
        for path in (self.path, self.other):
            if os.path.exists(path):
                file = os.open(path, os.O_RDONLY)
                os.fsync(file)  # what is opened again and again waits until it rests
                os.close(file)

    def let_go(self) -> None:
        """Close the second descriptor, which only writes."""
        if self.second is not None:
            os.close(self.second)
            self.second = None

    def writing(self) -> int:
        """Return the second descriptor: what it writes passes the page cache by."""
        if self.second is None:
            self.second = os.open(self.path, os.O_WRONLY)
        return self.second

    def write_mapped(self, offset: int, data: bytes, sync: bool) -> None:
        """Write through a mapping, up to the end of the file."""
        if size := os.fstat(self.file).st_size:
            with mmap.mmap(self.file, size) as mapped:
                offset %= size
                data = data[: size - offset]
                mapped[offset : offset + len(data)] = data
                if sync:
                    mapped.flush()

    def read_mapped(self) -> bytes:
        """Read all of it through a mapping."""
        if not os.fstat(self.file).st_size:
            return b""
        with mmap.mmap(self.file, 0, access=mmap.ACCESS_READ) as mapped:
            return bytes(mapped)

    def copy_out(self) -> None:
        """Copy it to another file, whole, as ``cp`` does; the other one is closed."""
        out = os.open(self.other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        at = 0
        while done := os.copy_file_range(self.file, out, 1 << 30, at, at):
            at += done
        os.close(out)

    def copy_in(self, size: int, source: int, target: int) -> int:
        """Copy from the other file; returns how many bytes."""
        other = os.open(self.other, os.O_RDONLY | os.O_CREAT, 0o644)
        done = 0
        while done < size and (
            count := os.copy_file_range(other, self.file, size - done, source + done, target + done)
        ):
            done += count
        os.close(other)
        return done

    def replaced(self, data: bytes) -> None:
        """Replace it as editors do."""
        temporary = self.path + ".new"
        with open(temporary, "wb") as file:
            file.write(data)
        os.rename(temporary, self.path)
        self.reopen(0)


Step = Callable[[Side], object]


def _drawn(dice: random.Random) -> tuple[str, str, Step]:
    """Draw a step: its name, its numbers, and what it does to a side."""
    offset = dice.randrange(_MOST)
    offset = dice.choice([0, offset // 4, offset, offset & -4096])
    size = min(dice.randrange(1, 70_000), 1 << dice.randrange(17))
    cut, other, sync = dice.randrange(_MOST), dice.randrange(_MOST), dice.random() < 0.5
    flags = dice.choice([0, 0, 0, os.O_APPEND, os.O_TRUNC])
    data = dice.randbytes(size)
    known: dict[str, tuple[int, Step]] = {
        "write": (6, lambda side: os.pwrite(side.file, data, offset)),
        "append": (3, lambda side: os.pwrite(side.file, data, os.fstat(side.file).st_size)),
        "write by another": (3, lambda side: os.pwrite(side.writing(), data, offset)),
        "close the other": (1, Side.let_go),
        "read": (4, lambda side: os.pread(side.file, size, offset)),
        "read mapped": (1, Side.read_mapped),
        "write mapped": (1, lambda side: side.write_mapped(offset, data, sync)),
        "truncate": (1, lambda side: os.ftruncate(side.file, cut)),
        "truncate the path": (1, lambda side: os.truncate(side.path, cut)),
        "fallocate": (1, lambda side: _fallocate(side.file, 0, offset, size)),
        "keep room": (1, lambda side: _fallocate(side.file, _KEEP, offset, size)),
        "punch a hole": (1, lambda side: _fallocate(side.file, _PUNCH | _KEEP, offset, size)),
        "zero": (1, lambda side: _fallocate(side.file, _ZERO | _KEEP * sync, offset, size)),
        "copy out": (1, Side.copy_out),
        "copy in": (1, lambda side: side.copy_in(size, other, offset)),
        "copy all in": (1, lambda side: side.copy_in(1 << 30, 0, 0)),
        "fsync": (1, lambda side: os.fsync(side.file)),
        "open again": (2, lambda side: side.reopen(flags)),
        "replace": (1, lambda side: side.replaced(data)),
    }
    name = dice.choices(list(known), [weight for weight, _ in known.values()])[0]
    return name, f"{offset}+{size} cut={cut} other={other} {sync} {flags:o}", known[name][1]


def _done(step: Step, side: Side) -> object:
    try:
        return step(side)
    except OSError as error:
        return os.strerror(error.errno or 0)


def _shown(side: Side) -> tuple[int, int, bytes]:
    """Return the size by handle and by name, and all bytes."""
    size = os.fstat(side.file).st_size
    return size, os.stat(side.path).st_size, os.pread(side.file, _MOST * 2, 0)


def main(seed: int, steps: int, plain: str, mounted: str) -> None:
    """Take the steps. A difference ends it with exit code 1."""
    dice, counts, trail = random.Random(seed), Counter[str](), list[str]()
    sides = Side(plain), Side(mounted)
    for number in range(steps):
        name, numbers, step = _drawn(dice)
        counts[name] += 1
        trail.append(f"{number} {name} {numbers}")
        right, found = (_done(step, side) for side in sides)
        if right != found or _shown(sides[0]) != _shown(sides[1]):
            print(*trail[-30:], sep="\n")
            a, b = _shown(sides[0]), _shown(sides[1])
            at = next((n for n, (x, y) in enumerate(zip(a[2], b[2], strict=False)) if x != y), None)
            answers = [each if isinstance(each, int | str) else "" for each in (right, found)]
            sys.exit(f"seed {seed}: {answers}, sizes {a[:2]} {b[:2]}, first at {at}")
    for side in sides:
        side.end()
    print(dict(counts))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
