"""System calls whose results a mount and a plain directory must share: ``python … DIRECTORY``.

A process of its own, as root, which serves nothing: it also acts as another user. Prints a line for
each step; only what Linux 5.10 and later say alike, whatever the directory's file system.
"""

import contextlib
import errno
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

NOBODY, GROUP = 65534, 65533
LONG = "n" * 256
ABSENT = "absent"


def said(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the result, or the name of the errno."""
    try:
        return call(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def mode(path: str) -> str:
    return oct(os.stat(path).st_mode & 0o7777)


def group(path: str) -> int:
    return os.lstat(path).st_gid


def make(path: str, data: bytes = b"", bits: int = 0o644) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, bits)
    with open(file, "wb") as stream:
        stream.write(data)
    os.chmod(path, bits)


@contextlib.contextmanager
def somebody() -> Iterator[None]:
    """Act as a user without rights or groups of his own."""
    os.setgroups([])
    os.setegid(GROUP)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def names() -> Iterator[Any]:
    os.mkdir("listed")
    for folder in (".", "listed"):
        path = f"{folder}/{LONG}"
        yield [said(call, path) for call in (os.stat, os.unlink, os.rmdir, os.mkdir, os.listdir)]
        yield said(os.truncate, path, 1), said(os.chmod, path, 0o600), said(os.utime, path)
        yield said(os.rename, path, "x"), said(os.rename, "listed", path)
        yield (
            said(os.symlink, "x", path),
            said(os.readlink, path),
            said(os.getxattr, path, "user.a"),
        )
        yield said(os.open, path, os.O_RDONLY), said(os.open, path, os.O_CREAT)
    make("file")
    yield [said(call, "file/below") for call in (os.stat, os.unlink, os.mkdir, os.listdir)]
    yield [said(call, "file/") for call in (os.stat, os.unlink, os.mkdir, os.rmdir)]
    yield said(os.mkdir, "slash/"), said(os.rmdir, "slash/"), said(os.rename, "file", "file2/")
    yield said(os.unlink, "listed"), said(os.rmdir, "file"), said(os.mkdir, "file")
    yield said(os.rmdir, "listed/."), said(os.unlink, "."), said(os.rename, ".", "x")


def renames() -> Iterator[Any]:
    os.makedirs("d/e/f")
    make("file", b"1")
    make("other", b"22")
    yield said(os.rename, "d", "d/e/x"), said(os.rename, "d", "d"), said(os.rename, "d/e", "d")
    yield said(os.rename, "file", "d"), said(os.rename, "d", "file"), said(os.rename, ABSENT, "x")
    yield said(os.rename, "file", "file"), os.stat("file").st_size
    os.mkdir("empty")
    full = said(os.rename, "empty", "d") in ("ENOTEMPTY", "EEXIST")  # POSIX leaves the choice
    yield full, said(os.rename, "d", "empty"), sorted(os.listdir("."))
    yield os.listdir("empty"), said(os.rename, "file", "other"), os.stat("other").st_size


def emptied() -> Iterator[Any]:
    make("file", b"something")
    file = os.open("file", os.O_RDONLY | os.O_TRUNC)
    yield os.fstat(file).st_size, said(os.read, file, 9), said(os.write, file, b"x")
    os.close(file)
    make("file", b"something", 0o444)
    with somebody():
        yield said(os.open, "file", os.O_RDONLY | os.O_TRUNC)
    yield os.stat("file").st_size


def setgid_folders() -> Iterator[Any]:
    os.mkdir("shared")
    os.chown("shared", 0, 1234)
    os.chmod("shared", 0o2777)
    for user in ("root", "somebody"):
        with somebody() if user == "somebody" else contextlib.nullcontext():
            path = f"shared/{user}"
            make(path, b"1", 0o640)
            os.mkdir(f"{path}-folder")
            os.mkdir(f"{path}-folder/below")
            os.symlink("x", f"{path}-link")
            os.mknod(f"{path}-node", stat.S_IFREG | 0o600)
            made = (path, f"{path}-folder", f"{path}-folder/below", f"{path}-link", f"{path}-node")
            yield [group(each) for each in made]
            yield [mode(each) for each in made[:3]]
    os.rename("shared/root", "out")
    yield group("out"), mode("out")


def privileges() -> Iterator[Any]:
    os.chmod(".", 0o777)
    for bits in (0o4777, 0o2777, 0o6777):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
            make("f", b"123")
            os.chmod("f", bits)
            with somebody():
                file = os.open("f", flags)
                opened = mode("f")
                os.write(file, b"x")
                # The whole of stat, and the mode alone, which the kernel may answer itself.
                yield opened, mode("f"), oct(os.fstat(file).st_mode), os.access("f", os.X_OK)
                os.close(file)
            yield mode("f")
        os.chmod("f", bits)
        with somebody():
            os.truncate("f", 1)
        yield "truncated", mode("f")
        os.chmod("f", bits)
        os.chown("f", 5, 6)
        yield "of another owner", mode("f")
        os.chmod("f", bits)
        with open("f", "r+b") as stream:
            stream.write(b"root")
        yield "written by root", mode("f")
    with somebody():
        yield said(os.chmod, "f", 0o4777), said(os.chown, "f", NOBODY, -1), said(os.utime, "f")
        yield said(os.utime, "f", (1, 1))
    os.chmod(".", 0o1777)
    with somebody():
        yield said(os.unlink, "f"), said(os.rename, "f", "g")
    os.chmod(".", 0o755)
    with somebody():
        yield said(os.mkdir, "d"), said(os.open, "new", os.O_CREAT | os.O_WRONLY)


def folder_times() -> Iterator[Any]:
    """Whether a folder's mtime follows the names in it, and no other change."""
    os.mkdir("d")
    make("d/file")
    make("outside")

    def after(call: Callable[..., Any], *arguments: Any) -> bool:
        os.utime("d", ns=(1, 10**18))
        said(call, *arguments)
        return os.stat("d").st_mtime_ns != 10**18

    yield after(make, "d/new"), after(make, "d/new", b"content"), after(os.chmod, "d/new", 0o600)
    yield after(os.mkdir, "d/sub"), after(os.mkdir, "d/sub/sub"), after(os.symlink, "x", "d/link")
    yield after(os.rename, "d/new", "d/newer"), after(os.rename, "d/newer", "out")
    yield after(os.rename, "outside", "d/in"), after(os.rename, "out", "d/in")
    yield after(os.mknod, "d/node"), after(os.unlink, "d/node"), after(os.rmdir, "d/sub")
    yield after(os.rmdir, "d/sub/sub"), after(os.rmdir, "d/sub"), after(os.listdir, "d")
    yield after(os.chmod, "d", 0o700), after(os.unlink, ABSENT)


def without_a_name() -> Iterator[Any]:
    make("f", b"1234", 0o600)
    file = os.open("f", os.O_RDWR)
    os.unlink("f")
    make("f", b"other", 0o640)
    os.fchmod(file, 0o4711)
    os.write(file, b"56")
    os.ftruncate(file, 3)
    shown = os.fstat(file)
    yield oct(shown.st_mode), shown.st_nlink, shown.st_size, os.pread(file, 9, 0), mode("f")
    os.close(file)
    make("over", b"new", 0o644)
    file = os.open("f", os.O_RDONLY)
    os.rename("over", "f")
    yield oct(os.fstat(file).st_mode), os.fstat(file).st_nlink, os.read(file, 9), mode("f")
    os.close(file)
    with tempfile.TemporaryFile(dir=".") as stream:
        stream.write(b"x")
        stream.flush()
        yield os.fstat(stream.fileno()).st_nlink, os.listdir(".")
    os.mkdir("d")
    folder = os.open("d", os.O_RDONLY)
    os.rmdir("d")
    yield os.fstat(folder).st_nlink, said(os.mkdir, "x", dir_fd=folder), os.listdir(folder)
    os.close(folder)


def sizes() -> Iterator[Any]:
    make("f", b"x" * 100)
    yield said(os.truncate, "f", -1), said(os.truncate, ABSENT, 1), said(os.truncate, ".", 1)
    file = os.open("f", os.O_RDWR)
    os.posix_fallocate(file, 0, 50)
    yield os.fstat(file).st_size
    os.posix_fallocate(file, 90, 100_000)
    yield os.fstat(file).st_size, os.pread(file, 20, 90)
    with mmap.mmap(file, 0) as mapped:
        mapped[99_999] = 1
        mapped.flush()
    yield os.pread(file, 2, 99_999), said(os.ftruncate, file, 10), os.fstat(file).st_size
    yield said(os.lseek, file, -1, os.SEEK_SET), said(os.lseek, file, 11, os.SEEK_DATA)
    os.close(file)


def times() -> Iterator[Any]:
    make("f", b"1")
    for atime, mtime in ((1, 2), (10**18 + 123_456_789, 5 * 10**17 + 1), (0, 10**9)):
        os.utime("f", ns=(atime, mtime))
        shown = os.stat("f")
        yield shown.st_atime_ns, shown.st_mtime_ns
    os.rename("f", "g")
    yield os.stat("g").st_mtime_ns
    os.truncate("g", 1)
    yield os.stat("g").st_mtime_ns == 10**9


STEPS = (
    names,
    renames,
    emptied,
    setgid_folders,
    privileges,
    folder_times,
    without_a_name,
    sizes,
    times,
)


def main() -> None:
    top = sys.argv[1]
    os.umask(0o022)
    for steps in STEPS:
        folder = f"{top}/{steps.__name__}"
        os.mkdir(folder)
        os.chdir(folder)
        for number, result in enumerate(steps()):
            print(f"{steps.__name__} {number}: {result}")
        os.chdir("/")


if __name__ == "__main__":
    main()
