"""The embedded Artifactory-compatible server."""

from jfs.server.faults import Fault, FaultPlan
from jfs.server.runner import EmbeddedServer, TlsFiles

__all__ = ["EmbeddedServer", "Fault", "FaultPlan", "TlsFiles"]
