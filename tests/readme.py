"""What the README is made of: its snippets, and the part that is generated.

``python -m tests.readme`` writes that part anew.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import click

from jfs.cli.group import group

README = Path(__file__).parent.parent / "README.md"
_PART = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- /options -->)", re.DOTALL)
_SNIPPET = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of code, and the heading that it stands under."""

    section: str
    language: str
    text: str


def snippets() -> list[Snippet]:
    """Return every block of code, in the order of the page."""
    text = README.read_text()
    headings = [(each.start(), each[1]) for each in re.finditer(r"^## (.*)$", text, re.MULTILINE)]
    found = []
    for block in _SNIPPET.finditer(text):
        section = [name for start, name in headings if start < block.start()][-1]
        found.append(Snippet(section, block[1], block[2]))
    return found


def options() -> str:
    """Render every option of every command with its default."""
    lines = ["| command | option | default | |", "|---|---|---|---|"]
    context = click.Context(group)
    for path, command in _commands(group, context, "jfs"):
        for parameter in command.params:
            if not isinstance(parameter, click.Option) or parameter.hidden:
                continue
            record = parameter.get_help_record(context)
            assert record is not None
            flags, text = record
            text, _, default = text.partition("  [")
            shown = default.removeprefix("default: ").removesuffix("]") if default else ""
            shown = shown.replace("]  [", "; ")
            if not shown and not parameter.is_flag and parameter.required:
                shown = "required"
            cells = (f"`{path}`", f"`{flags}`", shown, text)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _commands(
    command: click.Command, context: click.Context, path: str
) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    found = []
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        found += _commands(child, context, f"{path} {name}")
    return found


def expected() -> str:
    """Return the README as it should be."""
    return _PART.sub(lambda _: options(), README.read_text())


if __name__ == "__main__":
    README.write_text(expected())
