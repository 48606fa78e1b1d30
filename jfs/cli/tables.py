"""Entries of the server as tables for people and records for programs."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from jfs.model import EntryInfo, FileInfo, Properties

_ENDLESS = 1 << 20  # columns


def as_record(
    entry: EntryInfo, path: str, properties: Properties | None = None
) -> dict[str, object]:
    """Return an entry as JSON has it; *properties* only if they were asked for."""
    record: dict[str, object] = {
        "path": path,
        "repo": entry.path.repo,
        "name": entry.path.name,
        "type": "file" if isinstance(entry, FileInfo) else "folder",
        "modified": moment(entry.modified_ns),
    }
    if isinstance(entry, FileInfo):
        record |= {"size": entry.size, "sha256": entry.checksums.sha256}
    if properties is not None:
        record["properties"] = {key: list(values) for key, values in sorted(properties.items())}
    return record


def print_table(headers: Sequence[str], rows: Sequence[tuple[EntryInfo, str]]) -> None:
    """Print size, time and name of entries."""
    print_rows(
        headers,
        [
            (
                decimal(entry.size) if isinstance(entry, FileInfo) else "-",
                moment(entry.modified_ns) if entry.modified_ns else "-",
                name,
            )
            for entry, name in rows
        ],
    )


def print_rows(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; no cell is ever cut. Sizes are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, justify="right" if header == "SIZE" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    # A console without an end: the table is as wide as its cells.
    Console(width=_ENDLESS).print(table, crop=False)


def moment(time_ns: int) -> str:
    """``2024-02-24T21:20:59Z``."""
    return f"{datetime.fromtimestamp(time_ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
