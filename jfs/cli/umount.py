"""``jfs umount``."""

from pathlib import Path

import click

from jfs.errors import ConfigError
from jfs.mount.mountpoint import unmount
from jfs.mount.table import FSTYPE, mount_at


@click.command("umount")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("--lazy", is_flag=True, help="Take it away now, even while files are open.")
def command(mountpoint: Path, lazy: bool) -> None:
    """Take the mount at MOUNTPOINT away; its daemon ends.

    \b
    Example:
      jfs umount /models

    Exit codes: 0 unmounted, 2 it could not be, and the message says why.
    """
    entry = mount_at(mountpoint.absolute())
    if entry is None:
        raise ConfigError(f"{mountpoint}: nothing is mounted there")
    if entry.fstype != FSTYPE:
        raise ConfigError(f"{mountpoint}: is a {entry.fstype} mount, not one of jfs")
    try:
        unmount(mountpoint.absolute(), lazy=lazy)
    except ConfigError as error:
        if "busy" in str(error):
            raise ConfigError(
                f"{mountpoint}: in use: close its files (`fuser -vm {mountpoint}` lists who has "
                "them), or --lazy"
            ) from None
        raise
