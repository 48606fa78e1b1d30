"""Bytes of a pinned version: planner, segments in memory, block cache, server.

- ``reader``: READs of one content; ``plane``: what all readers of a mount share.
- ``readahead``: what to fetch for a READ. It is told by ``ended`` what it has seen, by
  ``learning`` how files were read, by ``companions`` what files say of themselves and of others;
  ``scattered`` refuses what nobody waits for.
- ``beside``: what the native part answers READs from, and until when.
- ``segments``, ``whole``, ``limits``: from the server into memory, by how many threads.
- ``cached``, ``publisher``: from the block cache, and to it.
- ``fetching``, ``following``, ``background``: whole contents, before an open is answered, behind a
  reader, and for nobody yet; ``bringing``: their pieces. ``intent`` tells them who reads what,
  ``recall`` what was read whole before.

Knows no names but the path of a version, and of inodes the number of the one that the kernel asks
for (``scattered``). Imports no other room. One lock, of a reader, held while it is asked who made a
READ, for a second at most: the READ after it waits for what is found. A segment is filled by one
task. Memory comes from the budget of the mount (``jfs.memory``): who waits for it holds none of it.
"""
