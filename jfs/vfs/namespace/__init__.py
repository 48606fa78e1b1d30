"""Names: inodes and dentries, the tree, selectors, queries, what was set here only.

Imports no other room. What is known of names is changed without a checkpoint, and needs no lock;
who asks for the same thing shares one question (``jfs.vfs.freshness``). The claims of paths
(``locks``) order what changes the server: see ``jfs.vfs.files`` for what comes before and after.
"""
