"""What an entry looks like: ``stat``, extended attributes, properties.

May import ``files`` and everything below it. Takes the lock of an open file (``OpenFiles.held``)
and holds no lock of its own while it does.
"""
