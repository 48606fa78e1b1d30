"""Parameter types and the ``-o`` option that commands share."""

from collections.abc import Mapping
from dataclasses import dataclass

import click

from jfs.errors import ConfigError
from jfs.extents import GiB, KiB, MiB, TiB

_UNITS = {"": 1, "K": KiB, "M": MiB, "G": GiB, "T": TiB}

# Handed to the kernel as they are; see mount(8).
_KERNEL = frozenset(
    [
        "async",
        "atime",
        "dev",
        "dirsync",
        "exec",
        "noatime",
        "nodev",
        "noexec",
        "nosuid",
        "ro",
        "suid",
        "sync",
    ]
)
# Meant for mount(8), systemd or init scripts, and without a meaning here; the ways of updating
# access times, since there are none to update; and what every mount has.
_IGNORED = frozenset(
    [
        "_netdev",
        "auto",
        "default_permissions",
        "defaults",
        "diratime",
        "group",
        "lazytime",
        "noauto",
        "nodiratime",
        "nofail",
        "nogroup",
        "nolazytime",
        "noowner",
        "norelatime",
        "nostrictatime",
        "nouser",
        "nousers",
        "owner",
        "relatime",
        "rw",
        "strictatime",
        "user",
        "users",
    ]
)


class Size(click.ParamType[int]):
    """Bytes, with an optional binary unit: ``64G``, ``512MiB``."""

    name = "SIZE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        text = str(value).upper().removesuffix("B").removesuffix("I")
        number, unit = (text[:-1], text[-1:]) if text[-1:].isalpha() else (text, "")
        try:
            size = int(float(number) * _UNITS[unit])
        except (ValueError, KeyError, OverflowError):
            size = -1
        if size < 0:
            self.fail(f"{value!r} is not a size such as 512M or 64G", param, ctx)
        return size


class Umask(click.ParamType[int]):
    """An octal umask."""

    name = "UMASK"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            umask = value if isinstance(value, int) else int(str(value), 8)
        except ValueError:
            umask = -1
        if not 0 <= umask <= 0o777:
            self.fail(f"{value!r} is not an octal umask such as 022", param, ctx)
        return umask


@dataclass(frozen=True, slots=True)
class ListedOptions:
    """What ``-o`` said, besides the values that stand for flags of their own."""

    kernel: frozenset[str]
    nonempty: bool


def parse_listed(ctx: click.Context, _: click.Parameter, listed: tuple[str, ...]) -> ListedOptions:
    """Understand ``-o a,b=c``: the callback of an eager option.

    Every long flag of the command is known here too (``token_file=…``, ``token-file=…``), which
    is how fstab and ``mount -t fuse.jfs`` give them; the same flag on the command line wins.

    Raises:
        ConfigError: an option that neither mount(8) nor jfs knows.
    """
    flags: Mapping[str, click.Option] = {
        parameter.name: parameter
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option) and parameter.name
    }
    kernel: set[str] = set()
    values: dict[str, object] = {}
    nonempty = False
    for option in ",".join(listed).split(","):
        key, equals, value = option.partition("=")
        name = key.replace("-", "_")
        if not option or name in _IGNORED or name.startswith("x_"):
            continue
        if name == "nonempty" and not equals:
            nonempty = True
        elif name in _KERNEL and not equals:
            kernel.add(name)
        elif (
            name in flags
            and name not in ("listed", "background")
            and (flags[name].is_flag is not bool(equals))
        ):
            values[name] = value if equals else True
        else:
            raise ConfigError(f"-o {option}: not an option of mount(8) or of jfs mount")
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return ListedOptions(frozenset(kernel), nonempty)
