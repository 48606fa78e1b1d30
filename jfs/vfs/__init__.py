"""The filesystem that a mount shows, free of FUSE and of HTTP.

Where to look, from the top; each room imports only rooms below it (import-linter):

- ``filesystem``: the facade that ``fuse.py`` and tests drive; ``mutations``: names that change;
  ``boundary``: what ``fuse.py`` tells of requests; ``sleeps``: a machine that was suspended.
- ``holdings``: what is in memory because the kernel knows it.
- ``unasked``: names whose upload waits.
- ``attributes``: what ``stat`` and ``getxattr`` show.
- ``files``: what is open; ``shards``: models that are read whole.
- ``kernel``: what the kernel was told and may hold.
- ``reading``, ``writing``, ``namespace``: bytes from the server, bytes to it, names and inodes.
- ``kept``: what was learnt, beside the block cache: it outlives the mount.
- ``freshness``, ``questions``: what the server said and how long it is believed; who asks it, once
  for everybody who waits; ``refusals``: what the mount has refused.
- ``standing``: what stands in while the server cannot be asked.

Each package says which locks it has, and who may hold them while waiting for what.
"""
