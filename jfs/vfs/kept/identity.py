"""Whose metadata they are: the name of a database, made of server, source and user.

What one user was told is never shown to another, who may have fewer rights. The user is, in this
order: the subject of the token, if it is a JWT (its signature is not looked at: the subject is only
a name, and whoever can reach the directory can read what is in it anyway); the user's name; the
path of the file that holds the token, whose content is rotated; a keyed hash of the token; nobody.

All of it goes through HMAC with a key that never leaves the directory: names of databases say
nothing about tokens. Blocking; any thread.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path

from jfs.config import Credentials
from jfs.errors import JfsError
from jfs.model import RepoPath

_KEY_FILE = "key"
_KEY_BYTES = 32


def user_of(credentials: Credentials) -> str:
    """Say who authenticates so. It may hold a token: it is for ``name_of`` alone."""
    kept = credentials.kept_in
    if kept is not None:
        with contextlib.suppress(JfsError):  # for a moment there may be nothing in it
            credentials = kept.read()
    token = credentials.token.reveal() if credentials.token is not None else ""
    if subject := _subject(token):
        return f"subject {subject}"
    if credentials.user is not None:
        return f"user {credentials.user}"
    if kept is not None:
        return f"file {kept.path}"
    return f"token {token}" if token else "nobody"


def name_of(key: bytes, server: str, source: RepoPath, user: str) -> str:
    """Return the name of the database of a source as one user sees it."""
    text = json.dumps([server, source.repo, source.path, user])
    return hmac.new(key, text.encode("ascii"), hashlib.sha256).hexdigest()[:32]


def key_in(directory: Path) -> bytes:
    """Return the key of a private directory, made if there is none. Raises OSError."""
    path = directory / _KEY_FILE
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            if len(key := path.read_bytes()) == _KEY_BYTES:
                return key
            path.unlink()  # cut or damaged: what was kept under it is found no more
        fresh = directory / f"{_KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            _link(fresh, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
    return path.read_bytes()


def _link(fresh: Path, path: Path) -> None:
    """Let a file have its name, unless another mount was faster. Raises OSError."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        return
    except OSError:  # no hard links on this file system
        os.rename(fresh, path)


def _subject(token: str) -> str | None:
    """Return the subject of a JWT; None: it is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        text = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        return None
    subject = claims.get("sub") if isinstance(claims, dict) else None
    return subject if isinstance(subject, str) and subject else None
