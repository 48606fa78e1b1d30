"""What is open: handles, the pinned version of each, staged copies, copies of descriptors.

May import ``reading``, ``writing`` and ``namespace``. Lock order: the lock of an open file first,
then nothing else; of several files in the order of their inode numbers (``OpenFiles.held``).
"""
