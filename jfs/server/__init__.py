"""The embedded Artifactory-compatible server."""
