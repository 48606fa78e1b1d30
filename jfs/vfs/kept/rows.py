"""How entries, properties and answers are written into rows, and read back. Pure.

Every row has a checksum over where it belongs and what it says, with the time at which it was true.
That of an entry is ``seal(content, asked)``: from it ``content`` can be had back, so that a listing
is told from the one before without writing it.
"""

import json
from typing import Final

import xxhash

from jfs.model import Checksums, EntryInfo, FileInfo, FolderInfo, Properties, RepoPath

MISSING: Final = 0  # the server had no such name
_FILE, _FOLDER, _UNLISTED = 1, 2, 3
FOLDERS: Final = (_FOLDER, _UNLISTED)
_BITS = 64
_MASK = (1 << _BITS) - 1
_SEAL = 0x9E3779B97F4A7C15  # odd: times that differ by one give seals that differ in many bits

# kind, size, sha256, sha1, md5, modified, created, created_by, modified_by, mime, link
Content = tuple[
    int,
    int,
    bytes | str | None,
    bytes | str | None,
    bytes | str | None,
    int,
    int | None,
    str | None,
    str | None,
    str | None,
    str | None,
]
_MISSING_CONTENT: Content = (MISSING, 0, None, None, None, 0, None, None, None, None, None)


class Damaged(Exception):
    """A row that is not as it was written."""


def content_of(info: EntryInfo | None) -> Content:
    """Return what a row says of an entry; None: there is no such name."""
    if info is None:
        return _MISSING_CONTENT
    if isinstance(info, FolderInfo):
        kind = _FOLDER if info.listed else _UNLISTED
        return (kind, 0, None, None, None, info.modified_ns, info.created_ns, *(None,) * 4)
    sums = info.checksums
    return (
        _FILE,
        info.size,
        _packed(sums.sha256),
        _packed(sums.sha1),
        _packed(sums.md5),
        info.modified_ns,
        info.created_ns,
        _text(info.created_by),
        _text(info.modified_by),
        _text(info.mime_type),
        _text(info.link_target),
    )


def info_of(path: RepoPath, content: Content) -> EntryInfo | None:
    """Read a row; None: there was no such name."""
    kind, size, sha256, sha1, md5, modified, created, created_by, modified_by, mime, link = content
    if kind == MISSING:
        return None
    if kind == _FILE:
        sums = Checksums(_unpacked(sha256), _unpacked(sha1), _unpacked(md5))
        return FileInfo(
            path, size, sums, modified, created, created_by, modified_by, mime, link_target=link
        )
    return FolderInfo(path, modified, created, listed=kind == _FOLDER)


def checksum(folder: int, name: str, content: Content) -> int:
    """Return the checksum of an entry, whenever it was true."""
    return xxhash.xxh3_64_intdigest(repr((folder, name, content)).encode("utf-8", "replace"))


def seal(content: int, asked: int) -> int:
    """Return the checksum of a row, as SQLite holds it: signed."""
    return _signed(content + asked * _SEAL)


def unsealed(sealed: int, asked: int) -> int:
    """Return the checksum of the content that a row claims to have."""
    return (sealed - asked * _SEAL) & _MASK


def checksum_of(*values: object) -> int:
    """Return the checksum of any other row, as SQLite holds it."""
    return _signed(xxhash.xxh3_64_intdigest(repr(values).encode("utf-8", "replace")))


def properties_to_text(properties: Properties) -> str:
    # ASCII: a lone surrogate, which JSON can carry, is text that SQLite cannot hold.
    return json.dumps({key: list(values) for key, values in properties.items()})


def properties_of(text: str) -> Properties:
    """Raises Damaged."""
    try:
        found = json.loads(text)
        return {str(key): tuple(map(str, values)) for key, values in found.items()}
    except (ValueError, AttributeError, TypeError):
        raise Damaged from None


def entry_to_json(info: EntryInfo) -> list[object]:
    """Return an entry with its place, for an answer that is kept as one document."""
    content = content_of(info)
    return [
        info.path.repo,
        info.path.path,
        *(value.hex() if isinstance(value, bytes) else value for value in content),
    ]


def entry_from_json(values: list[object]) -> EntryInfo:
    """Raises Damaged."""
    try:
        repo, path, *content = values
        info = info_of(RepoPath(str(repo), str(path)), tuple(content))  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise Damaged from None
    if info is None:
        raise Damaged
    return info


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << _BITS) if value >> (_BITS - 1) else value


def _packed(digest: str | None) -> bytes | str | None:
    """Half the bytes, for what is hex as all servers write it."""
    if digest is None:
        return None
    try:
        packed = bytes.fromhex(digest)
    except ValueError:
        return _text(digest)
    return packed if packed.hex() == digest else _text(digest)


def _unpacked(digest: bytes | str | None) -> str | None:
    return digest.hex() if isinstance(digest, bytes) else digest


def _text(text: str | None) -> str | None:
    """Return text that SQLite can hold; what JSON can carry and UTF-8 cannot is left out."""
    if text is None or text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text
