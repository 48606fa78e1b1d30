"""Content-addressed block cache on disk."""

from jfs.cache.inventory import CachedEntry, check, inventory, pin, remove
from jfs.cache.store import DiskBlockStore

__all__ = ["CachedEntry", "DiskBlockStore", "check", "inventory", "pin", "remove"]
