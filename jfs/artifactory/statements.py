"""What the head of an answer states about content, and whether that is a version's. Pure.

Servers, proxies and storages write the same checksum in many ways: upper case, quoted, as a weak
ETag, twice. Whatever can be known of it is read; what cannot be understood states nothing.
"""

import base64
import binascii
import re
from collections.abc import Iterable

import httpx

from jfs.model import ArtifactVersion, Checksums, RepoPath

_HEX = {"sha256": 64, "sha1": 40, "md5": 32}
Stated = tuple[Checksums, ...]

# A proxy that compresses makes an ETag weak, or adds how (Apache's "…-gzip").
_ETAG = re.compile(r'(?:W/)?"?([0-9a-fA-F]+)(?:[-;]+(?:gzip|deflate|br|zstd))?"?')


def of_artifactory(headers: httpx.Headers) -> Stated:
    """Return what Artifactory's own answer states: X-Checksum headers, and its ETag, the sha1."""
    etags = {match[1].lower() for match in _etags(headers) if len(match[1]) == _HEX["sha1"]}
    return _x_checksums(headers), Checksums(sha1=_only(etags))


def of_storage(headers: httpx.Headers) -> Stated:
    """Return what an answer of storage states: an Artifactory's headers, or an object store's.

    An ETag of 32 digits is left alone: that of S3 is the md5 of some objects, and of others (with
    encryption by a key service, or sent in parts) it looks like one and is none.
    """
    sha256, sha1 = (
        _only(_decoded(headers.get_list(f"X-Amz-Checksum-{name}"), _HEX[name]))
        for name in ("sha256", "sha1")
    )
    if headers.get("X-Amz-Checksum-Type", "").strip().upper() == "COMPOSITE":
        sha256 = sha1 = None  # of the parts' checksums, not of the content
    hashes = [
        value.strip().removeprefix("md5=")
        for value in headers.get_list("X-Goog-Hash", split_commas=True)
        if value.strip().startswith("md5=")
    ]
    md5 = _only(_decoded(hashes, _HEX["md5"]))
    return *of_artifactory(headers), Checksums(sha256, sha1, md5)


def of_version(version: ArtifactVersion) -> Checksums:
    """Return the checksums that a version is known by."""
    algorithm, _, digest = version.content.digest.partition(":")
    sha256 = digest if algorithm == "sha256" else None
    return Checksums(sha256, version.sha1 or (digest if algorithm == "sha1" else None))


def agree(stated: Iterable[Checksums], known: Checksums) -> bool | None:
    """Whether statements are about the content that *known* is of; None: they do not say.

    One checksum that differs outweighs any that match.
    """
    pairs = [
        (getattr(each, name), getattr(known, name))
        for each in stated
        for name in ("sha256", "sha1", "md5")
    ]
    common = [a == b for a, b in pairs if a is not None and b is not None]
    return all(common) if common else None


def joined(known: Checksums, headers: httpx.Headers) -> Checksums:
    """Add to *known* the X-Checksum headers of an answer that agrees with it."""
    found = _x_checksums(headers)
    return Checksums(known.sha256 or found.sha256, known.sha1 or found.sha1, known.md5 or found.md5)


def names_content(location: httpx.URL, path: RepoPath, known: Checksums) -> bool:
    """Whether a location is the address of a content, not of a place that may be written anew.

    That of a real Artifactory is ``…/filestore/3b/3b5de69d…?…``. Only the path counts, as the query
    may describe the artifact; and a digest that stands in the artifact's own path says nothing.
    """
    place, own = location.path.lower(), str(path).lower()
    digests = (known.sha256, known.sha1, known.md5)
    return any(digest and place.count(digest) > own.count(digest) for digest in digests)


def _x_checksums(headers: httpx.Headers) -> Checksums:
    return Checksums(
        **{
            name: _only(_hex(headers.get_list(f"X-Checksum-{name}", split_commas=True), length))
            for name, length in _HEX.items()
        }
    )


def _etags(headers: httpx.Headers) -> Iterable[re.Match[str]]:
    values = headers.get_list("ETag", split_commas=True)
    return [match for value in values if (match := _ETAG.fullmatch(value.strip()))]


def _hex(values: Iterable[str], length: int) -> set[str]:
    plain = (value.strip().strip('"').lower() for value in values)
    return {value for value in plain if re.fullmatch(f"[0-9a-f]{{{length}}}", value)}


def _decoded(values: Iterable[str], length: int) -> set[str]:
    found = set()
    for value in values:
        try:
            digest = base64.b64decode(value.strip(), validate=True).hex()
        except (binascii.Error, ValueError):
            continue  # "…-4": of four parts
        if len(digest) == length:
            found.add(digest)
    return found


def _only(values: set[str]) -> str | None:
    """Return the value, if there is one; several that differ state nothing."""
    return next(iter(values)) if len(values) == 1 else None
