"""Bytes of a pinned version: planner, segments in memory, block cache, server.

Knows no names and no inodes, and imports no other room. No lock: a segment is filled by one task.
Memory comes from the budget of the mount (``jfs.memory``): who waits for it holds none of it.
"""
