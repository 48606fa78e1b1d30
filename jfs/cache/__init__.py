"""Content-addressed block cache on disk."""

from jfs.cache.store import DiskBlockStore

__all__ = ["DiskBlockStore"]
