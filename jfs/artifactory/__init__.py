"""Artifactory as a client sees it: control plane over httpx, bulk bodies over worker threads."""
