"""The mounts of ``tests/mount``."""

from tests.mount.conftest import mounted, mounter

__all__ = ["mounted", "mounter"]
