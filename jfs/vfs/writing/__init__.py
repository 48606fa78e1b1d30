"""Bytes on their way to the server: staged files, journal, deployer, recovery.

Knows no inodes, and imports no other room. One lock: ``flock`` of a staged file, held by the
process that owns it, so that two processes never deal with the same one.
"""
