"""The embedded Artifactory-compatible server, for `jfs serve`, `jfs demo` and tests."""

from jfs.server.faults import Fault, FaultPlan
from jfs.server.runner import EmbeddedServer, TlsFiles

__all__ = ["EmbeddedServer", "Fault", "FaultPlan", "TlsFiles"]
