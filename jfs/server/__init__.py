"""The embedded Artifactory-compatible server, for `jfs serve`, `jfs demo` and tests.

Rooms, from the top; each imports only what is below it (import-linter): ``runner`` (threads and
sockets), ``service`` (the table of addresses), ``routes``, ``http``, ``store``, ``search``,
``wire``.
"""

from jfs.server.http.faults import Fault, FaultPlan
from jfs.server.runner import EmbeddedServer, TlsFiles

__all__ = ["EmbeddedServer", "Fault", "FaultPlan", "TlsFiles"]
