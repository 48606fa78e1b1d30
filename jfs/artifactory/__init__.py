"""Artifactory as a client sees it: control plane over httpx, bulk bodies over worker threads."""

from jfs.artifactory.client import ArtifactoryClient, explain
from jfs.artifactory.ranges import HttpRangeSource

__all__ = ["ArtifactoryClient", "HttpRangeSource", "explain"]
