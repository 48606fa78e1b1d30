"""Parameter types and the ``-o`` option that commands share."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from jfs.errors import ConfigError
from jfs.extents import GiB, KiB, MiB, TiB

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?)([smhd]?)")
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
# Handed on with their values: labels of SELinux.
_KERNEL_VALUES = frozenset(["context", "defcontext", "fscontext", "rootcontext"])
# Without a meaning here, with a value or without: what is meant for mount(8), systemd or init
# scripts; ways of updating access times, since there are none to update; what every mount has.
# Those that begin with x- or X- are for programs in user space.
_IGNORED = frozenset(
    [
        *(
            "auto",
            "defaults",
            "noauto",
            "nofail",
            "nouser",
            "nousers",
            "user",
            "users",
            "_netdev",
            "_rnetdev",
        ),
        *("comment", "group", "helper", "nogroup", "noowner", "owner", "uhelper"),
        *("default_permissions", "loud", "nosymfollow", "silent", "symfollow"),
        *("diratime", "lazytime", "nodiratime", "nolazytime", "norelatime", "nostrictatime"),
        *("iversion", "mand", "noiversion", "nomand", "relatime", "strictatime"),
    ]
)
_REFUSED = {
    "allow_root": "use allow_other; --umask says who may do what",
    "auto_unmount": "the mount of a jfs that crashed stays, lest its directory be taken for empty, "
    "until the next start clears it",
    "bind": "bind what is mounted already, with mount(8)",
    "max_read": "the kernel decides it",
    "remount": "unmount, and mount with other options",
}
_PIECES = re.compile(r'(?:"[^"]*"|[^,"]|")+')  # between commas, but for those in quotes


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


class Place(click.ParamType[Path]):
    """A path that is not looked at: ``click.Path`` does stat(2), and what is there may hang."""

    name = "path"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        return Path(str(value))


class Duration(click.ParamType[float]):
    """Seconds, or a number with a unit: ``90``, ``1.5h``, ``30m``, ``1d``; returned in seconds.

    Args:
        least, most: in seconds; others are refused.
        or_zero: 0 is taken too, which means something else.
    """

    name = "TIME"

    def __init__(
        self, least: float = 0.0, most: float = math.inf, *, or_zero: bool = False
    ) -> None:
        self._least, self._most, self._or_zero = least, most, or_zero

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        found = _DURATION.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no time: write seconds, or such as 30m, 12h, 1d", param, ctx)
        seconds = float(found[1]) * _SECONDS[found[2]]
        if self._or_zero and not seconds:
            return seconds
        if not self._least <= seconds <= self._most:
            bounds = f"is not between {self._least:g} and {self._most:g} seconds"
            if self._most == math.inf:
                bounds = f"is less than {self._least:g} seconds"
            self.fail(f"{value!r} {bounds}{', and not 0' if self._or_zero else ''}", param, ctx)
        return seconds


class NotNegative(click.FloatRange):
    """A number; ``nan``, which is in no order with any limit, is none."""

    def __init__(self) -> None:
        super().__init__(0)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return float(number)


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


class OptionalValue(click.Option):
    """An option of which the value may be left out: ``--name``, ``--name=VALUE``.

    Never ``--name VALUE``: what follows is an argument of the command, which must be a ``Command``.

    Args:
        bare: the value of ``--name``.
    """

    def __init__(self, names: Sequence[str], *, bare: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self.bare = bare


class Command(click.Command):
    """A command that may have options of the type ``OptionalValue``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        bare = {
            name: f"{name}={parameter.bare}"
            for parameter in self.params
            if isinstance(parameter, OptionalValue)
            for name in parameter.opts
        }
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [bare.get(each, each) for each in args[:end]] + args[end:])


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
        name.lstrip("-").replace("-", "_"): parameter
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option) and parameter.name not in ("listed", "background")
        for name in parameter.opts
        if name.startswith("--")
    }
    kernel: set[str] = set()
    values: dict[str, Any] = {}
    nonempty = False
    for option in map(str.strip, _PIECES.findall(",".join(listed))):
        key, equals, value = option.partition("=")
        name = key.replace("-", "_")
        flag = flags.get(name)
        if not key or name in _IGNORED or name.startswith(("x_", "X_")):
            continue
        if name in _REFUSED:
            raise ConfigError(f"-o {option}: {_REFUSED[name]}")
        if name == "nonempty" and not equals:
            nonempty = True
        elif name == "rw" and not equals:  # the last one counts, as with mount(8)
            kernel.discard("ro")
        elif name in _KERNEL_VALUES and value:
            kernel.add(f"{name}={value}")
        elif name in _KERNEL and not equals:
            kernel.add(name)
        elif isinstance(flag, OptionalValue) and flag.name is not None and not equals:
            values[flag.name] = flag.bare
        elif flag is None or flag.name is None or flag.is_flag is bool(equals):
            raise ConfigError(f"-o {option}: not an option of mount(8) or of jfs mount")
        elif flag.multiple:
            values.setdefault(flag.name, []).append(value)
        else:
            values[flag.name] = value if equals else True
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return ListedOptions(frozenset(kernel), nonempty)
