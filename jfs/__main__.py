"""``python -m jfs``."""

from jfs.cli import main

main()
