"""The filesystem that a mount shows, free of FUSE and of HTTP.

Where to look, from the top; each room imports only rooms below it (import-linter):

- ``filesystem``: the facade that ``fuse.py`` and tests drive; ``mutations``: names that change.
- ``attributes``: what ``stat`` and ``getxattr`` show.
- ``files``: what is open.
- ``reading``, ``writing``, ``namespace``: bytes from the server, bytes to it, names and inodes.
"""
