"""Who asks. Source: artifactory-rest 1.2."""

import base64
import binascii
import hmac

from aiohttp import web

from jfs.server.answers import ApiError
from jfs.server.context import Service

ADMIN, ANONYMOUS = "admin", "anonymous"
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="Artifactory Realm"'}
_OPEN = frozenset({"/artifactory/api/system/ping"})


def user_of(request: web.Request, service: Service) -> str:
    """Give the user of a request.

    Raises:
        ApiError: 401, for wrong credentials, or for none where they are needed.
    """
    secret = _secret(request)
    if secret is None:
        if service.anonymous or request.path in _OPEN:
            return ANONYMOUS
        raise ApiError(401, "Authentication is required", headers=_CHALLENGE)
    if hmac.compare_digest(secret.encode(), service.token.encode()):
        return ADMIN
    raise ApiError(401, "Bad Credentials", headers=_CHALLENGE)


def _secret(request: web.Request) -> str | None:
    """Find the token: a Bearer token, the password of Basic, or the legacy header."""
    key = request.headers.get("X-JFrog-Art-Api")
    if key:
        return key
    header = request.headers.get("Authorization", "")
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme == "Basic" and value != "Og==":
        try:
            pair = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return ""
        return pair.partition(":")[2]
    return None
