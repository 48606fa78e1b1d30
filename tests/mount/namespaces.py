"""Mount namespaces of processes that see other files than everybody else."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Nothing reaches the machine's own namespace. On machines that are themselves a chroot nothing can
# make / private: there a private bind mount of it becomes the root. Mounts of others would live as
# long as their copies here, so these are taken away.
_ENTER = """
place=$1 setup=$2; shift 2
others() { umount --lazy --all --types fuse.jfs 2>/dev/null; true; }
if mount --make-rprivate / 2>/dev/null; then
    others
    eval "$setup" || exit 99
    exec "$@"
fi
mount --bind "$place" "$place" && mount --make-private "$place" || exit 99
mkdir "$place/root" && mount --rbind / "$place/root" && mount --make-rprivate "$place/root" ||
    exit 99
exec chroot "$place/root" sh -c 'eval "$0" && exec "$@"' "$setup" "$@"
"""


def namespace(place: Path, setup: str) -> list[str]:
    """Return what to put before a command, so that it runs in a namespace of its own.

    Args:
        place: an empty directory; ``leave`` it afterwards.
        setup: a script of sh that mounts there what shall be different.
    """
    return [
        *("unshare", "--mount", "--propagation", "unchanged"),
        *("sh", "-c", _ENTER, "sh", str(place), setup),
    ]


def inside(process: int) -> Sequence[str]:
    """Return what to put before a command, so that it sees what *process* sees."""
    return ("nsenter", f"--target={process}", "--mount", "--root", f"--wd={os.getcwd()}")


def leave(place: Path) -> None:
    """Clear what a namespace may have left on a machine that is a chroot."""
    subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)
