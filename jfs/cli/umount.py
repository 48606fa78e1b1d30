"""``jfs umount``."""

import time
from pathlib import Path

import click
from rich.filesize import decimal

from jfs.cli import mounted
from jfs.cli.mounted import Asked
from jfs.cli.options import Duration, Place
from jfs.errors import ConfigError, JfsError
from jfs.mount.mountpoint import unmount
from jfs.mount.table import FSTYPE, mount_at

_POLL_S = 0.2
_PATIENCE_S = 2.0  # whether something waits is only good to know for who does not wait
_UPLOADING_S = 30.0  # as long as the end of a mount waits, by default
_FOR_EVER = "inf"


class _Command(click.Command):
    """``--wait`` takes its value only with a ``=``: what follows it is the mountpoint."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = [f"--wait={_FOR_EVER}" if arg == "--wait" else arg for arg in args]
        return super().parse_args(ctx, given)


class _Wait(Duration):
    name = "[=TIME]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        return float(_FOR_EVER) if value == _FOR_EVER else super().convert(value, param, ctx)


@click.command("umount", cls=_Command)
@click.argument("mountpoint", type=Place())
@click.option("--lazy", is_flag=True, help="Take it away now, even while files are open.")
@click.option(
    "--wait", "wait_s", type=_Wait(), help="First until all that was closed is on the server."
)
def command(mountpoint: Path, lazy: bool, wait_s: float | None) -> None:
    """Take the mount at MOUNTPOINT away; its daemon ends.

    What rests (jfs mount --settle) is uploaded first, unless the server refuses it or cannot be
    asked. What was closed and is not uploaded by then stays on this disk, and the next mount of the
    same place uploads it: so does all that was closed with --write-back. With --wait the mount
    stays until nothing is left of it; if TIME (seconds, or such as 10m) is over before, it is not
    taken away.

    \b
    Example:
      jfs umount /models

    Exit codes: 0 unmounted, 1 files still wait for their upload, 2 it could not be unmounted, and
    the message says why.
    """
    place = mountpoint.absolute()
    entry = mount_at(place)
    if entry is None:
        raise ConfigError(f"{mountpoint}: nothing is mounted there")
    if entry.fstype != FSTYPE:
        raise ConfigError(f"{mountpoint}: is a {entry.fstype} mount, not one of jfs")
    if wait_s is not None:
        _wait(entry.mountpoint, mountpoint, wait_s)
        left = 0
    else:
        left = _uploaded(entry.mountpoint, lazy=lazy)
    try:
        unmount(place, lazy=lazy)
    except ConfigError as error:
        if "busy" in str(error):
            raise ConfigError(
                f"{mountpoint}: in use: close its files (`fuser -vm {mountpoint}` lists who has "
                "them), or --lazy"
            ) from None
        raise
    if left:
        click.echo(
            f"jfs: {_files(left)} for the server: what is not uploaded at the end of this mount "
            f"the next one of {entry.source} uploads (jfs recover ls)",
            err=True,
        )


def _uploaded(root: str, *, lazy: bool) -> int:
    """Have uploaded what rests until nobody opens it again; return how many files wait still."""
    deadline, is_told = time.monotonic() + _UPLOADING_S, False
    while True:
        asked = mounted.ask(root, _PATIENCE_S)
        left, _, error = _waiting(asked)
        is_over = error or lazy or time.monotonic() > deadline
        if not left or is_over or asked.section("uploads").get("write_back"):
            return left
        if not is_told:
            mounted.upload_now(root)
            is_told = True
        time.sleep(_POLL_S)


def _wait(root: str, shown: Path, limit_s: float) -> None:
    """Return when nothing waits for its upload; say how it goes. Raises JfsError."""
    deadline = time.monotonic() + limit_s
    mounted.upload_now(root)
    said = ""
    while True:
        asked = mounted.ask(root)
        left, size, error = _waiting(asked)
        if asked.state != "answers":
            raise JfsError(f"{shown}: {asked.state}, so nobody knows what waits: not unmounted")
        if not left:
            return
        if time.monotonic() > deadline:
            reason = f": {error}" if error else ""
            raise JfsError(f"{shown}: {_files(left)} for the server still, not unmounted{reason}")
        text = f"{_files(left)} for the server, {decimal(size)}"
        if text != said:
            click.echo(text)
            said = text
        time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _waiting(asked: Asked) -> tuple[int, int, str]:
    """Return how many files wait for their upload, their bytes, and why the last try failed."""
    uploads = asked.section("uploads")
    pending, size = uploads.get("pending", 0), uploads.get("pending_bytes", 0)
    return int(pending), int(size), str(uploads.get("error") or "")


def _files(count: int) -> str:
    return "1 file waits" if count == 1 else f"{count} files wait"
