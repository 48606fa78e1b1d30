"""Directories that nobody else can look into or write to: the block cache, the staging directory.

What lies there is believed (cached blocks) or uploaded with our rights (staged files), so it must
never be something that another user has put there. Containers hand out directories that are open
to everybody: a Kubernetes ``emptyDir`` is root's, with mode 0777. Such a directory is used by
making a private one inside.

Blocking; any thread.
"""

import contextlib
import os
import stat
from pathlib import Path

from jfs.errors import ConfigError


def private(directory: Path) -> Path:
    """Return a directory for us alone: *directory*, made if need be, or one inside it.

    Raises:
        ConfigError: there is none that can be trusted: which, why, and what to do.
    """
    try:
        with contextlib.suppress(FileExistsError):
            directory.parent.mkdir(parents=True, exist_ok=True)
            directory.mkdir(mode=0o700)
        status = _followed(directory)
        if _is_private(status):
            return directory
        if status.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{directory}: belongs to another user: give another directory")
        inside = _inside(directory)
        with contextlib.suppress(FileExistsError):
            inside.mkdir(mode=0o700)
        if not _is_private(inside.lstat()):  # of a symbolic link: of the link itself
            raise ConfigError(
                f"{inside}: others can look in, or it belongs to another user: "
                "remove it, or give another directory"
            )
        return inside
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory}: {error.strerror}: "
            "give another directory with --cache-dir or --staging-dir"
        ) from error


def existing(directory: Path) -> Path:
    """Return what ``private`` would return, and make nothing.

    It may not be there, and may be another user's: for root, who looks at a user's cache.
    """
    with contextlib.suppress(OSError):
        if not _is_private(directory.stat()) and _is_private(_inside(directory).lstat()):
            return _inside(directory)
    return directory


def _inside(directory: Path) -> Path:
    return directory / f"jfs-{os.geteuid()}"


def _is_private(status: os.stat_result) -> bool:
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not stat.S_IMODE(status.st_mode) & 0o077
    )


def _followed(directory: Path) -> os.stat_result:
    """Look at a directory, through a symbolic link only if we or root have made it.

    In a directory that everybody can write to, such as /tmp, somebody else may have planted it.
    """
    if stat.S_ISLNK((link := directory.lstat()).st_mode) and link.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{directory}: is a symbolic link that another user has made")
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{directory}: is not a directory")
    return status
