"""``-o`` as fstab, systemd and mount(8) write it: understood, or refused with one clear line."""

import click
import pytest

from jfs.cli.mount import command
from jfs.cli.options import Duration, ListedOptions, parse_listed
from jfs.errors import ConfigError


def parsed(*listed: str) -> tuple[ListedOptions, dict[str, object]]:
    context = click.Context(command)
    options = parse_listed(context, command.params[0], listed)
    return options, dict(context.default_map or {})


@pytest.mark.parametrize(
    "listed",
    [
        "",
        ",",
        "defaults, _netdev ,nofail",
        "auto,user,users,owner,noauto,user=alice,uhelper=udisks2",
        "x-systemd.automount,x-systemd.idle-timeout=1min,x-systemd.requires=network-online.target",
        'x-gvfs-name="Models, all",X-mount.mkdir,comment=systemd.automount',
        "default_permissions,relatime,lazytime,strictatime,nodiratime",
        "rw",
        "ro,rw",
    ],
)
def test_what_is_meant_for_others_is_no_error(listed: str) -> None:
    assert parsed(listed) == (ListedOptions(frozenset(), False), {})


def test_what_the_kernel_knows_is_handed_on() -> None:
    listed = 'rw,ro,noexec,nosuid,nodev,nonempty,context="system_u:object_r:usr_t:s0:c1,c2"'
    options, values = parsed(listed, "noatime")
    label = 'context="system_u:object_r:usr_t:s0:c1,c2"'
    flags = {"ro", "noexec", "nosuid", "nodev", "noatime", label}
    assert options == ListedOptions(frozenset(flags), True)
    assert values == {}


def test_long_flags_are_understood_with_hyphens_or_underscores() -> None:
    _, values = parsed(
        "allow_other,token-file=/t,cache_size=1G,upload-prop=a=b,upload_prop=c=d", "uid=5,read-only"
    )
    assert values == {
        "allow_other": True,
        "token_file": "/t",
        "cache_size": "1G",
        "upload_props": ["a=b", "c=d"],
        "uid": "5",
        "read_only": True,
    }


@pytest.mark.parametrize(
    "option",
    [
        *("bogus", "ro=1", "uid", "token_file", "allow_other=yes", "daemon", "o=x"),
        *("remount", "auto_unmount", "allow_root", "max_read=65536"),
    ],
)
def test_what_cannot_be_done_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=f"^-o {option}: "):
        parsed(f"ro,{option}")


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("1.5h", 5400), ("30m", 1800), ("1d", 86400)]
)
def test_times_are_seconds_or_have_a_unit(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1w", "1 h", "inf", "nan", "h", "1e3", "٣"])
def test_what_is_no_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time: write seconds, or such as"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize("text", ["0.5", "2h"])
def test_a_time_that_nobody_can_mean_is_refused_with_what_is_possible(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not between 1 and 3600 seconds"):
        Duration(1, 3600).convert(text, None, None)


@pytest.mark.parametrize("text", ["0.5", "1", "2.9s"])
def test_a_watchdog_that_would_end_mounts_that_are_well_is_refused(text: str) -> None:
    watchdog = next(param for param in command.params if param.name == "watchdog")
    with pytest.raises(click.BadParameter, match=f"'{text}' is less than 3 seconds, and not 0"):
        watchdog.type.convert(text, watchdog, None)
    assert watchdog.type.convert("0", watchdog, None) == 0
    assert watchdog.type.convert("3", watchdog, None) == 3


@pytest.mark.parametrize("option", ["watchdog", "drain_timeout", "attr_ttl", "negative_ttl"])
def test_what_is_no_number_is_refused(option: str) -> None:
    taken = next(param for param in command.params if param.name == option)
    assert taken.type.convert("3.5", taken, None) == 3.5
    for text in ("nan", "-1", "x"):
        with pytest.raises(click.BadParameter):
            taken.type.convert(text, taken, None)
