"""Who a request comes from: a user, known by a token, or anonymous.

Any thread. Tokens are never logged. Source: artifactory-rest 1.2.
"""

import base64
import binascii
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from jfs.errors import ConfigError
from jfs.server.store.rights import ANONYMOUS, User
from jfs.server.wire.answers import REALM, ApiError


class Access:
    """Who is known.

    Args:
        tokens: every user with the token that stands for them.
        anonymous: let requests without credentials in, to read and to write.
    """

    def __init__(self, tokens: Sequence[tuple[User, str]], *, anonymous: bool) -> None:
        self._tokens = [(user, token.encode()) for user, token in tokens]
        self._anonymous = anonymous

    def user(self, headers: Mapping[str, str]) -> User:
        """Name the user of a request.

        The token names the user, whatever user stands beside it in ``Basic``.

        Raises:
            ApiError: 401, for wrong credentials, or for none where they are needed.
        """
        secret = _secret(headers)
        if secret is None:
            if self._anonymous:
                return ANONYMOUS
            raise _challenge("Authentication is required")
        given = secret.encode("utf-8", "surrogateescape")
        for user, token in self._tokens:
            if hmac.compare_digest(given, token):
                return user
        raise _challenge("Bad Credentials")


def token_of(directory: Path, name: str) -> str:
    """Read ``NAME.token``; the first start makes it, readable by its owner only.

    Raises:
        ConfigError: the file cannot be made, read or used.
    """
    path = directory / f"{name}.token"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_token(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
        file.flush()
        os.fsync(file.fileno())
    return token


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: a token is plain ASCII") from None
    if not token:
        raise ConfigError(f"{path}: is empty: remove it to have a new token made")
    return token


def _secret(headers: Mapping[str, str]) -> str | None:
    """Return what was presented as secret; None for no credentials. Raises ApiError 401."""
    if key := headers.get("X-JFrog-Art-Api"):
        return key
    scheme, _, value = headers.get("Authorization", "").strip().partition(" ")
    value = value.strip()
    if not scheme:
        return None
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() != "basic":
        raise _challenge("Bad Credentials")
    if value == "Og==":  # empty user and password
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        raise _challenge("Bad Credentials") from None


def _challenge(message: str) -> ApiError:
    return ApiError(401, message, headers={"WWW-Authenticate": REALM})
