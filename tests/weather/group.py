"""A limit of memory for a process, where this machine has cgroups that may be made."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@dataclass(frozen=True)
class Group:
    """A cgroup of version 2 or 1.

    Attributes:
        under: a command that becomes another one in this group.
    """

    path: Path
    peak_file: str
    kills_file: str

    @property
    def under(self) -> tuple[str, ...]:
        return "sh", "-c", _ENTER, str(self.path)

    @property
    def killed(self) -> int:
        """How many processes the kernel has killed in it for want of memory."""
        lines = (self.path / self.kills_file).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    @property
    def peak(self) -> int | None:
        """The most memory that it had, in bytes; None: this kernel does not say."""
        with contextlib.suppress(OSError):
            return int((self.path / self.peak_file).read_text())
        return None


@contextlib.contextmanager
def limited(name: str, limit: int) -> Iterator[Group | None]:
    """Make a group whose processes have *limit* bytes together; None: it cannot be made here."""
    made = _made(f"{name}-{os.getpid()}", limit)
    try:
        yield made
    finally:
        if made is not None:
            with contextlib.suppress(OSError):  # who is left in it was not ended by its owner
                made.path.rmdir()


def _made(name: str, limit: int) -> Group | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parent, files = _ROOT / "memory", ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
            kills = "memory.oom_control"
        elif number == "0" and not controllers:
            parent, files, kills = _ROOT, ("memory.max", "memory.peak"), "memory.events"
        else:
            continue
        own = parent / path.lstrip("/")
        group = Group((own if own.is_dir() else parent) / name, files[1], kills)
        if _limit(group.path, files[0], limit):
            return group
    return None


def _limit(path: Path, file: str, limit: int) -> bool:
    """Make a group and limit it; False: it may not be made, or has no limit of memory."""
    try:
        path.mkdir()
    except OSError:
        return False
    try:
        with (path / file).open("r+") as setting:  # never made: it is the kernel's
            setting.write(str(limit))
    except OSError:
        path.rmdir()
        return False
    return True
