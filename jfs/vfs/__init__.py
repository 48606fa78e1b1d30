"""The filesystem, free of any protocol: inodes, tree, reading."""
