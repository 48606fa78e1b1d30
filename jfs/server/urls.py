"""Addresses of items in answers. Pure."""

from typing import Protocol
from urllib.parse import quote


class Located(Protocol):
    @property
    def repo(self) -> str: ...

    @property
    def path(self) -> str: ...


def encoded(item: Located) -> str:
    """Give ``repo/path``, percent-encoded."""
    return quote(f"{item.repo}/{item.path}".rstrip("/"), safe="/")
