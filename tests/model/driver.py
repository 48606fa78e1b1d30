"""Do the same to a mount and to a plain directory: ``python -m … MOUNT PLAIN STEPS SEED``.

A process of its own, which serves nothing: a page fault on a mapping of the mount holds the
interpreter's lock. Every step is a system call on both sides whose result, or errno, must be equal;
from time to time everything is closed and what the *server* has is compared too (given by
``JFS_URL`` and ``JFS_TOKEN``). Ends with the steps that led to a difference.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import random
import stat
import sys
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("a", "b", "c", "long name.bin", "x;y=1")
FOLDERS = ("", "d", "e", "d/f", "d/f/g")
MOST = 300_000  # bytes of a file
KEYS = ("user.env", "user.task", "user.note")

# What differs for a reason: the same refusal under another name.
_SAME = ({errno.ENOTEMPTY, errno.EEXIST},)


class Different(Exception):
    pass


class Pair:
    """An open file on both sides."""

    def __init__(self, path: str, mount: int, plain: int, flags: int) -> None:
        self.path = path
        self.mount = mount
        self.plain = plain
        self.flags = flags

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY


class Driver:
    def __init__(self, mount: Path, plain: Path, seed: str) -> None:
        self.mount = mount
        self.plain = plain
        self.choose = random.Random(seed)
        self.open: list[Pair] = []
        self.trail: deque[str] = deque(maxlen=4000)
        self.steps = (
            (self.do_open, 14),
            (self.do_write, 16),
            (self.do_read, 10),
            (self.do_close, 10),
            (self.do_truncate, 5),
            (self.do_ftruncate, 5),
            (self.do_fsync, 3),
            (self.do_map, 5),
            (self.do_copy, 4),
            (self.do_cp, 4),
            (self.do_unlink, 6),
            (self.do_rename, 8),
            (self.do_mkdir, 5),
            (self.do_rmdir, 4),
            (self.do_symlink, 2),
            (self.do_stat, 10),
            (self.do_list, 5),
            (self.do_chmod, 2),
            (self.do_utime, 3),
            (self.do_setxattr, 4),
            (self.do_removexattr, 2),
            (self.do_compare, 2),
        )

    def run(self, steps: int) -> None:
        functions = [function for function, _ in self.steps]
        weights = [weight for _, weight in self.steps]
        for number in range(steps):
            step = self.choose.choices(functions, weights)[0]
            self.trail.append(f"{number} {step.__name__}")
            try:
                step()
            except Different:
                raise
            except OSError as error:
                raise Different(f"unexpected: {error!r}") from error
            if number % 250 == 249:
                self.settle()
        self.settle()

    # one call on both sides

    def both(self, what: str, call: Callable[[Any], Any], mount: Any, plain: Any) -> Any:
        self.trail[-1] += f" {what}"
        theirs = _result(call, mount)
        ours = _result(call, plain)
        if theirs != ours and not any(
            {theirs, ours} <= same for same in _SAME if _hashable(theirs)
        ):
            raise Different(f"{what}: the mount gives {_short(theirs)}, a directory {_short(ours)}")
        return ours

    def path(self) -> str:
        folder = self.choose.choice(FOLDERS)
        name = self.choose.choice(NAMES)
        return f"{folder}/{name}" if folder else name

    def on(self, path: str, call: Callable[[Path], Any], what: str) -> Any:
        return self.both(f"{what} {path!r}", call, self.mount / path, self.plain / path)

    # steps

    def do_open(self) -> None:
        if len(self.open) > 6:
            return self.do_close()
        path = self.path()
        flags = self.choose.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
        for flag in (os.O_CREAT, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_EXCL):
            if self.choose.random() < 0.4:
                flags |= flag
        if not flags & os.O_CREAT:
            flags &= ~os.O_EXCL
        if flags & os.O_ACCMODE == os.O_RDONLY:
            flags &= ~os.O_TRUNC  # unspecified by POSIX
        mode = self.choose.choice((0o644, 0o600, 0o755))
        files: list[int] = []

        def call(place: Path) -> str:
            files.append(os.open(place, flags, mode))
            return "opened"

        self.on(path, call, f"open {flags:o}")
        if len(files) == 2:
            if stat.S_ISDIR(os.fstat(files[1]).st_mode):
                for file in files:
                    os.close(file)
            else:
                self.open.append(Pair(path, files[0], files[1], flags))
        return None

    def do_close(self) -> None:
        if self.open:
            pair = self.open.pop(self.choose.randrange(len(self.open)))
            self.both(f"close {pair.path!r}", os.close, pair.mount, pair.plain)

    def some(self, wanted: Callable[[Pair], bool]) -> Pair | None:
        pairs = [pair for pair in self.open if wanted(pair)]
        return self.choose.choice(pairs) if pairs else None

    def do_write(self) -> None:
        pair = self.some(lambda each: each.writes)
        if pair is None:
            return self.do_open()
        data = self.choose.randbytes(self.choose.choice((1, 10, 4096, 5000, 70_000)))
        if pair.flags & os.O_APPEND:
            self.both(
                f"append {len(data)} {pair.path!r}",
                lambda file: os.write(file, data),
                pair.mount,
                pair.plain,
            )
            return None
        offset = self.choose.randrange(MOST)
        self.both(
            f"write {offset}+{len(data)} {pair.path!r}",
            lambda file: os.pwrite(file, data, offset),
            pair.mount,
            pair.plain,
        )
        return None

    def do_read(self) -> None:
        pair = self.some(lambda each: each.reads)
        if pair is None:
            return self.do_compare()
        offset, size = self.choose.randrange(MOST), self.choose.choice((1, 4096, 100_000))
        self.both(
            f"read {offset}+{size} {pair.path!r}",
            lambda file: os.pread(file, size, offset),
            pair.mount,
            pair.plain,
        )
        return None

    def do_truncate(self) -> None:
        size = self.choose.choice((0, 1, self.choose.randrange(MOST)))
        self.on(self.path(), lambda place: os.truncate(place, size), f"truncate {size}")

    def do_ftruncate(self) -> None:
        pair = self.some(lambda each: each.writes)
        if pair is not None:
            size = self.choose.choice((0, 4096, self.choose.randrange(MOST)))
            self.both(
                f"ftruncate {size} {pair.path!r}",
                lambda file: os.ftruncate(file, size),
                pair.mount,
                pair.plain,
            )

    def do_fsync(self) -> None:
        pair = self.some(lambda each: each.writes)
        if pair is not None:
            self.both(f"fsync {pair.path!r}", os.fsync, pair.mount, pair.plain)

    def do_map(self) -> None:
        pair = self.some(lambda each: each.writes and each.reads)
        if pair is None:
            return
        size = os.fstat(pair.plain).st_size
        if not size:
            return
        start = self.choose.randrange(size)
        data = self.choose.randbytes(min(size - start, self.choose.choice((1, 5000))))

        def call(file: int) -> bytes:
            with mmap.mmap(file, size) as mapped:
                before = mapped[start : start + len(data)]
                mapped[start : start + len(data)] = data
                if len(data) > 1:
                    mapped.flush()
                return before

        self.both(f"map {start}+{len(data)} of {size} {pair.path!r}", call, pair.mount, pair.plain)

    def do_copy(self) -> None:
        source, target = self.some(lambda each: each.reads), self.some(lambda each: each.writes)
        if source is None or target is None:
            return
        start, offset = self.choose.choice(((0, 0), (0, 0), (5000, 70_000), (4096, 4096)))
        size = self.choose.choice((4096, 100_000, MOST))  # a file may be copied into itself
        self.both(
            f"copy {start}+{size} {source.path!r} to {offset} of {target.path!r}",
            lambda files: _copied(*files, size, start, offset),
            (source.mount, target.mount),
            (source.plain, target.plain),
        )

    def do_cp(self) -> None:
        path, to = self.path(), self.path()

        def call(root: Path) -> int:
            source = os.open(root / path, os.O_RDONLY)
            try:
                target = os.open(root / to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                try:
                    return _copied(source, target, 1 << 30, 0, 0)
                finally:
                    os.close(target)
            finally:
                os.close(source)

        self.both(f"cp {path!r} {to!r}", call, self.mount, self.plain)

    def do_unlink(self) -> None:
        self.on(self.path(), os.unlink, "unlink")

    def do_rename(self) -> None:
        if self.choose.random() < 0.2:
            source, target = self.choose.choice(FOLDERS[1:]), self.choose.choice(FOLDERS[1:])
        else:
            source, target = self.path(), self.path()
        tags = [_tags(self.plain / each, follow=False) for each in (source, target)]
        same = _is_same(self.plain / source, self.plain / target)
        ends = {root: (root / source, root / target) for root in (self.mount, self.plain)}
        result = self.both(
            f"rename {source!r} {target!r}",
            lambda root: os.rename(*ends[root]),
            self.mount,
            self.plain,
        )
        if result is None and not same:
            for pair in self.open:
                pair.path = f"{pair.path} (moved?)"
            place = self.plain / target
            if not tags[0] and tags[1] and place.is_file() and not place.is_symlink():
                # The one difference: a file without properties that replaces one takes them over.
                for key, value in tags[1].items():
                    os.setxattr(place, key, value)

    def do_mkdir(self) -> None:
        self.on(self.choose.choice(FOLDERS[1:]), os.mkdir, "mkdir")

    def do_rmdir(self) -> None:
        self.on(self.choose.choice(FOLDERS[1:]), os.rmdir, "rmdir")

    def do_symlink(self) -> None:
        target = self.choose.choice(("a", "./b", "nowhere", "d/c"))
        path = self.path()
        self.on(path, lambda place: os.symlink(target, place), f"symlink {target}")
        self.on(path, os.readlink, "readlink")

    def do_stat(self) -> None:
        self.on(self.path(), _stat, "stat")

    def do_list(self) -> None:
        self.on(self.choose.choice(FOLDERS), lambda place: sorted(os.listdir(place)), "list")

    def do_chmod(self) -> None:
        mode = self.choose.choice((0o644, 0o600, 0o755, 0o444))
        self.on(self.path(), lambda place: os.chmod(place, mode), f"chmod {mode:o}")

    def do_utime(self) -> None:
        path = self.path()
        times = (self.choose.randrange(10**9), self.choose.randrange(10**9))
        self.on(path, lambda place: os.utime(place, times), f"utime {times}")
        self.on(path, lambda place: (os.stat(place).st_mtime, os.stat(place).st_atime), "times")

    def do_setxattr(self) -> None:
        key, value = self.choose.choice(KEYS), self.choose.choice((b"production", b"1,2", b"x"))
        path = self.path()
        if not (self.plain / path).is_symlink():
            self.on(path, lambda place: os.setxattr(place, key, value), f"setxattr {key}")

    def do_removexattr(self) -> None:
        key, path = self.choose.choice(KEYS), self.path()
        if not (self.plain / path).is_symlink():
            self.on(path, lambda place: os.removexattr(place, key), f"removexattr {key}")

    def do_compare(self) -> None:
        path = self.path()
        if not (self.plain / path).is_symlink():
            self.on(path, _content, "content")
            self.on(path, _tags, "tags")

    def settle(self) -> None:
        """Close everything, and compare both trees and what the server has."""
        while self.open:
            self.trail.append("settle")
            self.do_close()
        _sync(self.mount)
        self.trail.append("compare")
        expected = _tree(self.plain)
        for where, found in (("mount", _tree(self.mount)), ("server", _on_server())):
            names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            if names:
                differences = [f"{n!r}: {found.get(n)}, not {expected.get(n)}" for n in names]
                raise Different(f"the {where} has {'; '.join(differences)}")


def _sync(root: Path) -> None:
    """Have everything uploaded that waits until it rests (--settle)."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            if not path.is_symlink():
                file = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)


