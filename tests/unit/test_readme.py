"""The README tells the truth about options and tests."""

import re
from pathlib import Path

from tests.readme import README, expected

TESTS = Path(__file__).parent.parent


def test_the_options_are_the_commands_options() -> None:
    assert README.read_text() == expected(), "run `python -m tests.readme`"


def test_every_test_that_it_names_exists() -> None:
    source = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", README.read_text())
    assert named
    assert [name for name in named if f"def {name}(" not in source] == []


def test_the_guaranteed_tables_name_a_test_in_every_row() -> None:
    text = README.read_text()
    for title in ("Warming and looking after the cache", "Consistency", "Durability", "Outages"):
        section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        assert "each row has a test</summary>" in section
        section = section.partition("<!-- weather -->")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
        assert rows
        assert all(re.search(r"`test_\w+` \|$", row) for row in rows)


def test_every_command_has_an_example_and_exit_codes() -> None:
    import click

    from jfs.cli.group import group
    from tests.readme import _commands

    for path, command in _commands(group, click.Context(group), "jfs"):
        assert command.help is not None, path
        assert "Example:" in command.help, path
        assert "Exit codes:" in command.help, path
