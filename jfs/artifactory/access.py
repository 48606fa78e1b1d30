"""How a server is reached: credentials, certificates, proxies. One for both planes; any thread."""

from collections.abc import Mapping

import httpx

from jfs.artifactory.auth import Authenticator
from jfs.artifactory.proxies import Proxies
from jfs.artifactory.renewal import Renewal
from jfs.artifactory.trust import Trust
from jfs.config import ServerSettings
from jfs.errors import ConfigError


class Access:
    """What the settings and the environment say about the way to one server.

    Raises:
        ConfigError: the URL, a certificate, or the proxy that leads to the server cannot be used.
    """

    def __init__(self, settings: ServerSettings, environ: Mapping[str, str]) -> None:
        try:
            url = httpx.URL(settings.url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{settings.url}: not a usable URL: {error}") from None
        self.authenticator = Authenticator(settings.credentials)
        self.renewal = Renewal(self.authenticator)
        self.proxies = Proxies(environ)
        self.proxies.leading_to(url.scheme, url.host, url.port)
        self.trust = Trust(settings, environ)