def _result(call: Callable[[Any], Any], place: Any) -> Any:
    try:
        return call(place)
    except OSError as error:
        return error.errno


def _copied(source: int, target: int, size: int, start: int, offset: int) -> int:
    """Copy up to *size* bytes, as programs do: until nothing comes any more."""
    done = 0
    while done < size and (
        count := os.copy_file_range(source, target, size - done, start + done, offset + done)
    ):
        done += count
    return done


def _hashable(value: Any) -> bool:
    return isinstance(value, int)


def _short(value: Any) -> str:
    if isinstance(value, int):
        return errno.errorcode.get(value, str(value))
    if isinstance(value, bytes):
        return f"{len(value)} bytes {hashlib.sha256(value).hexdigest()[:8]}"
    return repr(value)[:2000]


def _is_same(a: Path, b: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.lstat(a), os.lstat(b))
    return False


def _stat(place: Path) -> tuple[int, ...]:
    found = os.lstat(place)
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
    mode = found.st_mode if not stat.S_ISDIR(found.st_mode) else stat.S_IFDIR
    return mode, size


def _content(place: Path) -> bytes:
    return place.read_bytes()


def _tags(place: Path, *, follow: bool = True) -> dict[str, bytes]:
    if not follow and place.is_symlink():
        return {}
    with contextlib.suppress(OSError):
        return {
            key: os.getxattr(place, key)
            for key in sorted(os.listxattr(place))
            if key.startswith("user.")
        }
    return {}


