"""What a mount has learnt, kept beside the block cache: it outlives the mount.

While the server cannot be asked, a mount shows what an earlier mount of the same source was told.
Every answer of the server is kept with the time at which it was true, and what this mount changes
itself. Only *known* is what comes out of here: how long it stands in for an answer that cannot be
had is the part of ``jfs.vfs.freshness``.

- ``keeper``: what is learnt, written behind everybody's back; what is known, read when it is
  needed. Trio.
- ``database``: one SQLite file for each source, server and user. Blocking.
- ``rows``: how values are written, with a checksum each.
- ``identity``: whose metadata they are: nobody sees what another user was told.

A database is read when an answer cannot be had, and only for what was asked: starting costs the
same with a million entries as with one. It is believed as little as any file on a disk: each row
has a checksum, each listing one over all of its rows. What is damaged is dropped, whole.
"""
