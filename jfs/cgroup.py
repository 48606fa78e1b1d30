"""The memory limit that this process runs under. Blocking file reads; any thread.

The kernel charges our buffers to it, and the pages that it caches of files that we read and write:
both must follow this limit and not the memory of the machine.
Source: kernel documentation, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from pathlib import Path

_UNLIMITED = 1 << 60  # v1 writes "no limit" as a huge number of pages


def memory_limit(
    root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc/self")
) -> int | None:
    """Return the smallest limit of our cgroup and those above it, in bytes; None: no limit."""
    limits = []
    try:
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            limits += _limits(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(root / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(base: Path, path: str, name: str) -> list[int]:
    """Read the limit of a group and of every group above it.

    In a container the path is that of the host while only our own part is mounted: what does not
    exist is passed over, and the mounted root counts.
    """
    found = []
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        try:
            text = base.joinpath(*parts[:depth], name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            found.append(int(text))
    return found