def _tree(root: Path) -> dict[str, str]:
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            relative = str(path.relative_to(root))
            if path.is_symlink():
                found[relative] = f"-> {os.readlink(path)}"
            elif path.is_dir():
                found[relative] = "folder"
            else:
                tags = sorted(_tags(path).items())
                found[relative] = f"{hashlib.sha256(path.read_bytes()).hexdigest()} {tags}"
    return found


def _on_server() -> dict[str, str]:
    """Return the tree as the server has it, in the words of ``_tree``."""
    query = (
        'items.find({"repo":"ml-models-local","type":"any","name":{"$ne":"."}})'
        '.include("repo","path","name","type","sha256","property")'
    )
    answer = _ask("/api/search/aql", query.encode())
    found = {}
    for row in json.loads(answer)["results"]:
        path = row["name"] if row["path"] == "." else f"{row['path']}/{row['name']}"
        tags: dict[str, list[str]] = {}
        for pair in row.get("properties", []):
            tags.setdefault(pair["key"], []).append(pair.get("value", ""))
        if row["type"] == "folder":
            found[path] = "folder"
        elif "symlink.dest" in tags:
            found[path] = f"-> {tags['symlink.dest'][0]}"
        else:
            shown = sorted((f"user.{key}", ",".join(vs).encode()) for key, vs in tags.items())
            address = f"/ml-models-local/{urllib.parse.quote(path, safe='/')}"
            body = _ask(address, None)
            digest = hashlib.sha256(body).hexdigest()
            if digest != row["sha256"]:
                raise Different(f"the server contradicts itself about {path}")
            found[path] = f"{digest} {shown}"
    return found


def _ask(address: str, body: bytes | None) -> bytes:
    request = urllib.request.Request(os.environ["JFS_URL"] + address, body)
    request.add_header("Authorization", f"Bearer {os.environ['JFS_TOKEN']}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        data: bytes = answer.read()
    return data


def main(mount: str, plain: str, steps: str, seed: str) -> None:
    driver = Driver(Path(mount), Path(plain), seed)
    try:
        driver.run(int(steps))
    except Different as error:
        sys.exit("\n".join([*driver.trail, f"seed {seed}: {error}"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
