"""Names: inodes and dentries, the tree, selectors, queries, what was set here only.

Imports no other room. Lock order: the lock of a folder's listing or of one name, never two at a
time, and never while a file's lock is wanted.
"""
