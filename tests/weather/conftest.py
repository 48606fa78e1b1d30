"""Mounts, as those of ``tests.mount`` are made."""

from tests.mount.conftest import mounter

__all__ = ["mounter"]
