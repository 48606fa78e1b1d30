"""The mounts of ``tests/mount``."""

from tests.mount.conftest import mounter

__all__ = ["mounter"]
