"""The block cache of this node: contents by digest, in verified blocks, shared by all processes.

Question → module:

- Where is the entry of a content, and is there room for more? ``store`` (``DiskBlockStore``)
- Is this block there, and right? Store it, claim its fetch: ``content`` (``DiskContent``)
- What does a map file look like? ``blockmap``. Which descriptors are open? ``files``
- What can the file system do? ``filesystem``. What goes when room is wanted? ``eviction``,
  by what was used when: ``lastuse``
- Is the whole what its digest says? ``verification``. Lend its file: ``whole``
- What is remembered of how contents were read? ``notes``
- Take a file in that is on disk already: ``adoption``. For people (`jfs cache`): ``inventory``

May import ``protocols`` and what is below it; knows no server, no path and no event loop. All of it
blocks, except where a docstring says otherwise, and may be called from any thread.

Lock order, from the outside in; none is held while the network is waited for:

1. The eviction lock of the directory: flock on ``evict.lock``, one process at a time.
2. The lock of an entry: flock on its map. Shared for as long as a content has its files open, alone
   for who removes or replaces the files. Whoever evicts only tries it; opening waits for it, which
   takes a few system calls.
3. The lock of a block: an OFD lock on the map, one byte for each block. Only ever tried.
4. Locks of this process: ``DiskBlockStore._lock``, which is also held while the store evicts (so it
   is outside of all others), ``OpenFiles._lock``, ``DiskContent._lock``. The last two are never
   held together, nor is either while the disk is waited for: the event loop takes them.
   ``DiskContent._completing`` is held while the map is read, by threads only.
"""

from jfs.cache.inventory import CachedEntry, check, inventory, pin, remove
from jfs.cache.notes import Notes
from jfs.cache.store import DiskBlockStore

__all__ = ["CachedEntry", "DiskBlockStore", "Notes", "check", "inventory", "pin", "remove"]
