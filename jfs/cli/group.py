"""The group ``jfs`` and its commands; each command is a module beside this one."""

import importlib
from typing import Any

import click

from jfs import __version__

# Loaded only when asked for: `jfs serve` need not import FUSE, nor `jfs mount` the server.
_COMMANDS = {
    "build": "jfs.cli.build",
    "cache": "jfs.cli.cache",
    "cp": "jfs.cli.cp",
    "demo": "jfs.cli.demo",
    "find": "jfs.cli.find",
    "ls": "jfs.cli.ls",
    "mount": "jfs.cli.mount",
    "mv": "jfs.cli.mv",
    "promote": "jfs.cli.promote",
    "props": "jfs.cli.props",
    "recover": "jfs.cli.recover",
    "refresh": "jfs.cli.refresh",
    "serve": "jfs.cli.serve",
    "status": "jfs.cli.status",
    "sync-file": "jfs.cli.syncfile",
    "umount": "jfs.cli.umount",
    "warm": "jfs.cli.warm",
}


# systemd gives a mount of fstab 90 s, and then ends it without saying why.
_MOUNT8_WAITS = "60s"


class _Interrupted(BaseException):
    """Ctrl-C, on its way through click, which would print an empty line for it."""


class _LazyGroup(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jfs")
def group() -> None:
    """Mount a JFrog Artifactory repository of machine-learning models as a directory.

    \b
    Example:
      jfs mount https://company.example/artifactory/ml-models-local /models

    Exit codes: 0 done, 1 it failed, 2 wrong use (an option, a URL, a mountpoint, credentials).
    """


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit code.

    Raises:
        JfsError, OSError: why it failed.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        # click, outside its standalone mode, returns the code of an Exit or what the command did.
        arguments, defaults = _as_mount(arguments)
        code = group(args=arguments, default_map=defaults, standalone_mode=False)
    except (_Interrupted, click.exceptions.Abort):
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return code if isinstance(code, int) else 0


def is_mount(arguments: list[str]) -> bool:
    """Whether the command is ``jfs mount``, also as mount(8) says it."""
    return _as_mount(arguments)[0][:1] == ["mount"]


def _as_mount(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Understand ``jfs SOURCE MOUNTPOINT -o …``, as mount(8) calls us for ``-t fuse.jfs``.

    Returns:
        The arguments of ``jfs``, and defaults of its commands.
    """
    if len(arguments) >= 2 and arguments[0] not in _COMMANDS:
        source = arguments[0]
        if not source.startswith("-") and ("/" in source or ":" in source):
            defaults = {"mount": {"wait_for_server": _MOUNT8_WAITS}}
            return ["mount", "--daemon", *arguments], defaults
    return arguments, {}
