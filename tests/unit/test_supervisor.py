"""Who is waited for by default: services, and mounts of fstab; nobody at a prompt."""

import os

import click
import pytest

from jfs.cli.group import _as_mount, group
from jfs.mount.supervisor import supervises


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"NOTIFY_SOCKET": "/run/notify"}, True),
        ({"INVOCATION_ID": "a", "SYSTEMD_EXEC_PID": str(os.getpid())}, True),
        # a shell of a desktop, a job of a build agent: what a service has started
        ({"INVOCATION_ID": "a", "SYSTEMD_EXEC_PID": "1"}, False),
        ({"INVOCATION_ID": "a"}, os.getppid() == 1),
        ({"SYSTEMD_EXEC_PID": str(os.getpid())}, False),
    ],
)
def test_only_a_service_itself_is_supervised(environ: dict[str, str], expected: bool) -> None:
    assert supervises(environ) is expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["http://s/artifactory/r", "/m", "-o", "rw,_netdev"], 60.0),
        (["http://s/artifactory/r", "/m", "-o", "wait_for_server=5m,x-systemd.automount"], 300.0),
        (["http://s/artifactory/r", "/m", "-o", "wait_for_server=0"], 0.0),
        (["http://s/artifactory/r", "/m", "-o", "wait_for_server"], 36500 * 86400.0),
        (["mount", "http://s/artifactory/r", "/m"], None),
        (["mount", "--wait-for-server", "http://s/artifactory/r", "/m"], 36500 * 86400.0),
        (["mount", "--wait-for-server=90s", "http://s/artifactory/r", "/m"], 90.0),
        (["mount", "http://s/artifactory/r", "/m", "--wait-for-server"], 36500 * 86400.0),
    ],
)
def test_how_long_is_waited(arguments: list[str], expected: float | None) -> None:
    arguments, defaults = _as_mount(arguments)
    with group.make_context("jfs", list(arguments), default_map=defaults) as context:
        command = group.get_command(context, "mount")
        assert isinstance(command, click.Command)
        with command.make_context("mount", arguments[1:], parent=context) as mount:
            assert mount.params["wait_for_server"] == expected
            assert mount.params["source"] == "http://s/artifactory/r"
