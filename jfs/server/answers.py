"""Answers of the REST interface: JSON as Artifactory prints it, errors in its shape.

Source: artifactory-rest 1.3 and 1.4.
"""

import json
from collections.abc import Mapping

from aiohttp import web

_PREFIX = "application/vnd.org.jfrog.artifactory."


class ApiError(Exception):
    """A request that is refused; becomes ``{"errors": [{"status": …, "message": …}]}``.

    Args:
        plain: the message is the whole body, as text (or nothing, if it is empty).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        plain: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.plain = plain
        self.headers = dict(headers or {})


def error_response(error: ApiError) -> web.Response:
    """Render an error."""
    if error.plain:
        return web.Response(status=error.status, text=error.message, headers=error.headers)
    document = {"errors": [{"status": error.status, "message": error.message}]}
    return web.Response(
        status=error.status,
        text=pretty(document),
        content_type="application/json",
        headers=error.headers,
    )


def json_response(
    document: object,
    *,
    kind: str | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Render a document; *kind* names the vendor media type, such as ``storage.FileInfo``."""
    return web.Response(
        status=status,
        body=pretty(document).encode("utf-8"),
        headers={
            "Content-Type": f"{_PREFIX}{kind}+json" if kind else "application/json",
            **(headers or {}),
        },
    )


def pretty(document: object) -> str:
    """Print JSON the way Artifactory does: two spaces, and a space before each colon."""
    return json.dumps(document, indent=2, separators=(",", " : "), ensure_ascii=False)
