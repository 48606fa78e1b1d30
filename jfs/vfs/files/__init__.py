"""What is open: handles, the pinned version of each, staged copies, copies of descriptors.

``table`` is the facade, ``handles`` knows which close is the last one, ``settling`` which uploads
and which lets its file wait, ``verdicts`` what came of those that waited; ``opening`` says which
open file an open gets, ``passing`` which the kernel reads itself, ``beside`` which the native part
reads for it; ``writer`` changes and uploads one, which the cache takes in by ``adopting``;
``copies`` and ``reserving`` answer copy_file_range(2) and fallocate(2); ``renaming`` is told when
names change. May import ``kernel``, ``reading``, ``writing`` and ``namespace``.

Locks, from the outside in; a task that holds one asks only for those below it:

- the turn of opening an inode (``Opening.turn``)
- the claims of paths (``namespace.locks``): held while uploading, renaming, removing, making
- the lock of one open file (``OpenFile.lock``): held while it is changed and while it is uploaded,
  so that what is uploaded does not change; never those of two files

A task that holds any of them may wait for the server and for this disk, never for the kernel. READ,
LOOKUP, GETATTR and FLUSH of what is clean take none.
"""
